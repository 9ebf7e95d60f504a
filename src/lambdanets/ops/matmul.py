"""Matrix products by the faster of two libraries, oneDNN and PyTorch's own, and buffers for their results."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .hardware import ONEDNN, ONEDNN_MIN_MACS


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context manager that disables autocast on a device type: the caller has chosen the dtypes.

    Where autocast is off already, `torch.autocast` is not used: an exported graph would contain a subgraph
    for it.
    """
    # There is no autocast on meta.
    enabled = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a [rows, inner] times b [inner, columns], written into `out` if given; any strides."""
    if _uses_onednn(a) and b.numel():
        if not (b.is_contiguous() or b.mT.is_contiguous()):
            # With gaps between the rows oneDNN falls back to plain loops.
            b = b.contiguous()
        y = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
        return y if out is None else out.copy_(y)
    return torch.mm(a, b, out=out)


def batched_matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a [batch, rows, inner] times b [batch, inner, columns], written into `out` if given."""
    batch, rows, inner = a.shape
    columns = b.shape[2]
    if not _uses_onednn(a) or rows * inner * columns < ONEDNN_MIN_MACS:
        return torch.bmm(a, b, out=out)
    out = a.new_empty(batch, rows, columns) if out is None else out
    for target, left, right in zip(out, a, b, strict=True):
        target.copy_(matmul(left, right))
    return out


def _uses_onednn(a: Tensor) -> bool:
    """Return whether oneDNN is the faster library for products of `a`."""
    return ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() > 0


class Scratch:
    """Named buffers that the steps of one call reuse, so that they stay in the CPU's cache.

    Reuse also avoids the page faults of newly allocated memory. A buffer grows when a step asks for more.

    Args:
        like: A tensor with the dtype and the device of the buffers.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the buffer `name` as a contiguous tensor of this shape, its elements uninitialised.

        It is valid until the next call with the same name.
        """
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)  # freed before the larger one is allocated
            self._buffers[name] = torch.empty(size, dtype=self._like.dtype, device=self._like.device)
        return self._buffers[name][:size].view(shape)
