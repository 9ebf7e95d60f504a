"""The causal content part as a recurrence: states, decay and masks, against literal loops in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from closeness import DOUBLE, FACTOR
from lambdanets.ops import causal_content as operators
from lambdanets.ops.causal_content import (
    causal_content,
    causal_content_gradients,
    causal_content_output,
)
from lambdanets.ops.kernels.native import library
from oracles import causal_content_loops

needs_library = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
WAYS = [pytest.param("native", marks=needs_library), "chunks"]
NORMALIZATIONS = ["softmax", "l2", "none"]
STATE = ("log_norm", "summary")
RESULTS = ("y", *STATE)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute the content part in one of the two ways."""
    if request.param == "chunks":
        monkeypatch.setattr(operators, "has_native_content", lambda *options: False)
    return request.param


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Sizes and options of a random sequence; its inputs are a function of them and a seed."""

    n: int
    batch: int = 2
    num_heads: int = 3
    dim_k: int = 5
    dim_v: int = 7
    dim_u: int = 1
    normalize: str = "softmax"
    state: str = "none"  # or "some", or "mixed": rows without elements beside others
    decay: float | None = None  # the largest rate
    mask: str = "none"  # or "left", "right", "some", "all": where elements are hidden
    keys: str = "usual"  # or "large", "constant", "low": some are -infinity
    seed: int = 0

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return the differentiable inputs by name, q, k and v in a dtype, the others in float32 at least."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        b, n, columns = self.batch, self.n, (self.dim_k, self.dim_u)
        found = {
            "q": normal(b, self.num_heads, n, self.dim_k),
            "k": normal(b, n, *columns),
            "v": normal(b, n, self.dim_v, self.dim_u),
        }
        if self.keys == "large":
            found["k"] = 80 * found["k"].clamp(-1, 1)
        elif self.keys == "constant":
            found["k"] = torch.full_like(found["k"], 3.7)
        elif self.keys == "low" and self.normalize == "softmax":
            found["k"] = torch.where(found["k"] > 0.5, -torch.inf, found["k"])
        found = {name: x.to(dtype) for name, x in found.items()}
        accumulator = torch.promote_types(dtype, torch.float32)
        if self.state != "none":
            log_norm, summary = normal(b, *columns), normal(b, self.dim_k, self.dim_v, self.dim_u)
            if self.normalize == "none":
                log_norm = torch.zeros_like(log_norm)
            elif self.state == "mixed":
                empty = normal(b, *columns) > 0
                log_norm = log_norm.masked_fill(empty, -torch.inf)
                summary = summary.masked_fill(empty[:, :, None], 0)
            found |= {"log_norm": log_norm, "summary": summary.to(accumulator)}
        if self.decay is not None:
            found["decay"] = (self.decay * normal(*columns).abs().clamp(max=1)).to(accumulator)
        return found

    def visible(self) -> Tensor | None:
        """Return the mask [b, n], None for all."""
        if self.mask == "none":
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        positions, cuts = (
            torch.arange(self.n),
            torch.randint(0, self.n + 1, (self.batch, 1), generator=generator),
        )
        if self.mask == "left":
            return positions >= cuts
        if self.mask == "right":
            return positions < cuts
        if self.mask == "some":
            return torch.rand(self.batch, self.n, generator=generator) < 0.7
        return torch.zeros(self.batch, self.n, dtype=torch.bool)

    def upstream(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return gradients of the results."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        b, columns = self.batch, (self.dim_k, self.dim_u)
        shapes = {
            "y": (b, self.num_heads, self.n, self.dim_v),
            "log_norm": (b, *columns),
            "summary": (b, self.dim_k, self.dim_v, self.dim_u),
        }
        accumulator = torch.promote_types(dtype, torch.float32)
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(
                {"y": dtype, "log_norm": torch.float64}.get(name, accumulator)
            )
            for name, shape in shapes.items()
        }


def apply(sequence: Sequence, inputs: dict[str, Tensor], cuts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return the results of `causal_content` in several calls, each after the state of the one before."""
    mask, state = sequence.visible(), {name: inputs.get(name) for name in STATE}
    parts = []
    for first, last in zip((0, *cuts), (*cuts, sequence.n), strict=True):
        y, *after = causal_content(
            inputs["q"][:, :, first:last],
            inputs["k"][:, first:last],
            inputs["v"][:, first:last],
            None if mask is None else mask[:, first:last],
            decay=inputs.get("decay"),
            normalize=sequence.normalize,
            **state,
        )
        parts.append(y)
        state = dict(zip(STATE, after, strict=True))
    return {"y": torch.cat(parts, dim=2), **state}


def apply_loops(sequence: Sequence, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    found = causal_content_loops(**inputs, mask=sequence.visible(), normalize=sequence.normalize)
    return dict(zip(RESULTS, found, strict=True))


def with_gradients(
    sequence: Sequence,
    inputs: dict[str, Tensor],
    call: Callable[[Sequence, dict[str, Tensor]], dict[str, Tensor]],
    of: tuple[str, ...] = RESULTS,
) -> dict[str, Tensor]:
    """Return the results and, as "d" and a name, the gradient of every input from those of the results."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    found = call(sequence, leaves)
    upstream = sequence.upstream(inputs["q"].dtype)
    if sequence.normalize == "none":
        of = tuple(name for name in of if name != "log_norm")  # a constant
    loss = torch.zeros((), dtype=torch.float64)
    for name in of:
        x = found[name]
        loss = loss + (torch.where(x.isfinite(), x, 0) * upstream[name].to(x.dtype)).double().sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    results = {name: x.detach() for name, x in found.items()}
    for (name, x), gradient in zip(leaves.items(), gradients, strict=True):
        results[f"d{name}"] = torch.zeros_like(x) if gradient is None else gradient
    if "log_norm" in inputs:
        # The summary of no elements is zero by definition: its gradient has no meaning.
        empty = inputs["log_norm"].isinf()[:, :, None]
        results["dsummary"] = results["dsummary"].masked_fill(empty, 0)
    return results


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def assert_close(
    found: dict[str, Tensor], exact: dict[str, Tensor], plain: dict[str, Tensor] | None = None
) -> None:
    """Fail unless all results agree by the rule of `closeness.py`, gradients relative to the largest one.

    Gradients of keys, log norms and decays are differences of terms of that size.
    """
    assert found.keys() == exact.keys()
    largest = max([rms(x) for name, x in exact.items() if name.startswith("d")], default=0.0)
    for name, truth in exact.items():
        x = found[name].double()
        infinite = truth.isinf()
        assert x.shape == truth.shape, name
        assert torch.equal(x[infinite], truth[infinite]), name
        assert x[~infinite].isfinite().all(), name
        scale = max(rms(truth[~infinite]), largest if name.startswith("d") else 0.0)
        allowed = DOUBLE * scale
        if plain is not None:
            off = rms((plain[name].double() - truth)[~infinite])
            allowed = FACTOR * (off + torch.finfo(plain[name].dtype).eps * scale)
        wrong = rms((x - truth)[~infinite])
        assert wrong <= allowed, f"{name}: error {wrong:.2g}, allowed {allowed:.2g}"


sequences = st.builds(
    Sequence,
    n=st.sampled_from([1, 2, 3, 16, 17, 31, 33, 70]),
    batch=st.sampled_from([0, 1, 2, 3]),
    num_heads=st.sampled_from([1, 2, 4, 5]),
    dim_k=st.sampled_from([1, 3, 16, 17]),
    dim_v=st.sampled_from([1, 4, 33, 70]),
    dim_u=st.sampled_from([1, 1, 2, 3]),
    normalize=st.sampled_from(NORMALIZATIONS),
    state=st.sampled_from(["none", "some", "mixed"]),
    decay=st.sampled_from([None, 0.0, 0.01, 1.0, 60.0]),
    mask=st.sampled_from(["none", "none", "left", "right", "some", "all"]),
    keys=st.sampled_from(["usual", "usual", "large", "constant", "low"]),
    seed=st.integers(0, 2**31),
)
searched = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@searched
@given(sequence=sequences)
def test_equals_the_loops(sequence: Sequence, way: str) -> None:
    inputs = sequence.inputs()
    exact = with_gradients(sequence, inputs, apply_loops)
    assert_close(with_gradients(sequence, inputs, apply), exact)


@searched
@given(sequence=sequences, data=st.data())
def test_any_division_into_calls_gives_the_whole(sequence: Sequence, data: Any, way: str) -> None:
    inner = range(1, sequence.n)
    cuts = data.draw(st.sets(st.sampled_from(inner), max_size=5) if inner else st.just(set()))
    if data.draw(st.booleans()):
        cuts = set(inner)  # step by step
    inputs = sequence.inputs()
    whole = with_gradients(sequence, inputs, apply)
    parts = with_gradients(sequence, inputs, lambda *given: apply(*given, cuts=tuple(sorted(cuts))))
    assert_close(parts, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("keys", ["usual", "large", "constant"])
def test_low_precision_is_at_most_twice_as_wrong_as_the_loops(
    dtype: torch.dtype, normalize: str, keys: str, way: str
) -> None:
    keys = "usual" if normalize != "softmax" and dtype == torch.float16 else keys  # sums overflow
    sequence = Sequence(n=75, normalize=normalize, keys=keys, state="some", decay=0.1, mask="left", dim_u=2)
    inputs = sequence.inputs(dtype)
    exact = with_gradients(sequence, {name: x.double() for name, x in inputs.items()}, apply_loops)
    plain = with_gradients(sequence, {name: x.to(dtype) for name, x in inputs.items()}, apply_loops)
    for cuts in ((), (1, 2, 40)):
        found = with_gradients(sequence, inputs, lambda *given, cuts=cuts: apply(*given, cuts=cuts))
        assert all(found[f"d{name}"].dtype == x.dtype for name, x in inputs.items())
        assert found["y"].dtype == dtype
        assert (found["log_norm"].dtype, found["summary"].dtype) == (torch.float64, torch.float32)
        assert_close(found, exact, plain)


@needs_library
@pytest.mark.parametrize("decay", [None, 0.1])
def test_every_instruction_set_gives_the_same(isa: str, decay: float | None) -> None:
    sequence = Sequence(n=100, state="mixed", decay=decay, mask="some", dim_k=17, dim_v=70, dim_u=2)
    inputs = sequence.inputs()
    assert_close(with_gradients(sequence, inputs, apply), with_gradients(sequence, inputs, apply_loops))


@needs_library
@pytest.mark.parametrize("dim_v", [7, 100])
def test_results_do_not_depend_on_threads(dim_v: int, threads: None) -> None:
    sequence = Sequence(n=100, state="some", decay=0.1, mask="some", dim_v=dim_v, dim_u=2)
    inputs, found = sequence.inputs(torch.float32), []
    for number in (1, 2, 3, 1):
        torch.set_num_threads(number)
        found.append(with_gradients(sequence, inputs, apply))
    for other in found[1:]:
        assert all(torch.equal(x, found[0][name]) for name, x in other.items())


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(
    "options", [{}, {"state": "some", "decay": 0.3, "mask": "some", "dim_u": 2}], ids=str
)
@pytest.mark.parametrize("n", [1, 3])
def test_gradients_to_second_order_equal_finite_differences(
    options: dict[str, Any], normalize: str, n: int, way: str
) -> None:
    sequence = Sequence(n=n, batch=2, num_heads=2, dim_k=2, dim_v=2, normalize=normalize, **options)
    inputs = {name: x.requires_grad_() for name, x in sequence.inputs().items()}
    if normalize == "none":
        inputs.pop("log_norm", None)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(inputs, tensors, strict=True))
        if "summary" in named:
            named.setdefault("log_norm", torch.zeros(2, 2, sequence.dim_u, dtype=torch.float64))
        found = apply(sequence, named)
        return tuple(found[name] for name in RESULTS if found[name].requires_grad)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("of", [("y",), ("log_norm",), ("summary",), STATE], ids=str)
def test_gradients_of_some_results_alone(of: tuple[str, ...], way: str) -> None:
    sequence = Sequence(n=40, state="some", decay=0.1, mask="some")
    inputs = sequence.inputs()
    exact = with_gradients(sequence, inputs, apply_loops, of)
    assert_close(with_gradients(sequence, inputs, apply, of), exact)


@pytest.mark.parametrize("name", ["q", "k", "v", "log_norm", "summary", "decay"])
def test_gradients_of_one_input_alone(name: str, way: str) -> None:
    sequence = Sequence(n=40, state="some", decay=0.1, mask="some", dim_v=70)
    inputs, upstream = sequence.inputs(), sequence.upstream()
    exact = with_gradients(sequence, inputs, apply_loops)[f"d{name}"]
    leaf = inputs[name].requires_grad_()
    found = apply(sequence, inputs)
    loss = sum((found[each] * upstream[each]).sum() for each in RESULTS if found[each].requires_grad)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert_close({"d": gradient}, {"d": exact})


@needs_library
def test_registration_is_sound() -> None:
    sequence = Sequence(n=7, state="some", decay=0.1, mask="some", dim_u=2)
    inputs = {name: x.float() for name, x in sequence.inputs().items()}
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    torch.library.opcheck(causal_content_output, (*leaves, sequence.visible(), "hnv"))
    upstream = list(sequence.upstream(torch.float32).values())
    for gradients in (upstream, [None, *upstream[1:]], [upstream[0], None, None]):
        for needs in ([True] * 6, [False, True, False] * 2):
            options = (sequence.visible(), needs)
            torch.library.opcheck(causal_content_gradients, (*gradients, *inputs.values(), *options))


@needs_library
def test_one_graph_holds_the_operator_with_its_state() -> None:
    sequence = Sequence(n=40, state="some", decay=0.1, mask="some")
    names: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def call(sequence: Sequence, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(RESULTS, compiled(inputs), strict=True))

    mask = sequence.visible()
    compiled = torch.compile(
        lambda inputs: causal_content(**inputs, mask=mask),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=keep),
    )
    inputs = sequence.inputs()
    found, exact = (with_gradients(sequence, inputs, each) for each in (call, apply))
    assert all(torch.equal(x, exact[name]) for name, x in found.items())
    assert sum("causal_content_output" in name for name in names) == 1
    assert sum("causal_content_gradients" in name for name in names) == 1


@needs_library
def test_the_operators_compute_chunks_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = Sequence(n=40, state="mixed", decay=0.1, mask="some")
    inputs, upstream, mask = sequence.inputs(), sequence.upstream(), sequence.visible()
    exact = with_gradients(sequence, inputs, apply_loops)
    monkeypatch.setattr(library, "_find", lambda: library._Found(reason="it is not there"))
    found = dict(zip(RESULTS, causal_content_output(*inputs.values(), mask, "hnv"), strict=True))
    finite = upstream | {"log_norm": upstream["log_norm"].masked_fill(found["log_norm"].isinf(), 0)}
    gradients = causal_content_gradients(*finite.values(), *inputs.values(), mask, [True] * 6)
    found |= {f"d{name}": x for name, x in zip(inputs, gradients, strict=True)}
    assert_close(found, exact)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("n", [1, 20])
def test_an_exported_call_holds_no_operator_of_this_package(n: int, normalize: str) -> None:
    sequence = Sequence(n=n, state="some", decay=0.1, normalize=normalize)
    inputs = sequence.inputs()

    class Module(torch.nn.Module):
        def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
            return causal_content(**inputs, normalize=normalize)

    exported = torch.export.export(Module(), (), inputs)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert not any("lambdanets" in target for target in targets)
    assert any("cumsum" in target for target in targets) == (n > 1)  # one element needs no chunks
    found = dict(zip(RESULTS, exported.module()(**inputs), strict=True))
    assert_close(found, apply(sequence, inputs))


@needs_library
def test_calls_without_gradients_are_those_with_gradients() -> None:
    sequence = Sequence(n=20, state="some", decay=0.1, mask="some")
    inputs = sequence.inputs(torch.float32)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    recorded = apply(sequence, leaves)
    assert all(x.requires_grad for x in recorded.values())
    with torch.no_grad():
        direct = apply(sequence, leaves)
    for found in (direct, apply(sequence, inputs)):
        assert not any(x.requires_grad for x in found.values())
        assert all(torch.equal(x, recorded[name]) for name, x in found.items())
    negated = inputs | {"k": torch.complex(inputs["q"], -inputs["q"]).conj().imag[:, 0, :, :, None]}
    assert negated["k"].is_neg()
    plain = negated | {"k": negated["k"].resolve_neg()}
    assert all(map(torch.equal, apply(sequence, negated).values(), apply(sequence, plain).values()))
    with FlopCounterMode(display=False) as counter:
        apply(sequence, inputs)
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_transforms_of_torch_func_differentiate_states(normalize: str) -> None:
    sequence = Sequence(n=9, state="some", decay=0.1, normalize=normalize)
    inputs = sequence.inputs()
    upstream = sequence.upstream()

    def loss(inputs: dict[str, Tensor], call: Callable[..., dict[str, Tensor]]) -> Tensor:
        return (call(sequence, inputs)["y"] * upstream["y"]).sum()

    found, exact = (torch.func.grad(loss)(inputs, call) for call in (apply, apply_loops))
    named = [{f"d{name}": x for name, x in each.items()} for each in (found, exact)]
    assert_close(*named)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_long_sequence_in_float32_does_not_drift(normalize: str, way: str) -> None:
    """The error of the state after 30,000 positions is that after 300, relative to its size."""
    sequence = Sequence(n=30_000, batch=1, num_heads=1, dim_k=3, dim_v=2, normalize=normalize, decay=1e-3)
    inputs = sequence.inputs(torch.float32)
    cuts = tuple(range(300, sequence.n, 300))
    found, exact = apply(sequence, inputs, cuts), apply(sequence, {n: x.double() for n, x in inputs.items()})
    for name, truth in exact.items():
        last = (found[name].double() - truth)[..., -300:, :] if name == "y" else found[name].double() - truth
        assert rms(last) < 2e-6 * max(1.0, rms(truth)), name


@pytest.mark.parametrize("size", [2, 33])
@pytest.mark.parametrize("normalize", ["softmax", "l2"])
def test_parts_in_float32_after_a_million_elements_do_not_drift(normalize: str, size: int, way: str) -> None:
    """Keys of 1, which raise the log norm by about 1/n."""
    n, calls, power = 1_000_000, 300, 1 if normalize == "softmax" else 0.5
    q, k, v = torch.ones(1, 1, size, 4), torch.ones(1, size, 4, 1), torch.ones(1, size, 3, 1)
    start = power * math.log(n) + (1 if normalize == "softmax" else 0)
    log_norm = torch.full((1, 4, 1), start, dtype=torch.float64)
    summary = torch.ones(1, 4, 3, 1)
    with torch.inference_mode():
        for _ in range(calls):
            _, log_norm, summary = causal_content(q, k, v, None, log_norm, summary, normalize=normalize)
    growth = power * math.log1p(calls * size / n)
    assert (log_norm - start - growth).abs().max() < 1e-6 * growth


def test_half_a_state_and_no_elements_are_refused() -> None:
    inputs = Sequence(n=3, state="some").inputs()
    summary = inputs.pop("summary")
    with pytest.raises(ValueError, match="give both or neither"):
        causal_content(**inputs)
    inputs["summary"] = summary
    empty = {"q": inputs["q"][:, :, :0], "k": inputs["k"][:, :0], "v": inputs["v"][:, :0]}
    with pytest.raises(ValueError, match="at least one element"):
        causal_content(**inputs | empty)
