"""The helpers of the tests are tested to fail: a comparison that cannot is worse than none."""

import pytest
import torch

from cases import CASES, Case
from closeness import DOUBLE, assert_close, assert_close_by_name, error
from oracles import cell, dense_embeddings, lambda_layer_einsum, lambda_layer_loops

EXACT = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def off_by(tensor: torch.Tensor, fraction: float) -> torch.Tensor:
    """Wrong by this fraction of its root mean square, as `error` measures it."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=tensor.dtype)
    return tensor + fraction * noise * (tensor.square().mean() / noise.square().mean()).sqrt()


def test_float64_is_close_within_the_rule_and_not_beyond() -> None:
    assert_close(off_by(EXACT, 0.9 * DOUBLE), EXACT)
    with pytest.raises(AssertionError, match=r"error 1\.1\d*e-10, allowed 1\.0\d*e-10"):
        assert_close(off_by(EXACT, 1.1 * DOUBLE), EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_may_be_twice_as_wrong_as_the_einsum(
    dtype: torch.dtype,
) -> None:
    unit = torch.finfo(dtype).eps
    plain = off_by(EXACT, 8 * unit).to(dtype)
    wrong = error(plain, EXACT)
    assert 7 * unit < wrong < 9 * unit
    assert_close(off_by(EXACT, 1.9 * wrong).to(dtype), EXACT, plain=plain)
    with pytest.raises(AssertionError, match="logits: error"):
        assert_close(off_by(EXACT, 2.2 * wrong + 2 * unit).to(dtype), EXACT, plain=plain, name="logits")


def test_low_precision_grants_two_units_when_the_einsum_is_exact() -> None:
    exact = torch.ones(1, dtype=torch.float64)
    plain = exact.float()
    unit = torch.finfo(torch.float32).eps
    assert_close(plain + 2 * unit, exact, plain=plain)
    with pytest.raises(AssertionError, match="allowed"):
        assert_close(plain + 3 * unit, exact, plain=plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_wrong_entry_or_two_swapped_ones_fail(dtype: torch.dtype) -> None:
    plain = EXACT.to(dtype)
    exact = plain.double()
    wrong = plain.clone()
    wrong[1, 2] = -wrong[1, 2]
    swapped = plain.clone()
    swapped[0, :2] = plain[0, :2].flip(0)
    for broken in (wrong, swapped, plain.roll(1, 1), 1.05 * plain):
        with pytest.raises(AssertionError, match="allowed"):
            assert_close(broken, exact, plain=plain)


@pytest.mark.parametrize("plain", [None, EXACT])
def test_low_precision_needs_the_einsum_of_the_same_precision(plain: torch.Tensor | None) -> None:
    with pytest.raises(AssertionError, match=r"needs the plain einsum in torch\.float32"):
        assert_close(EXACT.float(), EXACT, plain=plain)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_never_agree(value: float) -> None:
    wrong = EXACT.clone()
    wrong[0, 0] = value
    with pytest.raises(AssertionError, match="1 of 15 values are not finite"):
        assert_close(wrong, EXACT)
    with pytest.raises(AssertionError, match="expected values are not finite"):
        assert_close(wrong, wrong)


def test_a_truth_in_low_precision_or_of_another_shape_is_refused() -> None:
    with pytest.raises(AssertionError, match="truth must be float64"):
        assert_close(EXACT.float(), EXACT.float(), plain=EXACT.float())
    with pytest.raises(AssertionError, match=r"shape \(5, 3\) where \(3, 5\)"):
        assert_close(EXACT.T, EXACT)


def test_a_zero_truth_is_compared_absolutely() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    assert_close(zero + 0.5 * DOUBLE, zero)
    with pytest.raises(AssertionError, match="error"):
        assert_close(zero + 2 * DOUBLE, zero)


def test_by_name_reports_every_failure_and_every_missing_name() -> None:
    exact = {"q": EXACT, "k": EXACT, "v": EXACT}
    assert_close_by_name(exact, exact)
    with pytest.raises(AssertionError) as failed:
        assert_close_by_name({"q": off_by(EXACT, 1e-9), "k": EXACT, "v": -EXACT}, exact)
    lines = str(failed.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["q", "v"]
    with pytest.raises(AssertionError, match="expected"):
        assert_close_by_name({"q": EXACT}, exact)
    with pytest.raises(AssertionError, match="expected"):
        assert_close_by_name({}, {})


def test_empty_memory_is_poisoned(poisoned_memory: None) -> None:
    assert torch.empty(7).isnan().all()
    assert torch.empty_like(EXACT).isnan().all()
    assert EXACT.new_empty(2, 3).isnan().all()


def test_case_names_are_unique_and_cover_every_option() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for option in ("context_grid", "scope", "dilation", "causal", "dense", "masked", "padded"):
        assert any(getattr(case, option) for case in CASES), option
    for option in ("content", "position"):
        assert not all(getattr(case, option) for case in CASES), option
    assert {len(case.grid) for case in CASES} == {1, 2, 3}
    assert any(case.dim_u > 1 for case in CASES)


def test_padding_and_visibility_hide_something_and_leave_something() -> None:
    for case in CASES:
        for hidden in (case.mask(), case.visible()):
            if hidden is not None and hidden.numel() > 2:
                assert hidden.any(), case
                assert not hidden.all(), case


def test_cells_are_row_major() -> None:
    assert [cell(i, (2, 3)) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_loops_on_numbers_one_can_check_by_hand() -> None:
    """Two elements, one of each depth: keys of equal size weigh 1/2; the table holds offsets -1, 0, 1."""
    q = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    k = torch.zeros(1, 2, 1, 1)
    v = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    e = torch.tensor([100.0, 200.0, 300.0]).view(3, 1, 1)
    # content 15; query 0 sees itself at offset 0, the other at 1; query 1 the other at -1, itself at 0
    first = 15 + 200 * 10 + 300 * 20
    second = 15 + 100 * 10 + 200 * 20
    y = lambda_layer_loops(q, k, v, e, grid=(2,))
    assert y.flatten().tolist() == pytest.approx([1 * first, 2 * second])
    # an even scope of two holds offsets -1 and 0
    y = lambda_layer_loops(q, k, v, e[:2], grid=(2,), scope=(2,))
    assert y.flatten().tolist() == pytest.approx([15 + 200 * 10, 2 * (15 + 100 * 10 + 200 * 20)])
    # causal: query 0 sees itself alone
    y = lambda_layer_loops(q, k, v, e, grid=(2,), causal=True)
    assert y.flatten().tolist() == pytest.approx([10 + 200 * 10, 2 * second])
    # the first element is padding: query 0 sees the other alone, query 1 itself
    y = lambda_layer_loops(q, k, v, e, grid=(2,), mask=torch.tensor([[False, True]]))
    assert y.flatten().tolist() == pytest.approx([20 + 300 * 20, 2 * (20 + 200 * 20)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_einsum_equals_loops(case: Case) -> None:
    inputs = case.inputs()
    assert_close(case.call_oracle(lambda_layer_einsum, inputs), case.call_oracle(lambda_layer_loops, inputs))


def test_dense_embeddings_depend_on_the_offset_alone() -> None:
    table = torch.randn(5, 9, 3, 2)
    dense = dense_embeddings(table, grid=(3, 5)).view(3, 5, 3, 5, 3, 2)
    torch.testing.assert_close(dense[:-1, :-1, :-1, :-1], dense[1:, 1:, 1:, 1:], rtol=0, atol=0)
