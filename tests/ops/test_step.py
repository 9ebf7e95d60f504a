"""One step of the causal operator, by the library and by PyTorch's operators, against literal loops."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from closeness import DOUBLE, FACTOR
from lambdanets.ops import recurrent
from lambdanets.ops.kernels.native import library
from lambdanets.ops.kernels.native import step as native_step
from lambdanets.ops.recurrent import Recurrence, recurrent_step
from oracles import causal_content_loops

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
WAYS = [pytest.param("native", marks=needs_library), "operators"]
RESULTS = ("y", "log_norm", "summary", "values")
searched = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the library's step."""
    calls: list[str] = []
    whole = native_step.output
    monkeypatch.setattr(native_step, "output", lambda *a: (calls.append("step"), whole(*a))[1])
    return calls


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, native_calls: list[str]
) -> Iterator[str]:
    """Compute steps in one of the two ways."""
    if request.param == "operators":
        monkeypatch.setenv(library.SWITCH, "0")
    library.refresh()
    yield request.param
    assert bool(native_calls) is (request.param == "native")
    monkeypatch.undo()
    library.refresh()


@dataclass(frozen=True, kw_only=True)
class Step:
    """Sizes and options of a random step; its inputs are a function of them and a seed."""

    batch: int = 2
    num_heads: int = 4
    sets: int = 2
    dim_k: int = 5
    dim_v: int = 7
    dim_u: int = 1
    entries: int | None = 6  # of the position table; None without one
    dilation: int = 1
    content: bool = True
    normalize: str = "softmax"
    decay: float | None = None  # the largest rate
    keys: str = "usual"  # or "large", "low": some are -infinity
    empty: bool = True  # whether some columns of the state have no elements
    seed: int = 0

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the inputs by name, in a dtype; log norms are float64."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        b, sets, columns = self.batch, self.sets, (self.dim_k, self.dim_u)
        found = {"q": normal(b, self.num_heads, self.dim_k), "v": normal(b, self.dim_v, self.dim_u)}
        if self.content:
            found["k"] = normal(b, sets, *columns)
            if self.keys == "large":
                found["k"] = 80 * found["k"].clamp(-1, 1)
            elif self.keys == "low" and self.normalize == "softmax":
                found["k"] = torch.where(found["k"] > 0.5, -torch.inf, found["k"])
            found["summary"] = normal(b, sets, self.dim_k, self.dim_v, self.dim_u)
            if self.normalize != "none":
                found["log_norm"] = normal(b, sets, *columns)
                empty = normal(b, sets, *columns) > (0 if self.empty else torch.inf)
                found["log_norm"] = found["log_norm"].masked_fill(empty, -torch.inf)
                found["summary"] = found["summary"].masked_fill(empty[:, :, :, None], 0)
            if self.decay is not None:
                found["decay"] = self.decay * normal(*columns).abs().clamp(max=1)
        if self.entries is not None:
            found["e"] = normal(self.entries, *columns)
            found["values"] = normal(b, (self.entries - 1) * self.dilation, self.dim_v, self.dim_u)
        return {name: x if name == "log_norm" else x.to(dtype) for name, x in found.items()}


def apply(step: Step, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results of `recurrent_step` that are not None."""
    y, after = recurrent_step(
        inputs["q"],
        inputs.get("k"),
        inputs["v"],
        inputs.get("e"),
        Recurrence(*(inputs.get(name) for name in RESULTS[1:])),
        decay=inputs.get("decay"),
        dilation=step.dilation,
        normalize=step.normalize,
    )
    return {name: x for name, x in zip(RESULTS, (y, *after), strict=True) if x is not None}


def by_loops(step: Step, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same by the definition, position by position and set by set."""
    q, v = inputs["q"], inputs["v"]
    y, found = torch.zeros(*q.shape[:2], v.shape[1], dtype=q.dtype), {}
    if step.entries is not None:
        elements = torch.cat([inputs["values"], v[:, None]], dim=1)
        for j in range(step.entries):
            values = elements[:, j * step.dilation]
            y = y + torch.einsum("bhk,ku,bvu->bhv", q, inputs["e"][j], values)
        found["values"] = elements[:, 1:]
    if step.content:
        heads, states = step.num_heads // step.sets, []
        zeros = torch.zeros(inputs["k"].shape, dtype=q.dtype)
        for i in range(step.sets):
            part, log_norm, summary = causal_content_loops(
                q[:, i * heads : (i + 1) * heads, None],
                inputs["k"][:, i, None],
                v[:, None],
                None,
                inputs.get("log_norm", zeros)[:, i],
                inputs["summary"][:, i],
                inputs.get("decay"),
                step.normalize,
            )
            y[:, i * heads : (i + 1) * heads] += part[:, :, 0]
            states.append((log_norm, summary))
        found["log_norm"], found["summary"] = (
            torch.stack(parts, dim=1) for parts in zip(*states, strict=True)
        )
        if step.normalize == "none":
            del found["log_norm"]
    return {"y": y, **found}


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def assert_close(
    found: dict[str, Tensor], exact: dict[str, Tensor], plain: dict[str, Tensor] | None = None
) -> None:
    """Fail unless all results agree by the rule of `closeness.py`, and infinities are the same."""
    assert found.keys() == exact.keys()
    for name, truth in exact.items():
        x, infinite = found[name].double(), truth.isinf()
        assert x.shape == truth.shape, name
        assert torch.equal(x[infinite], truth[infinite]), name
        assert x[~infinite].isfinite().all(), name
        scale = rms(truth[~infinite])
        allowed = DOUBLE * scale
        if plain is not None:
            eps = torch.finfo(plain[name].dtype).eps
            allowed = FACTOR * (rms((plain[name].double() - truth)[~infinite]) + eps * scale)
        wrong = rms((x - truth)[~infinite])
        assert wrong <= allowed, f"{name}: error {wrong:.2g}, allowed {allowed:.2g}"


@st.composite
def steps(draw: Callable[..., Any]) -> Step:
    sets = draw(st.sampled_from([1, 1, 2, 3]))
    content = draw(st.sampled_from([True, True, False]))
    return Step(
        batch=draw(st.sampled_from([0, 1, 2, 5, 33])),
        num_heads=sets * draw(st.sampled_from([1, 2, 4, 5])),
        sets=sets,
        dim_k=draw(st.sampled_from([1, 3, 8, 16, 17])),
        dim_v=draw(st.sampled_from([1, 4, 7, 32, 33, 64])),
        dim_u=draw(st.sampled_from([1, 1, 2, 3])),
        entries=draw(st.sampled_from([1, 2, 7, 23, 64, *([None] if content else [])])),
        dilation=draw(st.sampled_from([1, 1, 2, 3])),
        content=content,
        normalize=draw(st.sampled_from(["softmax", "softmax", "l2", "none"])),
        decay=draw(st.sampled_from([None, 0.0, 0.01, 1.0, 60.0])),
        keys=draw(st.sampled_from(["usual", "large", "low"])),
        seed=draw(st.integers(0, 2**31)),
    )


@searched
@given(step=steps())
def test_equals_the_loops(step: Step, way: str) -> None:
    inputs = step.inputs()
    before = copy.deepcopy(inputs)
    assert_close(apply(step, inputs), by_loops(step, inputs))
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())


@pytest.mark.parametrize("normalize", ["softmax", "l2"])
def test_steps_in_float32_after_a_million_elements_do_not_drift(normalize: str, way: str) -> None:
    """Keys of 1 and values of 1, whose state has a closed form."""
    n, steps = 1_000_000, 1000
    q, k, v = torch.ones(1, 1, 4), torch.ones(1, 1, 4, 1), torch.ones(1, 3, 1)
    power = 1 if normalize == "softmax" else 0.5

    def log_norm(elements: int) -> float:
        return power * math.log(elements) + (1 if normalize == "softmax" else 0)

    def mean(elements: int) -> float:
        return 1.0 if normalize == "softmax" else elements**0.5

    before = torch.full((1, 1, 4, 1), log_norm(n), dtype=torch.float64)
    state = Recurrence(before, torch.full((1, 1, 4, 3, 1), mean(n)), None)
    with torch.inference_mode():
        for _ in range(steps):
            y, state = recurrent_step(q, k, v, None, state, normalize=normalize)
    assert state.log_norm is not None
    assert state.summary is not None
    assert (state.log_norm - log_norm(n + steps)).abs().max() < 1e-11
    # Under "l2" the summary is a sum that grows, whose float32 is rounded.
    allowed = 2e-7 if normalize == "softmax" else 5e-5
    assert (state.summary / mean(n + steps) - 1).abs().max() < allowed
    assert (y / (4 * mean(n + steps)) - 1).abs().max() < 2 * allowed


@needs_library
@searched
@given(step=steps())
def test_every_instruction_set_equals_the_loops(step: Step, isa: str, native_calls: list[str]) -> None:
    inputs = step.inputs()
    assert_close(apply(step, inputs), by_loops(step, inputs))
    assert native_calls


@needs_library
@pytest.mark.parametrize("dim_v", [7, 32])
@pytest.mark.parametrize("keys", ["usual", "large"])
@pytest.mark.parametrize("normalize", ["softmax", "l2", "none"])
def test_float32_is_at_most_twice_as_wrong_as_the_operators(
    normalize: str, keys: str, dim_v: int, isa: str
) -> None:
    step = Step(
        batch=33, dim_k=16, dim_v=dim_v, dim_u=2, entries=64, normalize=normalize, keys=keys, decay=0.1
    )
    inputs = step.inputs(torch.float32)
    exact = by_loops(step, {name: x.double() for name, x in inputs.items()})
    plain = apply(step, {name: x.detach().clone().requires_grad_() for name, x in inputs.items()})
    found = apply(step, inputs)
    assert all(x.dtype == inputs.get(name, inputs["q"]).dtype for name, x in found.items())
    assert_close(found, exact, {name: x.detach() for name, x in plain.items()})


def strided(x: Tensor) -> Tensor:
    """Return a tensor in memory whose axes are in reverse order, and with elements between its own."""
    wide = x.new_full((*reversed(x.shape), 2), 7.0)[..., 0]
    return wide.permute(*reversed(range(x.ndim))).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim_u", [1, 2])
def test_strides_do_not_matter(dim_u: int, dtype: torch.dtype, way: str) -> None:
    step = Step(batch=3, dim_v=32, dim_u=dim_u, decay=0.1, dilation=2)
    inputs = step.inputs(dtype)
    found = apply(step, {name: strided(x) for name, x in inputs.items()})
    expanded = apply(step, inputs | {"values": inputs["values"][:1].expand_as(inputs["values"])})
    repeated = apply(step, inputs | {"values": inputs["values"][:1].repeat(3, 1, 1, 1)})
    for name, x in apply(step, inputs).items():
        torch.testing.assert_close(found[name], x)
        torch.testing.assert_close(expanded[name], repeated[name])


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_threads(dtype: torch.dtype, threads: None, native_calls: list[str]) -> None:
    step = Step(batch=33, dim_k=16, dim_v=64, entries=200, decay=0.1)
    inputs, found = step.inputs(dtype), []
    for number in (1, 2, 3, 1):
        torch.set_num_threads(number)
        found.append(apply(step, inputs))
    assert len(native_calls) == 4
    for other in found[1:]:
        assert all(torch.equal(x, found[0][name]) for name, x in other.items())


def test_a_state_stays_as_it_is_and_results_are_new(way: str) -> None:
    step = Step()
    inputs = step.inputs()
    before = copy.deepcopy(inputs)
    found = apply(step, inputs)
    for x in found.values():
        x.fill_(9)
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())


@needs_library
def test_the_library_serves_what_it_can(native_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step()
    inputs = step.inputs(torch.float32)

    def served(**changed: Tensor) -> bool:
        native_calls.clear()
        apply(step, inputs | changed)
        return bool(native_calls)

    assert served()
    leaf = inputs["v"].clone().requires_grad_()
    assert not served(v=leaf)
    with torch.no_grad():
        assert served(v=leaf)
    with torch.inference_mode():
        assert served()
    for dtype in (torch.bfloat16, torch.float16):
        half = {name: x.to(dtype) for name, x in inputs.items() if name in ("q", "k", "v", "e", "values")}
        assert not served(**half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not served()
    assert not served(e=torch.nn.Buffer(inputs["e"]).as_subclass(Marked))
    native_calls.clear()
    torch.func.vmap(lambda q: apply(step, inputs | {"q": q})["y"])(inputs["q"][None])
    torch.compile(lambda q: apply(step, inputs | {"q": q})["y"], backend="eager", fullgraph=True)(inputs["q"])
    assert not native_calls
    monkeypatch.setenv(library.SWITCH, "0")
    library.refresh()
    assert not served()
    monkeypatch.undo()
    library.refresh()


class Marked(Tensor):
    """A subclass of tensors."""


@needs_library
def test_wrong_shapes_are_those_of_the_operators() -> None:
    """The library does not read beyond a tensor: PyTorch raises its error."""
    step = Step()
    inputs = step.inputs()
    wrong = {name: inputs[name][..., :2, :] for name in ("k", "v", "e", "values", "summary")}
    wrong |= {"q": inputs["q"][..., :2], "decay": torch.ones(3, 1, dtype=torch.float64)}
    for name, x in wrong.items():
        with pytest.raises(RuntimeError):
            apply(step, inputs | {name: x})
    assert not recurrent.is_native_step([(inputs["q"], (9, 9, 9))])
