"""Residual networks on sequences of features, with lambda layers or other operators: `lambda_audio`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.nn import LambdaLayer1d


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the visible positions of `[b, c, n]`: padding is in no statistic.

    In evaluation, and without a mask, it is `nn.BatchNorm1d`.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise `x` `[b, c, n]`; `mask` `[b, n]` is True for the positions that count."""
        if mask is None or not self.training:
            return super().forward(x)
        visible = mask[:, None].to(x.dtype)
        count = visible.sum()
        mean = (x * visible).sum((0, 2)) / count
        centred = x - mean[:, None]
        variance = (centred.square() * visible).sum((0, 2)) / count
        scale = self.weight * (variance + self.eps).rsqrt()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)
        return centred * scale[:, None] + self.bias[:, None]


class ChannelNorm(nn.LayerNorm):
    def forward(self, x, mask=None):
        return super().forward(x.mT).mT


def hide(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x` `[b, c, n]` with zeros at the positions that the mask `[b, n]` hides."""
    return x if mask is None else x * mask[:, None].to(x.dtype)


def pool(x: Tensor, mask: Tensor | None, stride: int) -> Tensor:
    """Return the means of `stride` visible positions each: `[b, c, n]` to `[b, c, ceil(n / stride)]`."""
    missing = -x.shape[2] % stride
    if mask is None:
        mask = x.new_ones(1, x.shape[2], dtype=torch.bool)
    visible = mask[:, None].to(x.dtype)
    sums = F.avg_pool1d(F.pad(x * visible, (0, missing)), stride)
    return sums / F.avg_pool1d(F.pad(visible, (0, missing)), stride).clamp(min=1 / stride)


class ConvOp(nn.Module):
    def __init__(self, dim, taps, groups=1):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, taps, padding=taps // 2, groups=groups, bias=False)
    def forward(self, x, mask=None):
        return self.conv(hide(x, mask))


class MaskCell:
    mask = None


class Inner(MaskedBatchNorm):
    cell: Any = None
    def forward(self, x):
        return super().forward(x, self.cell.mask)


class LambdaOp(nn.Module):
    def __init__(self, dim, norm, **o):
        super().__init__()
        self.layer = LambdaLayer1d(dim, scope=23, norm="rms" if norm=="masked" else norm, **o)
        self.cell = MaskCell()
        if norm == "masked":
            self.layer.norm_queries = Inner(self.layer.to_queries.weight.shape[0])
            self.layer.norm_values = Inner(self.layer.to_values.weight.shape[0])
            self.layer.norm_queries.cell = self.layer.norm_values.cell = self.cell
    def forward(self, x, mask=None):
        self.cell.mask = mask
        return self.layer(x, mask=mask)


class Block(nn.Module):
    def __init__(self, dim, dim_out, op, norm, stride, drop=0.0):
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim_out, 1, bias=False)
        self.n1 = norm(dim_out)
        self.op = op(dim_out)
        self.n2 = norm(dim_out)
        self.conv3 = nn.Conv1d(dim_out, dim_out, 1, bias=False)
        self.n3 = norm(dim_out)
        self.stride = stride
        self.short = nn.Conv1d(dim, dim_out, 1, bias=False) if dim != dim_out or stride>1 else None
        self.ns = norm(dim_out) if self.short is not None else None
        nn.init.zeros_(self.n3.weight)
    def forward(self, x, mask):
        y = F.relu(self.n1(self.conv1(x), mask))
        y = self.op(y, mask)
        after = mask
        if self.stride > 1:
            y = pool(y, mask, self.stride); x = pool(x, mask, self.stride)
            after = None if mask is None else mask[:, :: self.stride]
        y = F.relu(self.n2(y, after))
        y = self.n3(self.conv3(y), after)
        if self.short is not None:
            x = self.ns(self.short(x), after)
        return F.relu(x + y), after


class AudioNet(nn.Module):
    def __init__(self, c, classes, widths=(32, 48, 64), depths=(1, 1, 1), op=None, norm="batch", strides=(1,2,2), drop=0.0):
        super().__init__()
        N = MaskedBatchNorm if norm == "batch" else ChannelNorm
        self.stem = nn.Conv1d(c, widths[0], 3, padding=1, bias=False)
        self.ns = N(widths[0])
        self.blocks = nn.ModuleList()
        d = widths[0]
        for w, k, s in zip(widths, depths, strides):
            for i in range(k):
                self.blocks.append(Block(d, w, op, N, s if i == 0 else 1)); d = w
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(d, classes)
    def forward(self, x, mask=None):
        x = F.relu(self.ns(self.stem(hide(x, mask)), mask))
        for b in self.blocks:
            x, mask = b(x, mask)
        m = hide(x, mask).sum(2) / (x.shape[2] if mask is None else mask.sum(1, keepdim=True))
        return self.head(self.drop(m))
