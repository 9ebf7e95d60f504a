"""The Triton programs against the definition, by Triton's interpreter.

`test_triton.py` runs these in a process of their own: TRITON_INTERPRET has to be set before Triton is
imported.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cases import BY_NAME, CASES, Case
from closeness import assert_close_by_name
from lambdanets.ops import Problem
from lambdanets.ops.kernels import reference
from lambdanets.ops.kernels.triton import by_position, lambda_first, skewed
from oracles import lambda_layer_einsum

PROGRAMS = {"skewed": skewed, "lambda first": lambda_first, "by position": by_position}
LARGE = 70  # elements: the interpreter takes many seconds for more
SEAMS = [  # more than a tile on every axis that has tiles
    Case(name="seams-2d", grid=(6, 17), scope=(4, 5), batch=1, dim_v=133, num_heads=5, dim_k=17),
    Case(name="seams-global", grid=(2, 19), context_grid=(3, 18), batch=1, dim_v=3, num_heads=1, dim_k=3),
    Case(name="seams-batch", grid=(3, 2), batch=9, dim_v=67, num_heads=2, dim_k=2),
]
RELATIVE = [case for case in CASES + SEAMS if case.position and not case.masked]


def problem_of(case: Case, dtype: torch.dtype = torch.float64) -> Problem:
    inputs = case.inputs(dtype)
    return Problem.of(*(inputs[name] for name in "qkve"), case.context(), False, True)


SERVED = [case for case in RELATIVE if not skewed.unsupported(problem_of(case))]
SMALL = [case for case in SERVED if max(case.n, case.m) < LARGE or case in SEAMS]
LOW = [BY_NAME[name] for name in ("global-2d", "local-2d-rectangle", "local-u4-1d", "causal")]


@pytest.fixture(autouse=True)
def _bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 (Triton's issue 11584); here, the numbers."""
    as_it_is = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return as_it_is(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def strided(x: Tensor) -> Tensor:
    """The same numbers with gaps between them and the axes stored in reverse."""
    wide = x.permute(*reversed(range(x.ndim))).contiguous().repeat_interleave(2, 0)[::2]
    return wide.permute(*reversed(range(x.ndim)))


def by_programs(case: Case, dtype: torch.dtype, *, scattered: bool = False) -> dict[str, Tensor]:
    inputs = {**case.inputs(dtype), "g": case.upstream(dtype)}
    q, v, e, g = (strided(inputs[name]) if scattered else inputs[name] for name in "qveg")
    problem = problem_of(case, dtype)
    results = {}
    for name, program in PROGRAMS.items():
        results[name] = torch.full_like(g, torch.nan)
        program.output(q, v, e, problem, results[name])
    dq, dv, de = skewed.gradients(g, q, v, e, problem, (True, True, True))
    return {**results, "dq": dq, "dv": dv, "de": de.to(dtype)}


def by_definition(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results in float64 for inputs that were rounded to a type."""
    inputs = {name: x.double() for name, x in case.inputs(dtype).items()}
    q, v, e, g = inputs["q"], inputs["v"], inputs["e"], case.upstream(dtype).double()
    problem, y = problem_of(case), torch.empty_like(g)
    reference.output(q, v, e, problem, y)
    dq, dv, de = reference.gradients(g, q, v, e, problem, (True, True, True))
    return {**dict.fromkeys(PROGRAMS, y), "dq": dq, "dv": dv, "de": de}


def by_einsum(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = {name: x.requires_grad_(name != "k") for name, x in case.inputs(dtype).items()}
    y = lambda_layer_einsum(
        **inputs,
        grid=case.grid,
        context_grid=case.context_grid,
        scope=case.scope,
        causal=case.causal,
        content=False,
    )
    dq, dv, de = torch.autograd.grad(y, [inputs[name] for name in "qve"], case.upstream(dtype))
    return {**dict.fromkeys(PROGRAMS, y.detach()), "dq": dq, "dv": dv, "de": de}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_outputs_and_gradients_equal_the_definition(case: Case) -> None:
    assert_close_by_name(by_programs(case, torch.float64), by_definition(case, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LOW, ids=str)
def test_low_precision_is_at_most_twice_as_wrong_as_the_plain_einsum(case: Case, dtype: torch.dtype) -> None:
    assert_close_by_name(by_programs(case, dtype), by_definition(case, dtype), by_einsum(case, dtype))


@pytest.mark.parametrize("case", LOW, ids=str)
def test_inputs_need_not_be_contiguous(case: Case) -> None:
    found = by_programs(case, torch.float64, scattered=True)
    assert_close_by_name(found, by_definition(case, torch.float64))


def test_only_dense_embeddings_dilation_and_three_axes_are_refused() -> None:
    refused = {case.name for case in RELATIVE if case not in SERVED}
    expected = {
        case.name for case in RELATIVE if case.dense or len(case.grid) > 2 or max(case.dilation or (1,)) > 1
    }
    assert refused == expected


def test_a_gradient_that_is_not_wanted_is_not_formed() -> None:
    case = BY_NAME["global-1d"]
    x = case.inputs()
    wanted = (False, True, False)
    found = skewed.gradients(case.upstream(), x["q"], x["v"], x["e"], problem_of(case), wanted)
    assert [gradient is not None for gradient in found] == list(wanted)
