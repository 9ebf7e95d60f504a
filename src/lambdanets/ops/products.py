"""Matrix products at the speed of the library that is fastest for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

LARGE = 2**20  # multiply-adds of one product from which a call of its own costs less than it gains
WIDE_AMD = 26  # the family of AMD's processors from which AVX-512 units have their full width (Zen 5)


def amd_family() -> int:
    """The family of an AMD processor, 0 for any other or where the system does not say."""
    try:
        lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        return 0
    said = {name.strip(): value.strip() for name, value, *_ in reversed(lines)}
    family = said.get("cpu family", "")
    return int(family) if said.get("vendor_id") == "AuthenticAMD" and family.isdecimal() else 0


# PyTorch's float32 products are MKL's, which on AMD's processors use AVX2: half of what units of 512 bits can
# do, and oneDNN's do. Elsewhere both come near the peak, and one call for a batch is better than many.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and amd_family() >= WIDE_AMD
)
_HALF = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
SLOW_ON_CPU = frozenset(
    dtype
    for dtype, supported in _HALF.items()
    if not (torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, supported)())
)
"""The half precisions whose products this processor has no instructions for: PyTorch's loops for them are
many times slower than its products in float32 (`benchmarks/products`)."""


def product_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """The type in which to multiply tensors of a type: float32 where the processor has no other."""
    return torch.float32 if device == "cpu" and dtype in SLOW_ON_CPU else dtype


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Products in the types they are given: a kernel has chosen its precision.

    Nothing where autocast is off: an exported graph would have a part of its own for it.
    """
    on = device != "meta" and torch.is_autocast_enabled(device)  # there is no autocast on meta
    return torch.autocast(device, enabled=False) if on else nullcontext()


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a (rows, inner) times b (inner, columns), both strided views perhaps; into `out` if there is one."""
    if _onednn_serves(a) and b.numel():
        if not (b.is_contiguous() or b.mT.is_contiguous()):
            b = b.contiguous()  # with gaps between its rows oneDNN falls back to plain loops
        y = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
        return y if out is None else out.copy_(y)
    return torch.mm(a, b, out=out)


def products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Each a (batch, rows, inner) times each b (batch, inner, columns), into `out` if there is one."""
    batch, rows, inner = a.shape
    columns = b.shape[2]
    if not _onednn_serves(a) or rows * inner * columns < LARGE:
        return torch.bmm(a, b, out=out)
    out = a.new_empty(batch, rows, columns) if out is None else out
    for into, left, right in zip(out, a, b, strict=True):
        into.copy_(product(left, right))
    return out


def _onednn_serves(a: Tensor) -> bool:
    return ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() > 0
