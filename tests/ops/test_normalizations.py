"""Other normalisations of the keys (Table 12): the definition against loops, the kernels against it."""

import pytest
import torch

from cases import BY_NAME, CASES, Case
from closeness import assert_close, assert_close_by_name
from lambdanets.ops import GlobalContext, lambda_layer
from oracles import lambda_layer_loops

WITH_CONTENT = [case for case in CASES if case.content]
# A lone key over its norm is 1 or -1, its gradient zero but for rounding: nothing to compare.
SEVERAL_KEYS = [case for case in WITH_CONTENT if case.m > 1]
OTHERS = ["l2", "none"]


@pytest.mark.parametrize("normalize", OTHERS)
@pytest.mark.parametrize("case", WITH_CONTENT, ids=str)
def test_the_definition_equals_loops(case: Case, normalize: str) -> None:
    inputs = case.inputs()
    y = case.call(lambda_layer, inputs, kernel="reference", normalize=normalize)
    assert_close(y, case.call_oracle(lambda_layer_loops, inputs, normalize=normalize))


def results(case: Case, kernel: str, normalize: str) -> dict[str, torch.Tensor]:
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}
    y = case.call(lambda_layer, inputs, kernel=kernel, normalize=normalize)
    y.backward(case.upstream())
    return {"y": y, **{name: x.grad for name, x in inputs.items() if x.grad is not None}}


@pytest.mark.parametrize("normalize", OTHERS)
@pytest.mark.parametrize("case", SEVERAL_KEYS, ids=str)
def test_the_fast_form_has_the_outputs_and_gradients_of_the_definition(case: Case, normalize: str) -> None:
    assert_close_by_name(results(case, "auto", normalize), results(case, "reference", normalize))


@pytest.mark.parametrize("normalize", OTHERS)
@pytest.mark.parametrize("name", ["global-2d", "causal-padded", "masked-padded", "global-u4"])
def test_gradcheck(name: str, normalize: str) -> None:
    case = BY_NAME[name]
    inputs = {key: x.requires_grad_() for key, x in case.inputs().items()}

    def call(*values: torch.Tensor) -> torch.Tensor:
        return case.call(lambda_layer, dict(zip(inputs, values, strict=True)), normalize=normalize)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("causal", [False, True])
def test_keys_of_zero_have_finite_outputs_and_gradients(kernel: str, causal: bool) -> None:
    inputs = [torch.randn(2, 3, 5, 4), torch.zeros(2, 5, 4, 1), torch.randn(2, 5, 7, 1)]
    inputs = [x.double().requires_grad_() for x in inputs]
    y = lambda_layer(*inputs, context=GlobalContext(5, causal=causal), normalize="l2", kernel=kernel)
    y.sum().backward()
    assert (y == 0).all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


def test_in_half_precision_a_long_context_keeps_its_norm() -> None:
    m = 70_000  # the sum of squares is beyond float16
    k = torch.full((1, m, 1, 1), 2.0, dtype=torch.float16)
    q, v = torch.ones(1, 1, 1, 1, dtype=torch.float16), torch.ones(1, m, 1, 1, dtype=torch.float16)
    y = lambda_layer(q, k, v, context=GlobalContext(1), normalize="l2")
    assert float(y) == pytest.approx(m**0.5, rel=1e-3)
