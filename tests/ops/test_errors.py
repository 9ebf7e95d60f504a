"""Every wrong argument raises a ValueError that names it and shows the shape that was given."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cases import BY_NAME
from lambdanets.ops import GlobalContext, LocalContext, MaskedContext, functional, lambda_layer


def arguments(name: str) -> dict[str, Any]:
    """A correct call: b=2 h=3 n=m=15 k=5 v=7 u=1 for the cases on a 3 x 5 grid."""
    case = BY_NAME[name]
    return case.inputs() | {"context": case.context(), "mask": case.mask(), "content": case.content}


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError) as failure:
        call()
    message = str(failure.value)
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), f"{word!r} is not in: {message}"


def test_a_normalization_that_is_not_known_or_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalize 'softmx'; did you mean softmax"):
        lambda_layer(**arguments("global-2d"), normalize="softmx")
    with pytest.raises(ValueError, match="normalize='l2' applies to the content part, which content=False"):
        lambda_layer(**arguments("global-position-only"), normalize="l2")


ones = torch.ones
WRONG_TENSORS = [
    ("global-2d", {"q": ones(2, 15, 5)}, ["q", "b h n k", "2, 15, 5"]),
    ("global-2d", {"q": ones(2, 3, 14, 5)}, ["q", "14", "15"]),
    ("global-2d", {"q": ones(2, 3, 15, 6)}, ["k"]),
    ("global-2d", {"q": ones(1, 3, 15, 5)}, ["b"]),
    ("global-2d", {"k": ones(2, 15, 5)}, ["k", "b m k u", "2, 15, 5"]),
    ("global-2d", {"k": ones(2, 15, 6, 1)}, ["k", "2, 15, 6, 1"]),
    ("global-2d", {"k": ones(1, 15, 5, 1)}, ["k", "1, 15, 5, 1"]),
    ("global-2d", {"k": ones(2, 14, 5, 1)}, ["m", "14", "15"]),
    ("global-2d", {"v": ones(2, 15, 7)}, ["v", "b m v u", "2, 15, 7"]),
    ("global-2d", {"v": ones(3, 15, 7, 1)}, ["v", "3, 15, 7, 1"]),
    ("global-2d", {"v": ones(2, 14, 7, 1)}, ["v", "2, 14, 7, 1"]),
    ("global-2d", {"v": ones(2, 15, 7, 2)}, ["v", "2, 15, 7, 2"]),
    ("global-2d", {"k": ones(2, 14, 5, 1), "v": ones(2, 14, 7, 1)}, ["14", "15", "context"]),
    ("global-2d", {"e": ones(5, 8, 5, 1)}, ["e", "5, 9, 5, 1", "5, 8, 5, 1"]),
    ("global-2d", {"e": ones(5, 9, 6, 1)}, ["e", "5, 9, 6, 1"]),
    ("global-2d", {"e": ones(5, 9, 5, 2)}, ["e", "5, 9, 5, 2"]),
    ("global-2d", {"e": ones(5, 9, 5)}, ["e", "5, 9, 5"]),
    ("global-dense-2d", {"e": ones(15, 14, 5, 2)}, ["e", "15, 14, 5, 2"]),
    ("global-1d", {"e": ones(11, 5, 1)}, ["e", "21, 5, 1", "11, 5, 1"]),
    ("local-2d", {"e": ones(3, 4, 5, 1)}, ["e", "3, 3, 5, 1", "3, 4, 5, 1"]),
    ("local-2d", {"e": ones(9, 13, 5, 1)}, ["e", "3, 3, 5, 1"]),
    ("causal-local-odd", {"e": ones(21, 5, 1)}, ["e", "5, 5, 1"]),
    ("masked", {"e": ones(21, 5, 1)}, ["e", "21, 5, 1"]),
    ("masked", {"e": ones(11, 10, 5, 1)}, ["e", "11, 10, 5, 1"]),
    ("masked", {"k": ones(2, 10, 5, 1), "v": ones(2, 10, 7, 1)}, ["10", "11"]),
    ("masked", {"q": ones(2, 3, 10, 5)}, ["q", "10", "11"]),
    ("global-padded", {"mask": ones(2, 14, dtype=torch.bool)}, ["mask", "2, 14"]),
    ("global-padded", {"mask": ones(1, 15, dtype=torch.bool)}, ["mask", "1, 15"]),
    ("global-padded", {"mask": ones(15, dtype=torch.bool)}, ["mask"]),
    ("global-padded", {"mask": ones(2, 3, 15, dtype=torch.bool)}, ["mask"]),
    ("global-padded", {"mask": ones(2, 15)}, ["mask", "bool", "torch.float32"]),
    ("global-padded", {"mask": ones(2, 15, dtype=torch.bool, device="meta")}, ["mask", "meta"]),
]


@pytest.mark.parametrize(
    ("name", "wrong", "words"), WRONG_TENSORS, ids=lambda x: None if isinstance(x, list) else str(x)[:40]
)
def test_wrong_tensors(name: str, wrong: dict[str, torch.Tensor], words: list[str]) -> None:
    wrong = {key: x if key == "mask" else x.double() for key, x in wrong.items()}
    refused(lambda: lambda_layer(**(arguments(name) | wrong)), *words)


AFTER_A_CALL: dict[str, dict[str, Any]] = {
    "dtype": {name: ones(shape) for name, shape in BY_NAME["global-2d"].shapes.items() if name != "q"},
    "integers": {"k": ones(2, 15, 5, 1, dtype=torch.int64)},
    "device": {"v": ones(2, 15, 7, 1, dtype=torch.float64, device="meta")},
    "shape": {"v": ones(2, 15, 7, 2, dtype=torch.float64)},
    "no tensor": {"k": 3},
    "no keys": {"k": None},
    "context": {"context": GlobalContext((5, 4))},
    "no context": {"context": [3, 5]},
    "mask's dtype": {"mask": ones(2, 15)},
    "mask's shape": {"mask": ones(2, 14, dtype=torch.bool)},
    "mask's device": {"mask": ones(2, 15, dtype=torch.bool, device="meta")},
    "normalize": {"normalize": "softmx"},
    "normalize without a hash": {"normalize": ["softmax"]},
    "normalize without content": {"normalize": "l2", "content": False},
    "nothing to compute": {"e": None, "content": False},
    "kernel": {"kernel": "cov"},
    "kernel that does not serve": {"kernel": "triton"},
}


@pytest.mark.parametrize("wrong", AFTER_A_CALL.values(), ids=AFTER_A_CALL)
def test_the_same_error_after_a_correct_call(wrong: dict[str, Any]) -> None:
    """Arguments are checked once for each kind of call: a call that differs in anything is another kind."""
    messages = []
    for correct_first in (False, True, True):
        functional._checked.clear()
        if correct_first:
            lambda_layer(**arguments("global-2d"))
        with pytest.raises((ValueError, TypeError)) as failure:
            lambda_layer(**arguments("global-2d") | wrong)
        messages.append((failure.type, str(failure.value)))
    assert len(set(messages)) == 1
    assert failure.type is ValueError


def test_checked_calls_are_forgotten_beyond_their_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that add calls at the same time may exceed it."""
    monkeypatch.setattr(functional, "MAX_CHECKED", 2)
    monkeypatch.setattr(functional, "_checked", {(i,): None for i in range(3)})
    lambda_layer(**arguments("global-2d"))
    assert len(functional._checked) == 1


@pytest.mark.parametrize("name", ["k", "v", "e"])
def test_one_dtype_and_one_device(name: str) -> None:
    given = arguments("local-2d")
    refused(
        lambda: lambda_layer(**(given | {name: given[name].float()})), name, "torch.float32", "torch.float64"
    )
    refused(lambda: lambda_layer(**(given | {name: given[name].to("meta")})), name, "meta")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_real_floating_point_only(dtype: torch.dtype) -> None:
    given = {name: x.to(dtype) for name, x in BY_NAME["global-2d"].inputs().items()}
    refused(lambda: lambda_layer(**given, context=GlobalContext((3, 5))), "q", str(dtype))


def test_neither_content_nor_positions() -> None:
    refused(lambda: lambda_layer(**(arguments("local-2d") | {"content": False, "e": None})), "content", "e")


@pytest.mark.parametrize("context", [None, (3, 5), GlobalContext])
def test_context_must_be_one(context: object) -> None:
    refused(lambda: lambda_layer(**(arguments("global-2d") | {"context": context})), "context")


def test_unknown_kernel() -> None:
    given = arguments("global-2d")
    refused(lambda: lambda_layer(**given, kernel="convolution"), "kernel", "convolution", "conv")
    refused(lambda: lambda_layer(**given, kernel="zzz"), "zzz", "auto", "reference", "conv", "attention")


WRONG_CONTEXTS = {
    "grid-zero": (lambda: GlobalContext(0), ["grid", "0"]),
    "grid-negative": (lambda: GlobalContext((3, -1)), ["grid"]),
    "grid-empty": (lambda: GlobalContext(()), ["grid"]),
    "grid-float": (lambda: GlobalContext(2.5), ["grid", "2.5"]),
    "grid-floats": (lambda: GlobalContext((3, 2.5)), ["grid"]),
    "grid-text": (lambda: GlobalContext("3x5"), ["grid"]),
    "grid-none": (lambda: GlobalContext(None), ["grid"]),
    "context-grid-axes": (lambda: GlobalContext((3, 5), context_grid=(3,)), ["context_grid"]),
    "context-grid-zero": (lambda: GlobalContext((3, 5), context_grid=(3, 0)), ["context_grid"]),
    "causal-2d": (lambda: GlobalContext((3, 5), causal=True), ["causal", "grid"]),
    "local-grid": (lambda: LocalContext((0, 5), 3), ["grid"]),
    "scope-zero": (lambda: LocalContext((3, 5), 0), ["scope"]),
    "scope-negative": (lambda: LocalContext((3, 5), (3, -3)), ["scope"]),
    "scope-axes": (lambda: LocalContext((3, 5), (3, 3, 3)), ["scope"]),
    "scope-one-axis": (lambda: LocalContext((3, 5), (3,)), ["scope"]),
    "scope-float": (lambda: LocalContext((3, 5), 2.5), ["scope", "2.5"]),
    "dilation-zero": (lambda: LocalContext((3, 5), 3, dilation=0), ["dilation"]),
    "dilation-axes": (lambda: LocalContext((3, 5), 3, dilation=(2, 2, 2)), ["dilation"]),
    "local-context-grid": (lambda: LocalContext((3, 5), 3, context_grid=(3, 5, 1)), ["context_grid"]),
    "local-causal-2d": (lambda: LocalContext((3, 5), 3, causal=True), ["causal", "grid"]),
    "mask-numbers": (lambda: MaskedContext(ones(3, 5)), ["mask", "bool"]),
    "mask-axes": (lambda: MaskedContext(ones(2, 3, 5, dtype=torch.bool)), ["mask", "2, 3, 5"]),
    "mask-list": (lambda: MaskedContext([[True]]), ["mask"]),
}


@pytest.mark.parametrize(("make", "words"), WRONG_CONTEXTS.values(), ids=WRONG_CONTEXTS)
def test_wrong_contexts(make: Callable[[], object], words: list[str]) -> None:
    refused(make, *words)


@pytest.mark.parametrize("context", [GlobalContext((3, 5)), LocalContext(5, 3)], ids=str)
def test_contexts_are_frozen_and_hashable(context: object) -> None:
    with pytest.raises(AttributeError):
        context.grid = (1,)
    assert hash(context) == hash(context)
