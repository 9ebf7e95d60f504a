"""Memory between forward and backward, long axes in low precision, problems that are large or empty."""

import pytest
import torch

from lambdanets.ops import KERNELS, GlobalContext, MaskedContext, Problem, lambda_layer, plan


def kept_bytes(*args: torch.Tensor, **options: object) -> int:
    """Bytes that autograd keeps of one call, a storage counted once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lambda_layer(*args, **options)  # type: ignore[arg-type]
    return sum(storages.values())


def test_masked_content_keeps_no_weights_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambdanets.ops.content.MASKED_BLOCK", 2**14)
    n, m, k = 96, 101, 8
    q, keys = torch.randn(2, 3, n, k, requires_grad=True), torch.randn(2, m, k, 1, requires_grad=True)
    v = torch.randn(2, m, 5, 1, requires_grad=True)
    context = MaskedContext(torch.rand(n, m) < 0.5)
    pairs = 4 * 2 * n * m * k
    assert kept_bytes(q, keys, v, context=context, kernel="reference") > pairs
    assert kept_bytes(q, keys, v, context=context, kernel="attention") < pairs / 4


@pytest.mark.parametrize("kernel", ["reference", "attention", "conv"])
def test_the_gradient_of_a_long_table_is_summed_in_full_precision(kernel: str) -> None:
    n, context = 1200, GlobalContext((1200,))
    q, k, v = torch.rand(1, 1, n, 2), torch.rand(1, n, 2, 1), torch.rand(1, n, 2, 1)
    e = torch.rand(2 * n - 1, 2, 1)
    gradients = {}
    for dtype, name in ((torch.float64, "reference"), (torch.bfloat16, kernel)):
        table = e.to(dtype).requires_grad_()
        # Numbers of one sign, so that a sum in low precision stands still.
        y = lambda_layer(q.to(dtype), k.to(dtype), v.to(dtype), table, context=context, kernel=name)
        gradients[dtype] = torch.autograd.grad(y.sum(), table)[0].double()
    exact = gradients[torch.float64]
    assert (gradients[torch.bfloat16] - exact).norm() / exact.norm() < 0.01


def test_a_problem_too_large_for_one_kernel_goes_to_another() -> None:
    chosen = plan(Problem(grid=(128, 128), dim_v=16, train=True))
    by_name = {row.kernel: row for row in chosen.rows}
    assert by_name["attention"].verdict == "too large"
    assert "GiB" in by_name["attention"].reason
    assert chosen.kernel == "conv"


def test_where_all_are_too_large_the_leanest_is_chosen() -> None:
    chosen = plan(Problem(grid=(100_000,), dim_v=512, batch=64, train=True))
    peaks = {row.kernel: row.cost.peak_bytes for row in chosen.rows if row.cost is not None}
    assert min(peaks.values()) > 16 * 2**30
    assert chosen.kernel == min(peaks, key=lambda name: peaks[name])


def test_a_further_kernel_is_planned_without_further_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Instant:
        NAME = "instant"
        apply = staticmethod(KERNELS["reference"].apply)
        unsupported = staticmethod(KERNELS["reference"].unsupported)

        @staticmethod
        def rate(problem: Problem) -> float:
            return 1e18

        @staticmethod
        def cost(problem: Problem) -> object:
            return KERNELS["attention"].cost(problem)

    monkeypatch.setitem(KERNELS, "instant", Instant())
    assert plan(Problem(grid=(7, 5))).kernel == "instant"
    q, k, v = torch.randn(1, 2, 35, 3), torch.randn(1, 35, 3, 1), torch.randn(1, 35, 5, 1)
    assert lambda_layer(q, k, v, context=GlobalContext((7, 5)), kernel="instant").shape == (1, 2, 35, 5)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_an_empty_batch_gives_an_empty_output(kernel: str) -> None:
    q, k, v, e = (
        torch.randn(0, 2, 15, 3),
        torch.randn(0, 15, 3, 1),
        torch.randn(0, 15, 5, 1),
        torch.randn(9, 5, 3, 1),
    )
    mask = torch.ones(0, 15, dtype=torch.bool)
    assert lambda_layer(q, k, v, e, context=GlobalContext((5, 3)), mask=mask, kernel=kernel).shape == (
        0,
        2,
        15,
        5,
    )
