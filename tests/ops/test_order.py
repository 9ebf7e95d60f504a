"""The output's axes lie in memory as those of the queries do, whatever kernel runs, and so do gradients."""

import pytest
import torch
from torch import Tensor

from lambdanets.ops import GlobalContext, lambda_layer, products
from lambdanets.ops.order import as_rows, from_rows, new_output, order_of

LAYOUTS = {"hnv": (0, 1, 2, 3), "hvn": (0, 1, 3, 2), "nhv": (0, 2, 1, 3)}


def laid_out(x: Tensor, order: str) -> Tensor:
    """The same tensor b h n c with its axes in memory in an order."""
    axes = LAYOUTS[order]
    return x.permute(axes).contiguous().permute(axes)  # each is its own inverse


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("kernel", ["auto", "reference", "conv", "attention", "fft"])
def test_orders_give_the_same_numbers(order: str, content: bool, kernel: str) -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 35, 4), (2, 35, 4, 1), (2, 35, 5, 1), (9, 13, 4, 1))
    q, k, v, e = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    g = torch.randn(2, 3, 35, 5, dtype=torch.float64)
    found = []
    for arranged in (q, laid_out(q, order)):
        leaves = [x.clone().requires_grad_() for x in (arranged, k, v, e)]
        assert leaves[0].stride() == arranged.stride()
        y = lambda_layer(*leaves, context=GlobalContext((5, 7)), content=content, kernel=kernel)
        y.backward(g)
        found.append((y.detach(), *(x.grad for x in leaves if x.grad is not None)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if kernel != "reference":
        assert found[1][0].stride() == new_output(q, 5, order).stride()
        assert found[1][1].stride() == laid_out(q, order).stride()


@pytest.mark.parametrize("order", LAYOUTS)
def test_rows_are_views_and_have_an_inverse(order: str) -> None:
    q = laid_out(torch.randn(2, 3, 35, 4), order)
    assert order_of(q) == order
    rows = as_rows(q, order)
    assert rows.is_contiguous()
    assert rows.data_ptr() == q.data_ptr()
    assert torch.equal(from_rows(rows, 3, order), q)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 1), (1, 3, 1, 4), (2, 3, 1, 1), (0, 2, 3, 4)])
def test_axes_of_length_one_have_some_order(shape: tuple[int, ...]) -> None:
    q = torch.randn(shape)
    order = order_of(q)
    assert torch.equal(from_rows(as_rows(q, order), q.shape[1], order), q)


@pytest.mark.parametrize("kernel", ["attention", "fft"])
def test_products_by_example_give_the_same_numbers(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors where each example of a product is a call to oneDNN."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    torch.manual_seed(0)
    shapes = ((2, 3, 35, 4), (2, 35, 4, 1), (2, 35, 5, 1), (9, 13, 4, 1))
    exact = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    g = torch.randn(2, 3, 35, 5, dtype=torch.float64)
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "LARGE", 1)
    results = []
    for dtype, name in ((torch.float64, "reference"), (torch.float32, kernel)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in exact]
        y = lambda_layer(*leaves, context=GlobalContext((5, 7)), kernel=name)
        y.backward(g.to(dtype))
        results.append((y.detach(), *(x.grad for x in leaves)))
    for expected, got in zip(*results, strict=True):
        assert (got.double() - expected).norm() < 1e-5 * expected.norm()
