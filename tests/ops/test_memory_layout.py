"""Outputs and gradients take over the memory layout of the queries, with every kernel."""

import pytest
import torch
from torch import Tensor

from lambdanets.ops import GlobalContext, lambda_layer, matmul
from lambdanets.ops.memory_layout import as_rows, from_rows, memory_layout_of, new_output

LAYOUTS = {"hnv": (0, 1, 2, 3), "hvn": (0, 1, 3, 2), "nhv": (0, 2, 1, 3)}


def laid_out(x: Tensor, memory_layout: str) -> Tensor:
    """Return the same tensor [b, h, n, c] in a memory layout."""
    axes = LAYOUTS[memory_layout]
    return x.permute(axes).contiguous().permute(axes)  # each is its own inverse


@pytest.mark.parametrize("memory_layout", LAYOUTS)
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("kernel", ["auto", "reference", "conv", "attention", "fft"])
def test_memory_layouts_give_the_same_results(memory_layout: str, content: bool, kernel: str) -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 35, 4), (2, 35, 4, 1), (2, 35, 5, 1), (9, 13, 4, 1))
    q, k, v, e = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    g = torch.randn(2, 3, 35, 5, dtype=torch.float64)
    found = []
    for arranged in (q, laid_out(q, memory_layout)):
        leaves = [x.clone().requires_grad_() for x in (arranged, k, v, e)]
        assert leaves[0].stride() == arranged.stride()
        y = lambda_layer(*leaves, context=GlobalContext((5, 7)), content=content, kernel=kernel)
        y.backward(g)
        found.append((y.detach(), *(x.grad for x in leaves if x.grad is not None)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if kernel != "reference":
        assert found[1][0].stride() == new_output(q, 5, memory_layout).stride()
        assert found[1][1].stride() == laid_out(q, memory_layout).stride()


@pytest.mark.parametrize("memory_layout", LAYOUTS)
def test_rows_are_views_and_have_an_inverse(memory_layout: str) -> None:
    q = laid_out(torch.randn(2, 3, 35, 4), memory_layout)
    assert memory_layout_of(q) == memory_layout
    rows = as_rows(q, memory_layout)
    assert rows.is_contiguous()
    assert rows.data_ptr() == q.data_ptr()
    assert torch.equal(from_rows(rows, 3, memory_layout), q)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 1), (1, 3, 1, 4), (2, 3, 1, 1), (0, 2, 3, 4)])
def test_axes_of_length_one_have_some_order(shape: tuple[int, ...]) -> None:
    q = torch.randn(shape)
    memory_layout = memory_layout_of(q)
    assert torch.equal(from_rows(as_rows(q, memory_layout), q.shape[1], memory_layout), q)


@pytest.mark.parametrize("kernel", ["attention", "fft"])
def test_products_by_example_give_the_same_numbers(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs where each example of a product is a call of oneDNN."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    torch.manual_seed(0)
    shapes = ((2, 3, 35, 4), (2, 35, 4, 1), (2, 35, 5, 1), (9, 13, 4, 1))
    exact = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    g = torch.randn(2, 3, 35, 5, dtype=torch.float64)
    monkeypatch.setattr(matmul, "ONEDNN", True)
    monkeypatch.setattr(matmul, "ONEDNN_MIN_MACS", 1)
    results = []
    for dtype, name in ((torch.float64, "reference"), (torch.float32, kernel)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in exact]
        y = lambda_layer(*leaves, context=GlobalContext((5, 7)), kernel=name)
        y.backward(g.to(dtype))
        results.append((y.detach(), *(x.grad for x in leaves)))
    for expected, got in zip(*results, strict=True):
        assert (got.double() - expected).norm() < 1e-5 * expected.norm()
