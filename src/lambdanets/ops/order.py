"""The order in which the axes of queries and outputs lie in memory, which the operator keeps as it finds it.

Images give queries whose positions or whose channels lie side by side; an output in the same order becomes
images again without a copy.
"""

from __future__ import annotations

from torch import Tensor


def order_of(q: Tensor) -> str:
    """The order of queries b h n k: "hnv", "hvn" or "nhv", with v for k, which is what the output has."""
    if q.stride(2) == 1 and q.shape[2] > 1 and q.shape[3] > 1:
        return "hvn"  # of images whose channels come first
    return "nhv" if q.stride(2) > q.stride(1) > q.stride(3) else "hnv"


def new_output(q: Tensor, dim_v: int, order: str) -> Tensor:
    """Allocate an output b h n v in an order.

    The tensor is not a view: PyTorch forbids in-place operations on views that a library operator returns.
    """
    b, h, n, _ = q.shape
    shape = {"b": b, "h": h, "n": n, "v": dim_v}
    strides, step = {}, 1
    for axis in reversed(f"b{order}"):
        strides[axis], step = step, step * shape[axis]
    return q.new_empty_strided(tuple(shape.values()), tuple(strides[axis] for axis in shape))


def as_rows(x: Tensor, order: str) -> Tensor:
    """b h n c as b rows c, or for "hvn" as (b h) c n: a view of what lies in memory in this order."""
    if order == "hvn":
        return x.mT.flatten(0, 1)
    return x.transpose(1, 2).flatten(1, 2) if order == "nhv" else x.flatten(1, 2)


def from_rows(x: Tensor, num_heads: int, order: str) -> Tensor:
    """The inverse of `as_rows`."""
    if order == "hvn":
        return x.unflatten(0, (-1, num_heads)).mT
    if order == "nhv":
        return x.unflatten(1, (-1, num_heads)).transpose(1, 2)
    return x.unflatten(1, (num_heads, -1))
