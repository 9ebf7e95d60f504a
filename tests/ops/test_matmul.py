"""Matrix products and the operator give the same results with every library and dtype of a CPU."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lambdanets.ops import GlobalContext, LocalContext, hardware, lambda_layer, matmul

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[False, True], ids=["slow half", "fast half"])
def fast_half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU without and one with instructions for half precision."""
    monkeypatch.setattr(hardware, "SLOW_CPU_DTYPES", frozenset() if request.param else frozenset(HALF))
    return request.param


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("gap", [0, 3])
def test_products_equal_loops(onednn: bool, gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(matmul, "ONEDNN", onednn)
    monkeypatch.setattr(matmul, "ONEDNN_MIN_MACS", 1)
    torch.manual_seed(0)
    a, b = torch.randn(3, 7, 11 + gap)[..., :11], torch.randn(3, 11, 5 + gap)[..., :5]
    for left, right in ((a, b), (a.mT.contiguous().mT, b.mT.contiguous().mT)):
        expected = torch.stack([(x.double() @ y.double()) for x, y in zip(left, right, strict=True)])
        torch.testing.assert_close(matmul.batched_matmul(left, right).double(), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(matmul.matmul(left[0], right[0]).double(), expected[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kernel", ["attention", "conv", "fft"])
def test_half_precision_is_served_on_every_cpu(dtype: torch.dtype, kernel: str, fast_half: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 35, 4), (2, 35, 4, 1), (2, 35, 5, 1), (9, 13, 4, 1))
    exact = [torch.randn(shape).to(dtype).double().requires_grad_() for shape in shapes]
    half = [x.detach().to(dtype).requires_grad_() for x in exact]
    g = torch.randn(2, 3, 35, 5).to(dtype)
    context = GlobalContext((5, 7))
    truth = lambda_layer(*exact, context=context, kernel="reference")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        y = lambda_layer(*half, context=context, kernel=kernel)
    assert y.dtype == dtype
    plain = lambda_layer(*half, context=context, kernel="reference").double()
    assert (y.double() - truth).norm() <= 2 * (plain - truth).norm() + 1e-3 * truth.norm()
    truth.backward(g.double())
    y.backward(g)
    for x, wanted in zip(half, exact, strict=True):
        assert x.grad is not None
        assert wanted.grad is not None
        assert x.grad.dtype == dtype
        assert (x.grad.double() - wanted.grad).norm() < 0.02 * wanted.grad.norm()
    converted = [event for event in record.events() if event.name == "aten::_to_copy"]
    assert converted or fast_half  # a slow CPU computes in another dtype


@pytest.mark.parametrize("grid", [(2, 14, 14), (2, 3, 2)])
def test_a_volume_s_table_has_its_gradient_in_bfloat16(grid: tuple[int, int, int]) -> None:
    """On some CPUs the library's own gradient of a bfloat16 convolution of volumes is garbage."""
    torch.manual_seed(0)
    n = grid[0] * grid[1] * grid[2]
    shapes = ((2, 2, n, 4), (2, n, 4, 1), (2, n, 8, 1), (3, 3, 3, 4, 1))
    tensors = [torch.randn(shape).bfloat16() for shape in shapes]
    g = torch.randn(2, 2, n, 8).bfloat16()
    found = []
    for dtype, kernel in ((torch.float64, "reference"), (torch.bfloat16, "conv")):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in tensors]
        lambda_layer(*leaves, context=LocalContext(grid, 3), kernel=kernel).backward(g.to(dtype))
        assert leaves[3].grad is not None
        found.append(leaves[3].grad.double())
    assert (found[1] - found[0]).norm() < 0.03 * found[0].norm()
