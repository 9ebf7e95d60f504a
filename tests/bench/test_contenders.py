"""Peers with our weights give our results; who cannot take part says why."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lambdanets.bench import CONTENDERS, Case, CheckError, Contender
from lambdanets.bench.checking import check, make_inputs, make_layer, prepare
from lambdanets.bench.contenders import NOT_INSTALLED, find_contender

SQUARE = Case(name="square", grid=(7, 7), batch=3, dim=20)
LOCAL = Case(name="local", grid=(7, 9), scope=(5, 5), batch=3, dim=20)
LONG_SCOPE = Case(name="long scope", grid=(5, 4), scope=(13, 13), batch=2, dim=20)


def peer(name: str) -> Contender:
    if name == "lucidrains":
        pytest.importorskip("lambda_networks", reason="the peer is an optional dependency")
    return find_contender(name, "peer")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("timm", SQUARE),
        ("timm", replace(SQUARE, grid=(4, 7))),
        ("timm", LOCAL),
        ("timm", LONG_SCOPE),
        ("lucidrains", SQUARE),
        ("lucidrains", replace(SQUARE, dim_u=3)),
        ("lucidrains", LOCAL),
        ("lucidrains", replace(LOCAL, dim_u=3)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_peer_with_our_weights_is_our_layer(name: str, case: Case) -> None:
    contender = peer(name)
    assert contender.unsupported(case, torch.float32, "cpu") == ""
    error = check(case, contender)
    assert error is not None
    assert 0 < error < 1e-12


@pytest.mark.parametrize(
    "case",
    [
        SQUARE,
        replace(LOCAL, dim_u=2),
        Case(name="line", grid=(29,), batch=2, dim=20),
        Case(name="volume", grid=(3, 4, 5), scope=(2, 3, 4), batch=2, dim=20),
    ],
    ids=lambda case: case.name,
)
def test_every_kernel_is_compared_with_the_definition(case: Case) -> None:
    ours = [each for each in CONTENDERS if each.role in ("layer", "kernel")]
    able = {
        (each.name, each.role) for each in ours if not each.unsupported(case.crop(), torch.float64, "cpu")
    }
    found = {(each.name, each.role): check(case, each) for each in ours}
    errors = {key: error for key, error in found.items() if error is not None}
    assert set(errors) == able
    assert errors["reference", "kernel"] == 0
    assert max(errors.values()) < 1e-11


def _skewed(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.positions.copy_(ours.positions.flip(0))  # type: ignore[operator,union-attr]


def test_a_table_read_backwards_is_found() -> None:
    broken = replace(
        find_contender("lambdanets", "layer"), name="broken", role="peer", copy_weights_from=_skewed
    )
    with pytest.raises(CheckError, match=r"broken is wrong on square .*float64"):
        check(SQUARE, broken)


def test_who_refuses_float64_is_compared_in_the_type_of_the_bench() -> None:
    def refuses(case: Case, dtype: torch.dtype, device: str) -> str:
        return "" if dtype == torch.float32 else "cannot serve: float32 alone"

    single = replace(find_contender("fft", "kernel"), unsupported=refuses)
    error = check(SQUARE, single)
    assert error is not None
    assert 1e-9 < error < 1e-5
    assert check(SQUARE, single, dtype=torch.bfloat16) is None


@pytest.mark.parametrize("name", ["timm", "lucidrains"])
def test_gradients_of_peers_are_right_at_batch_one(name: str) -> None:
    """Where views of one example mislead PyTorch's batch norm: against finite differences."""
    case = replace(SQUARE, batch=1)
    contender = peer(name)
    module = contender.build(case).double()
    assert contender.copy_weights_from is not None
    contender.copy_weights_from(make_layer(case, "reference", torch.float64, "cpu"), module)
    x, upstream = make_inputs(case, torch.float64, "cpu")
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    gradient = prepare(module, "train", x, upstream)().gradients["input"]
    with torch.no_grad():
        change = ((module(x + step) - module(x - step)) * upstream).sum() / 2
    torch.testing.assert_close((gradient * step).sum(), change, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "case", "sentence"),
    [
        ("lucidrains", replace(SQUARE, grid=(4, 7)), "square grids"),
        ("lucidrains", Case(name="x", grid=(9,)), "two axes"),
        ("lucidrains", replace(LOCAL, scope=(4, 4)), "odd"),
        ("timm", replace(LOCAL, scope=(3, 5)), "square"),
        ("timm", Case(name="x", grid=(3, 3, 3)), "two axes"),
        ("timm", replace(SQUARE, dim_u=2), "u is 1"),
    ],
)
def test_who_cannot_take_part_says_why(name: str, case: Case, sentence: str) -> None:
    reason = peer(name).unsupported(case, torch.float32, "cpu")
    assert reason.startswith("cannot take part: ")
    assert sentence in reason


def test_an_absent_peer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_contender("lucidrains", "peer").unsupported(SQUARE, torch.float32, "cpu") == NOT_INSTALLED


@pytest.mark.parametrize("name", ["SDPA", "3x3 conv"])
@pytest.mark.parametrize("grid", [(29,), (5, 6), (3, 4, 5)])
def test_the_others_give_an_output_of_the_same_shape(name: str, grid: tuple[int, ...]) -> None:
    case = Case(name="x", grid=grid, batch=2, dim=20)
    x, upstream = make_inputs(case, torch.float32, "cpu")
    result = prepare(find_contender(name, "other").build(case), "train", x, upstream)()
    assert result.output.shape == result.gradients["input"].shape == case.shape


def test_attention_is_softmax_attention() -> None:
    case = Case(name="x", grid=(3, 5), batch=2, dim=12, num_heads=3)
    module = find_contender("SDPA", "other").build(case)
    x, _ = make_inputs(case, torch.float32, "cpu")
    q, k, v = module.to_qkv(x).flatten(2).unflatten(1, (3, 3, 4)).unbind(1)  # type: ignore[operator]
    weights = torch.einsum("bhdn,bhdm->bhnm", q, k).div(4**0.5).softmax(-1)
    expected = torch.einsum("bhnm,bhdm->bhdn", weights, v).flatten(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(module(x), expected)
