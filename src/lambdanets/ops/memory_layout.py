"""Memory layouts of queries and outputs: the order in which their axes lie in memory.

A layout is named by the axes of one example from the largest stride to the smallest, where v stands for the
last axis (k of the queries, v of the output): "hnv" is contiguous, "hvn" comes from images with channels
first, "nhv" from channels-last images. An output in the layout of its queries becomes images again without a
copy.
"""

from __future__ import annotations

from torch import Tensor


def memory_layout_of(q: Tensor) -> str:
    """Return the layout of queries [b, h, n, k]; their output gets the same."""
    if q.stride(2) == 1 and q.shape[2] > 1 and q.shape[3] > 1:
        return "hvn"
    return "nhv" if q.stride(2) > q.stride(1) > q.stride(3) else "hnv"


def new_output(q: Tensor, dim_v: int, memory_layout: str) -> Tensor:
    """Allocate an output [b, h, n, v] in a layout.

    The tensor is not a view: PyTorch forbids in-place operations on views that a custom operator returns.
    """
    b, h, n, _ = q.shape
    if memory_layout == "hvn":
        strides = (n * dim_v, 1, n)
    elif memory_layout == "nhv":
        strides = (dim_v, h * dim_v, 1)
    else:
        strides = (n * dim_v, dim_v, 1)
    return q.new_empty_strided((b, h, n, dim_v), (h * n * dim_v, *strides))


def as_rows(x: Tensor, memory_layout: str) -> Tensor:
    """Return x [b, h, n, c] with two of its axes merged; a view if x has this layout.

    The result is [b, h n, c] for "hnv", [b, n h, c] for "nhv" and [b h, c, n] for "hvn".
    """
    if memory_layout == "hvn":
        return x.mT.flatten(0, 1)
    return x.transpose(1, 2).flatten(1, 2) if memory_layout == "nhv" else x.flatten(1, 2)


def from_rows(x: Tensor, num_heads: int, memory_layout: str) -> Tensor:
    """Return x, a result of `as_rows`, as [b, h, n, c]."""
    if memory_layout == "hvn":
        return x.unflatten(0, (-1, num_heads)).mT
    if memory_layout == "nhv":
        return x.unflatten(1, (-1, num_heads)).transpose(1, 2)
    return x.unflatten(1, (num_heads, -1))
