"""The Triton kernels in Triton's interpreter: every tile, seams, 64-bit offsets, unusual strides.

`test_triton.py` runs these, and the tests of all kernels for kernel "triton", in processes of their own:
TRITON_INTERPRET has to be set before Triton is imported. As a pytest plugin it also fixes the interpreter.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cases import BY_NAME, CASES, Case
from closeness import assert_close_by_name
from lambdanets.ops import Problem, lambda_layer, reference
from lambdanets.ops.kernels import triton
from lambdanets.ops.kernels.triton import launch
from lambdanets.ops.kernels.triton.tiling import Tile, candidate_tiles, table_part_shape
from lambdanets.ops.position import encode

SEAMS = [  # more than a tile on every axis that has tiles
    Case(name="seams-2d", grid=(5, 9), scope=(4, 5), batch=1, dim_v=67, num_heads=3, dim_k=17),
    Case(name="seams-global", grid=(19,), context_grid=(33,), batch=1, dim_v=3, num_heads=1, dim_k=3),
    Case(name="seams-batch", grid=(3, 2), batch=9, dim_v=67, num_heads=2, dim_k=2),
    Case(name="seams-heads", grid=(5,), batch=3, dim_v=5, num_heads=19, dim_k=33),
    Case(name="seams-depth", grid=(2, 3, 5), scope=(2, 3, 3), dim_u=2, batch=2, dim_v=3, num_heads=2),
]
LAYOUTS = [BY_NAME[name] for name in ("global-2d", "local-2d-rectangle", "local-u4-1d", "causal", "local-3d")]


@pytest.fixture(autouse=True, scope="session")
def _bfloat16_products() -> Iterator[None]:
    """Convert bfloat16 before products: the interpreter multiplies its bits (Triton's issue 11584)."""
    original = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return original(self, widened(a), widened(b), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.fixture(autouse=True, scope="session")
def _language_patched_once_per_launch() -> Iterator[None]:
    """Skip the patches of Triton's language at calls inside a kernel: a third of the interpreter's time."""
    original = interpreter._patch_lang

    def patch_unless_patched(function: Callable[..., Any]) -> Any:
        if tl.core.is_builtin(tl.dot) or tl.core.is_builtin(tl.core.dot):
            return original(function)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_unless_patched)
        yield


def set_overflow_checks(patch: pytest.MonkeyPatch, enabled: bool) -> None:
    """Set whether the interpreter raises where 32-bit arithmetic overflows."""
    builder = interpreter.interpreter_builder
    options = replace(builder.options, sanitize_overflow=enabled, debug=enabled)
    patch.setattr(builder, "options", options)


@pytest.fixture(autouse=True, scope="session")
def _no_overflow_checks() -> Iterator[None]:
    """Disable overflow checks, half of the time: without `debug` the interpreter discards what they find."""
    with pytest.MonkeyPatch.context() as patch:
        set_overflow_checks(patch, False)
        yield


def problem_of(case: Case, dtype: torch.dtype = torch.float64) -> Problem:
    inputs = case.inputs(dtype)
    return Problem.of(*(inputs[name] for name in "qkve"), case.context(), False, False)


def by_tiles(
    case: Case, chosen: dict[str, Tile], order: Callable[[Tensor], Tensor] = lambda x: x
) -> dict[str, Tensor]:
    """Return the results that have a tile in `chosen`, from tensors with the strides of `order`."""
    x = {name: order(value) for name, value in (case.inputs() | {"g": case.upstream()}).items()}
    problem = problem_of(case)
    q, v, e, g = (x[name] for name in "qveg")
    like = {"output": g, "dq": q, "dv": v, "de": e}
    # The kernels write all of a result, but of the table's gradient only the entries that some pair reads.
    unwritten = dict.fromkeys(chosen, torch.nan) | {"de": 0.0}
    results = {name: order(torch.full_like(like[name], unwritten[name])) for name in chosen}
    calls = {
        "output": lambda y, tile: [launch.output_call(q, v, e, problem, y, tile)],
        "dq": lambda dq, tile: [launch.query_gradient_call(g, v, e, problem, dq, tile)],
        "dv": lambda dv, tile: [launch.value_gradient_call(g, q, e, problem, dv, tile)],
        "de": lambda de, tile: launch.table_gradient_calls(g, q, v, problem, de, tile),
    }
    for name, tile in chosen.items():
        for call in calls[name](results[name], tile):
            call.launch()
    return results


def by_definition(case: Case) -> dict[str, Tensor]:
    x, g = case.inputs(), case.upstream()
    problem, y = problem_of(case), torch.empty_like(g)
    reference.output(x["q"], x["v"], x["e"], problem, y)
    dq, dv, de = reference.gradients(g, x["q"], x["v"], x["e"], problem, (True, True, True))
    return {"output": y, "dq": dq, "dv": dv, "de": de}


def every_tile(problem: Problem) -> Iterator[dict[str, Tile]]:
    """Yield tiles for the results, so that each result has each of its candidates in any dtype once.

    Candidates that differ in warps and stages alone are the same to the interpreter.
    """
    half_precision = replace(problem, dtype=torch.bfloat16)
    tried = {}
    for name in ("output", "dq", "dv", "de"):
        both = [*candidate_tiles(problem, name), *candidate_tiles(half_precision, name)]
        tried[name] = list(dict.fromkeys(replace(tile, warps=4, stages=2) for tile in both))
    for i in range(max(map(len, tried.values()))):
        yield {name: tiles[i] for name, tiles in tried.items() if i < len(tiles)}


@pytest.mark.parametrize("case", SEAMS, ids=str)
def test_every_tile_gives_the_definition(case: Case) -> None:
    exact = by_definition(case)
    for chosen in every_tile(problem_of(case)):
        assert_close_by_name(by_tiles(case, chosen), {name: exact[name] for name in chosen})


def small(problem: Problem) -> dict[str, Tile]:
    """Return tiles so small that a small problem has several on every axis."""
    tile = Tile(examples=2, heads=2, queries=8, context=16, values=16)
    return {"output": tile, "dq": tile, "dv": tile, "de": replace(tile, context=8)}


def scattered(x: Tensor) -> Tensor:
    """Return the same values with gaps between them and the axes stored in reverse."""
    wide = x.permute(*reversed(range(x.ndim))).contiguous().repeat_interleave(2, 0)[::2]
    return wide.permute(*reversed(range(x.ndim)))


def far_apart(x: Tensor) -> Tensor:
    """Return the same values, with strides beyond 32 bits on the first axis longer than one.

    The system allocates only the few pages that are touched.
    """
    axis = next(i for i, size in enumerate(x.shape) if size > 1)
    steps = list(x.contiguous().stride())
    steps[axis] = 2**31 // (x.shape[axis] - 1) + 4096
    length = 1 + sum((size - 1) * step for size, step in zip(x.shape, steps, strict=True))
    buffer = torch.from_numpy(np.empty(length, x.numpy().dtype))  # torch.empty would be filled with NaN here
    return buffer.as_strided(x.shape, steps).copy_(x)


@pytest.mark.parametrize("order", [scattered, far_apart])
@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_any_order_in_memory(
    case: Case, order: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only far strides can overflow.
    set_overflow_checks(monkeypatch, order is far_apart)
    assert_close_by_name(by_tiles(case, small(problem_of(case)), order), by_definition(case))


def test_a_tables_gradient_is_summed_in_parts_of_the_batch() -> None:
    case = Case(name="parts", grid=(3, 2), batch=7, dim_v=3, num_heads=2, dim_k=2)
    chosen = small(problem_of(case))
    assert table_part_shape(problem_of(case), chosen["de"])[0] == 4
    assert_close_by_name(by_tiles(case, chosen), by_definition(case))


def test_a_gradient_that_is_not_needed_is_not_computed() -> None:
    case = BY_NAME["global-1d"]
    x = case.inputs()
    needs_grad = (False, True, False)
    found = triton.gradients(case.upstream(), x["q"], x["v"], x["e"], problem_of(case), needs_grad)
    assert [gradient is not None for gradient in found] == list(needs_grad)


def test_an_empty_batch() -> None:
    case = replace(BY_NAME["global-2d"], batch=0)
    x = {name: value.requires_grad_() for name, value in case.inputs().items()}
    y = case.call(lambda_layer, x, kernel="triton")
    assert y.shape == (0, case.num_heads, case.n, case.dim_v)
    gradients = torch.autograd.grad(y.sum(), [x[name] for name in "qve"])
    assert [g.shape for g in gradients] == [x[name].shape for name in "qve"]
    assert not gradients[2].any()


def test_an_expanded_upstream_gradient() -> None:
    """The gradient of `y.sum()` is one element in memory."""
    case = BY_NAME["local-2d-rectangle"]
    found, exact = (
        torch.autograd.grad(case.call(lambda_layer, x, kernel=kernel).sum(), [x[name] for name in "qve"])
        for kernel, x in (
            (kernel, {name: value.requires_grad_() for name, value in case.inputs().items()})
            for kernel in ("triton", "reference")
        )
    )
    assert_close_by_name(dict(zip("qve", found, strict=True)), dict(zip("qve", exact, strict=True)))


def test_gradients_to_second_order() -> None:
    case = Case(name="small", grid=(3,), scope=(2,), batch=1, num_heads=2, dim_k=2, dim_v=2)
    x = [case.inputs()[name].requires_grad_() for name in "qkve"]

    def call(*tensors: Tensor) -> Tensor:
        return case.call(lambda_layer, dict(zip("qkve", tensors, strict=True)), kernel="triton")

    assert torch.autograd.gradcheck(call, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


def test_the_custom_operator_passes_opcheck() -> None:
    """Fake tensors, functions without hidden state, the same gradients under a graph."""
    case = BY_NAME["local-2d-rectangle"]
    x = case.inputs()
    geometry = encode(problem_of(case))
    tensors = [x[name].requires_grad_() for name in "qve"]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    lambdas = torch.randn(case.batch, case.dim_k, case.dim_v, dtype=torch.float64, requires_grad=True)
    arguments = (*tensors, lambdas, geometry, "hnv", "triton", "triton")
    torch.library.opcheck(torch.ops.lambdanets.position_output, arguments, test_utils=checks)


def test_only_dense_embeddings_dilation_and_masks_are_refused() -> None:
    refused = set()
    for case in CASES:
        x = case.inputs()
        problem = Problem.of(x["q"], x["k"], x["v"], x.get("e"), case.context(), case.content, True)
        if triton.unsupported(problem):
            refused.add(case.name)
    dilated = {case.name for case in CASES if max(case.dilation or (1,)) > 1}
    unrelated = {case.name for case in CASES if case.position and (case.dense or case.masked)}
    assert refused == dilated | unrelated
