"""Modules that map the channels of each position, by the native library on CPUs where it serves the call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from lambdanets.ops.projection import is_native, project
from lambdanets.ops.rms_norm import rms_norm

# Positions from which a call of the library takes less time than PyTorch's operator, as in no decoding step.
MIN_POSITIONS = 128


class RMSNorm(nn.RMSNorm):
    """RMS norm over the last axis, with a weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[..., c]` over its last axis."""
        assert self.eps is not None
        # Under autocast the dtypes differ, and PyTorch would warn.
        weight = self.weight.to(x.dtype)
        if _may_call_library(x):
            return rms_norm(x, weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class ChannelRMSNorm(RMSNorm):
    """RMS norm over the channels of `[b, c, *grid]`, separately at each position."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[b, c, *grid]` over its channels."""
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            weight = self.weight.to(x.dtype)
            return F.rms_norm(x.movedim(1, -1), self.normalized_shape, weight, self.eps).movedim(-1, 1)
        else:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Linear(nn.Linear):
    """Linear map of the last axis; without a bias the native library computes it, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[..., in]` to `[..., out]`."""
        if self.bias is None and _may_call_library(x) and x.is_contiguous():
            positions = x.flatten(0, -2)[None].mT  # [1, in, n]
            weight = self.weight[:, :, None]
            if is_native(positions, [weight]):
                (y,) = project(positions, [weight])
                return y.mT[0].unflatten(0, x.shape[:-1])
        return super().forward(x)


def _may_call_library(x: Tensor) -> bool:
    """Return whether x `[..., c]` has so many positions that the library pays, and no graph is recorded."""
    return (
        not isinstance(x, Proxy)
        and not (torch.compiler.is_compiling() or torch.compiler.is_exporting())
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and x.shape[:-1].numel() >= MIN_POSITIONS
    )
