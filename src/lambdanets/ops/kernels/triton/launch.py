"""Launches of the Triton kernels for a problem and a tile, and their compilation without a device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...position_table import trim_table
from ...problem import Problem
from . import by_position, lambda_first
from .tiling import (
    MIN_DOT_SIZE,
    Tile,
    candidate_tiles,
    kernel_sizes,
    next_power_of_2,
    patch_shape,
    table_part_shape,
)

INDEX_LIMIT = 2**31  # the memory offset, in elements, from which an index needs 64 bits
TABLE_BLOCK = 16  # entries of a table that one program sums
TRITON_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class KernelCall:
    """A Triton kernel with the arguments of one launch.

    Attributes:
        kernel: The kernel, decorated with `triton.jit`.
        num_programs: Number of programs, on one axis.
        arguments: Its arguments in order, without the constants.
        constants: Its compile-time constants by name.
        warps: Warps of a program.
        stages: Stages of the pipelining of loads.
    """

    kernel: Any
    num_programs: int
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def launch(self) -> None:
        """Launch the kernel on the device of its tensors."""
        self.kernel[(self.num_programs,)](*self.arguments, **self.constants, **self.options)

    def compile(self, capability: int) -> Any:
        """Return the kernel as Triton compiles it for this call; the machine needs no such device.

        The arguments specialise the kernel as in a launch: those equal to 1 are constants, and tensors and
        integers that are multiples of 16 are marked as divisible by 16.

        Args:
            capability: The device's compute capability, such as 80 or 90.
        """
        names = self.kernel.arg_names
        signature, constants, attributes = {}, dict(self.constants), {}
        for i, (name, value) in enumerate(zip(names, self.arguments, strict=False)):
            if isinstance(value, Tensor):
                signature[name] = "*" + TRITON_TYPES[value.dtype]
            elif value == 1:
                constants[name] = value
            else:
                signature[name] = "i32" if value < 2**31 else "i64"
            if name in signature and (isinstance(value, Tensor) or value % 16 == 0):
                attributes[(i,)] = [["tt.divisibility", 16]]
        ordered = {name: signature.get(name, "constexpr") for name in names}
        source = ASTSource(self.kernel, ordered, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


def output_call(
    q: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    y: Tensor,
    tile: Tile,
    content_lambda: Tensor | None = None,
) -> KernelCall:
    """Return the call that writes y [b, h, n, v]; it adds q times the content lambda if given."""
    kernel = (by_position if tile.first == "queries" else lambda_first).output_kernel
    return _call(kernel, problem, tile, (q, v, _entries(e, problem), y), content_lambda=content_lambda)


def query_gradient_call(
    g: Tensor,
    v: Tensor,
    e: Tensor,
    problem: Problem,
    dq: Tensor,
    tile: Tile,
    content_lambda: Tensor | None = None,
) -> KernelCall:
    """Return the call that writes dq [b, h, n, k]."""
    tensors = (g, v, _entries(e, problem), dq)
    return _call(by_position.query_gradient_kernel, problem, tile, tensors, content_lambda=content_lambda)


def value_gradient_call(
    g: Tensor, q: Tensor, e: Tensor, problem: Problem, dv: Tensor, tile: Tile
) -> KernelCall:
    """Return the call that writes dv [b, m, v, u]."""
    return _call(by_position.value_gradient_kernel, problem, tile, (g, q, _entries(e, problem), dv))


def table_gradient_calls(
    g: Tensor, q: Tensor, v: Tensor, problem: Problem, de: Tensor, tile: Tile
) -> tuple[KernelCall, KernelCall]:
    """Return the two calls, in order, that write the entries of de [*offsets, k, u] that some pair reads."""
    accumulator = torch.promote_types(q.dtype, torch.float32)
    parts = q.new_empty(table_part_shape(problem, tile), dtype=accumulator)
    return (
        _call(by_position.table_gradient_kernel, problem, tile, (g, q, v), parts),
        _call(by_position.table_sum_kernel, problem, tile, (_trimmed(de, problem),), parts),
    )


def uses_tf32() -> bool:
    """Return whether products may round float32 to TF32, as PyTorch's own then do."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _trimmed(e: Tensor, problem: Problem) -> Tensor:
    """Return a view [z, y, x, k, u] of the entries of a table [*offsets, k, u] that some pair reads."""
    entries, _ = trim_table(e, problem.context)
    return entries[(None,) * (5 - entries.ndim)]


def _entries(e: Tensor, problem: Problem) -> Tensor:
    """Return the entries [z, y, x, k, u] of `_trimmed` with contiguous k, copied if need be."""
    entries = _trimmed(e, problem)
    return entries if entries.stride(-2) == 1 else entries.mT.contiguous().mT


def _call(
    kernel: Any,
    problem: Problem,
    tile: Tile,
    tensors: tuple[Tensor, ...],
    parts: Tensor | None = None,
    content_lambda: Tensor | None = None,
) -> KernelCall:
    """Return a call with its arguments in the kernels' order: tensors, their strides, sizes.

    `parts`, the partial sums of the table's gradient (`table_part_shape`), are the first argument of the
    kernel that reads them and the last tensor of the one that writes them; they have no strides among the
    arguments.
    """
    num_programs, sizes, constants = _fixed_arguments(kernel, problem, tile, uses_tf32())
    arguments = tensors
    if "CONTENT" in kernel.arg_names:
        constants = constants | {"CONTENT": content_lambda is not None}
        no_lambda = tensors[0].new_empty(0, 0, 0)
        tensors = arguments = (*tensors, no_lambda if content_lambda is None else content_lambda)
    if parts is not None:
        arguments = (parts, *tensors) if kernel is by_position.table_sum_kernel else (*tensors, parts)
    # Axes of length 1 get stride 0: Triton would compile another kernel for a stride of 1 that is never used.
    strides, furthest = [], 0
    for x in arguments:
        last = 0
        for size, stride in zip(x.shape, x.stride(), strict=True):
            stride = stride if size > 1 else 0
            last += (size - 1) * stride
            if x is not parts:
                strides.append(stride)
        furthest = max(furthest, last)
    constants = constants | {"INDEX": tl.int64 if furthest >= INDEX_LIMIT else tl.int32}
    return KernelCall(
        kernel, num_programs, (*arguments, *strides, *sizes), constants, tile.warps, tile.stages
    )


def calls_without_memory(problem: Problem) -> Iterator[tuple[str, Tile, KernelCall]]:
    """Yield the calls of every kernel with every candidate tile, on tensors without memory, for `compile`."""
    p, table = problem, problem.context.table_shape

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=p.dtype, device="meta")

    y, q = (empty(p.batch, p.num_heads, p.num_queries, depth) for depth in (p.dim_v, p.dim_k))
    v, e = empty(p.batch, p.num_context, p.dim_v, p.dim_u), empty(*table, p.dim_k, p.dim_u)
    content_lambda = empty(p.batch, p.dim_k, p.dim_v) if p.content else None
    for tile in candidate_tiles(p, "output"):
        yield "output", tile, output_call(q, v, e, p, y, tile, content_lambda)
    for tile in candidate_tiles(p, "dq"):
        yield "dq", tile, query_gradient_call(y, v, e, p, q, tile, content_lambda)
    for tile in candidate_tiles(p, "dv"):
        yield "dv", tile, value_gradient_call(y, q, e, p, v, tile)
    for tile in candidate_tiles(p, "de"):
        for call in table_gradient_calls(y, q, v, p, e, tile):
            yield "de", tile, call


@lru_cache(maxsize=4096)
def _fixed_arguments(
    kernel: Any, problem: Problem, tile: Tile, tf32: bool
) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Return the part of a call without tensors: number of programs, sizes in order, constants by name."""
    p = problem
    parts = table_part_shape(p, tile)
    queries, context = patch_shape(p.grid, tile.queries), patch_shape(p.context.key_grid, tile.context)
    constants = {
        "BB": tile.examples,
        "BH": tile.heads,
        "NTY": queries[0],
        "NTX": queries[1],
        "MTY": context[0],
        "MTX": context[1],
        "BK": next_power_of_2(p.dim_k, MIN_DOT_SIZE),
        "BV": tile.values,
        "BO": TABLE_BLOCK,
        "ACC": tl.float64 if p.dtype == torch.float64 else tl.float32,
        "PRECISION": "tf32" if tf32 and p.dtype == torch.float32 else "ieee",
    }
    sizes = kernel_sizes(p) | {"PARTS": parts[0]}
    names = kernel.arg_names
    examples = cdiv(p.batch, tile.examples)
    heads, values = cdiv(p.num_heads, tile.heads), cdiv(p.dim_v, tile.values)
    query_patches = _num_patches(p.grid, queries)
    context_patches = _num_patches(p.context.key_grid, context)
    num_programs = {
        by_position.output_kernel: query_patches * values * heads * examples,
        lambda_first.output_kernel: query_patches * values * heads * examples,
        by_position.query_gradient_kernel: query_patches * heads * examples,
        by_position.value_gradient_kernel: context_patches * values * p.dim_u * examples,
        by_position.table_gradient_kernel: math.prod(parts[:-3]),
        by_position.table_sum_kernel: p.dim_u * sizes["LZ"] * sizes["LY"] * cdiv(sizes["LX"], TABLE_BLOCK),
    }[kernel]
    return (
        num_programs,
        tuple(sizes[name] for name in names if name in sizes),
        {name: value for name, value in constants.items() if name in names},
    )


def _num_patches(grid: tuple[int, ...], shape: tuple[int, int]) -> int:
    """Return the number of patches of this shape (y, x) that cover a grid."""
    depth, height, width = (1, 1, *grid)[-3:]
    return depth * cdiv(height, shape[0]) * cdiv(width, shape[1])
