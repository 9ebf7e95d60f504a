"""Analytic gradients against finite differences, in float64, on tiny problems."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, Case
from lambdanets.ops import KERNELS, Problem, lambda_layer

TINY = {"batch": 2, "num_heads": 1, "dim_k": 2, "dim_v": 2}
CASES = [
    replace(BY_NAME["global-1d"], grid=(3,), **TINY),
    replace(BY_NAME["global-cross-2d"], grid=(1, 2), context_grid=(2, 1), **TINY),
    replace(BY_NAME["global-padded-u4"], grid=(3,), **TINY | {"dim_u": 2}),
    replace(BY_NAME["global-dense-2d"], grid=(1, 2), **TINY),
    replace(BY_NAME["global-position-only"], grid=(2, 2), **TINY),
    replace(BY_NAME["local-1d-even"], grid=(5,), scope=(2,), **TINY),
    replace(BY_NAME["local-2d"], grid=(2, 3), scope=(3, 2), **TINY),
    replace(BY_NAME["local-dilated-1d"], grid=(5,), **TINY),
    replace(BY_NAME["causal-padded"], grid=(4,), **TINY),
    replace(BY_NAME["causal-local-u4"], grid=(3,), scope=(3,), **TINY | {"dim_u": 2}),
    replace(BY_NAME["masked-padded"], grid=(3,), **TINY),
]


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case, name: str) -> None:
    inputs = case.inputs()
    problem = Problem.of(
        inputs["q"], inputs["k"], inputs["v"], inputs["e"], case.context(), case.content, True
    )
    if KERNELS[name].unsupported(problem):
        return

    def function(*values: Tensor) -> Tensor:
        return case.call(lambda_layer, dict(zip(inputs, values, strict=True)), kernel=name)

    leaves = tuple(x.requires_grad_() for x in inputs.values())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", ["global-1d", "causal-padded"])
def test_second_gradients_of_the_definition(name: str) -> None:
    case = replace(BY_NAME[name], grid=(3,), **TINY | {"batch": 1})
    inputs = case.inputs()

    def function(*values: Tensor) -> Tensor:
        return case.call(lambda_layer, dict(zip(inputs, values, strict=True)), kernel="reference")

    assert torch.autograd.gradgradcheck(function, tuple(x.requires_grad_() for x in inputs.values()))
