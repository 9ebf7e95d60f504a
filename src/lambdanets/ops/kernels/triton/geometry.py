"""A problem's grids and table as the numbers that programs take: two axes, the first of length 1 in 1-D."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...problem import Problem

Pair = tuple[int, int]


def unsupported(problem: Problem) -> list[str]:
    """Why these programs cannot serve a problem; empty if they can."""
    reasons = []
    if not problem.relative:
        reasons.append("dense embeddings are not read, only tables of offsets")
    if len(problem.grid) > 2:
        reasons.append(f"grids have one axis or two, not {len(problem.grid)}")
    if problem.dilation and max(problem.dilation) > 1:
        reasons.append("dilated scopes are not served")
    return reasons


def sizes(problem: Problem) -> tuple[int, ...]:
    """Query grid, context grid, entries that may be seen, and the entry of offset 0; y before x."""
    context = problem.context
    seen = context.table_shape
    if problem.causal:
        seen = (min(context.table_shape[0], context.centre[0] + 1),)
    one = (1,) * (2 - len(context.grid))
    nothing = (0,) * (2 - len(context.grid))
    return (*one, *context.grid, *one, *context.key_grid, *one, *seen, *nothing, *context.centre)


def as_plane(e: Tensor) -> Tensor:
    """A table (*offsets k u) with two axes of offsets."""
    return e if e.ndim == 4 else e[None]


def power(size: int, least: int, most: int) -> int:
    """The power of two that holds a size, within limits that are powers of two."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a program's products.

    SUM is float32, or float64 for float64. PRECISION is how tensor cores take float32: as it is, unless
    PyTorch's own products are allowed to round it.
    """
    rounded = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {
        "SUM": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": "tf32" if rounded else "ieee",
    }
