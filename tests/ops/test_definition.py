"""The definition (kernel "reference") against literal loops, on every case: values to 1e-10 in float64."""

import pytest
import torch

from cases import BY_NAME, CASES, Case
from closeness import assert_close
from lambdanets.ops import GlobalContext, LocalContext, MaskedContext, lambda_layer
from oracles import dense_embeddings, lambda_layer_loops


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_equals_loops(case: Case) -> None:
    inputs = case.inputs()
    y = case.call(lambda_layer, inputs, kernel="reference")
    assert y.shape == (case.batch, case.num_heads, case.n, case.dim_v)
    assert y.dtype == torch.float64
    assert_close(y, case.call_oracle(lambda_layer_loops, inputs))


@pytest.mark.parametrize("name", ["global-padded", "causal-padded", "masked-padded", "masked"])
def test_a_query_that_sees_nothing_gives_exactly_zero(name: str) -> None:
    case = BY_NAME[name]
    y = case.call(lambda_layer, case.inputs(), kernel="reference")
    if case.padded:
        assert (y[-1] == 0).all()
        assert (y[0] != 0).any()
    if case.causal:
        assert (y[0, :, 0] == 0).all()
    if case.masked:
        assert (y[:, :, -1] == 0).all()


@pytest.mark.parametrize("name", ["global-padded", "causal-padded", "masked-padded"])
def test_a_query_that_sees_nothing_has_finite_gradients(name: str) -> None:
    case = BY_NAME[name]
    inputs = {key: value.requires_grad_() for key, value in case.inputs().items()}
    case.call(lambda_layer, inputs, kernel="reference").backward(case.upstream())
    for key, value in inputs.items():
        assert value.grad is not None
        assert value.grad.isfinite().all(), key


def test_huge_keys_do_not_overflow() -> None:
    case = BY_NAME["global-2d"]
    inputs = case.inputs()
    inputs["k"] *= 1e4
    y = case.call(lambda_layer, inputs, kernel="reference")
    assert_close(y, case.call_oracle(lambda_layer_loops, inputs))


def test_content_only_takes_a_context_of_any_length() -> None:
    q, k, v = torch.randn(2, 3, 6, 5), torch.randn(2, 13, 5, 1), torch.randn(2, 13, 7, 1)
    q, k, v = q.double(), k.double(), v.double()
    for context in (GlobalContext((2, 3)), GlobalContext(6)):
        assert_close(lambda_layer(q, k, v, context=context, kernel="reference"), lambda_layer_loops(q, k, v))


@pytest.mark.parametrize("name", ["global-1d", "global-2d", "global-3d", "global-cross-2d", "global-u4"])
def test_a_table_equals_the_dense_embeddings_it_stands_for(name: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs()
    dense = dense_embeddings(inputs["e"], grid=case.grid, context_grid=case.context_grid)
    exact = case.call(lambda_layer, inputs, kernel="reference")
    assert_close(case.call(lambda_layer, inputs | {"e": dense}, kernel="reference"), exact)


@pytest.mark.parametrize("name", ["local-2d-rectangle", "local-dilated-2d", "local-cross-2d"])
def test_a_local_table_equals_a_dense_one_that_is_zero_outside_the_scope(name: str) -> None:
    case = BY_NAME[name]
    inputs = case.inputs()
    dense = dense_embeddings(
        inputs["e"], grid=case.grid, context_grid=case.context_grid, scope=case.scope, dilation=case.dilation
    )
    y = lambda_layer(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        dense,
        context=GlobalContext(case.grid, context_grid=case.context_grid),
        kernel="reference",
    )
    assert_close(y, case.call(lambda_layer, inputs, kernel="reference"))


def test_causal_is_a_masked_context_with_a_triangle() -> None:
    case = BY_NAME["causal-dense"]
    inputs = case.inputs()
    triangle = torch.ones(case.n, case.m, dtype=torch.bool).tril()
    masked = lambda_layer(**inputs, context=MaskedContext(triangle), kernel="reference")
    assert_close(masked, case.call(lambda_layer, inputs, kernel="reference"))


def test_an_int_is_a_grid_of_one_axis() -> None:
    case = BY_NAME["local-dilated-even"]
    inputs = case.inputs()
    y = lambda_layer(**inputs, context=LocalContext(13, 4, dilation=3), kernel="reference")
    assert_close(y, case.call(lambda_layer, inputs, kernel="reference"))
    assert GlobalContext(5) == GlobalContext((5,))
    assert LocalContext(5, 3, dilation=2) == LocalContext((5,), (3,), dilation=(2,))
    assert LocalContext((5, 7), 3) == LocalContext((5, 7), (3, 3), dilation=1)


@pytest.mark.parametrize("name", ["global-2d", "local-2d"])
def test_embeddings_never_enter_the_softmax(name: str) -> None:
    """Three times the table is three times the position part, and the same content part."""
    case = BY_NAME[name]
    inputs = case.inputs()
    content = lambda_layer(**(inputs | {"e": None}), context=case.context(), kernel="reference")
    once = lambda_layer(**inputs, context=case.context(), kernel="reference") - content
    thrice = (
        lambda_layer(**(inputs | {"e": 3 * inputs["e"]}), context=case.context(), kernel="reference")
        - content
    )
    assert_close(thrice, 3 * once)
