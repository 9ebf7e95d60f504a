"""Steps of a whole layer by the native library: the results of the modules, and when modules are called."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from closeness import DOUBLE
from lambdanets import LambdaLayer1d
from lambdanets.nn.states import LambdaState
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import step as native_step

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")

Steps = tuple[Tensor, LambdaState]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions of the library that are called: "output" or "layer_output"."""
    found: list[str] = []
    for name in ("output", "layer_output"):
        whole = getattr(native_step, name)
        monkeypatch.setattr(native_step, name, lambda *a, n=name, f=whole: (found.append(n), f(*a))[1])
    return found


@st.composite
def options(draw: Callable[..., Any]) -> dict[str, Any]:
    content = draw(st.sampled_from([True, True, False]))
    heads, dim_v = draw(st.sampled_from([(1, 3), (2, 32), (4, 7), (4, 16), (6, 8)]))
    found = {
        "dim": draw(st.sampled_from([1, 5, 16, 33, 128])),
        "dim_out": heads * dim_v,
        "num_heads": heads,
        "dim_k": draw(st.sampled_from([1, 5, 16, 17])),
        "dim_u": draw(st.sampled_from([1, 1, 2])),
        "content": content,
        "norm": draw(st.sampled_from(["rms", None])),
        "gate": draw(st.booleans()),
        "out_norm": draw(st.booleans()),
        "short_conv": draw(st.sampled_from([None, 2, 4])),
    }
    if content:
        kinds = ["softmax", "softmax_both", "l2", "none"]
        found |= {"normalize": draw(st.sampled_from(kinds)), "decay": draw(st.booleans())}
        found["key_heads"] = draw(st.sampled_from([1, heads]))
    if content and draw(st.booleans()):
        found |= {"position": False, "scope": None}
    else:
        found |= {"scope": draw(st.sampled_from([1, 2, 9, 64])), "dilation": draw(st.sampled_from([1, 2]))}
        found["position_bias"] = draw(st.booleans())
    return found


def make(dtype: torch.dtype = torch.float64, **given: Any) -> LambdaLayer1d:
    """Return a causal layer whose parameters are all random."""
    torch.manual_seed(0)
    chosen = {"dim": 12, "scope": 5, "norm": "rms"} | given
    layer = LambdaLayer1d(**chosen, causal=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer.to(dtype).eval()


def run(layer: LambdaLayer1d, batch: int, steps: int = 4, state: LambdaState | None = None) -> Steps:
    """Return the outputs `[steps, b, dim_out]` of some steps, and the state after them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(steps, batch, layer.dim, generator=generator, dtype=torch.float64)
    state, outputs = layer.initial_state(batch) if state is None else state, []
    for x in inputs.to(layer.to_values.weight.dtype):
        y, state = layer.step(x, state)
        outputs.append(y)
    return torch.stack(outputs), state


def assert_same(found: Steps, wanted: Steps, tolerance: float = DOUBLE) -> None:
    names = {"y": found[0]} | found[1].tensors()
    for name, x in ({"y": wanted[0]} | wanted[1].tensors()).items():
        scale = float(x[x.isfinite()].double().square().mean().sqrt()) if x.numel() else 0.0
        torch.testing.assert_close(
            names[name], x, rtol=0, atol=tolerance * scale + 1e-300, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=options(), batch=st.sampled_from([0, 1, 2, 5, 33]))
def test_equals_the_modules(chosen: dict[str, Any], batch: int, isa: str, calls: list[str]) -> None:
    layer = make(**chosen)
    calls.clear()
    wanted = run(layer, batch)
    assert not calls
    with torch.no_grad():
        found = run(layer, batch)
    assert calls == ["layer_output"] * 4
    assert_same(found, wanted)


@pytest.mark.parametrize("batch", [1, 33])
def test_float32_is_as_close_as_the_modules(batch: int) -> None:
    chosen = {"dim": 128, "scope": 64, "gate": True, "out_norm": True, "short_conv": 4, "decay": True}
    exact = run(make(**chosen), batch, steps=20)[0].detach()
    layer = make(torch.float32, **chosen)
    plain = run(layer, batch, steps=20)[0].detach()
    with torch.no_grad():
        found = run(layer, batch, steps=20)[0]
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 2 * (plain - exact).norm() + 1e-7 * exact.norm()


@torch.inference_mode()
def test_a_hundred_thousand_steps_in_float32_do_not_drift(calls: list[str]) -> None:
    steps = 100_000
    layer = make(torch.float32, dim=4, dim_out=8, dim_k=4, num_heads=2, scope=2)
    x = torch.randn(1, 4, steps)
    exact = copy.deepcopy(layer).double()
    wanted, wanted_state = exact(x.double(), return_state=True)
    state = layer.initial_state(1)
    for x_t in x[0].T.contiguous().split(1):
        y, state = layer.step(x_t, state)
    assert len(calls) == steps
    assert (state.log_norm - wanted_state.log_norm).abs().max() < 1e-6
    assert (state.summary - wanted_state.summary).norm() < 3e-5 * wanted_state.summary.norm()
    assert (y - wanted[:, :, -1]).norm() < 2e-6 * wanted[:, :, -1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_results_do_not_depend_on_threads(dtype: torch.dtype, threads: None, calls: list[str]) -> None:
    layer, found = make(dtype, dim=128, scope=64, gate=True, short_conv=3), []
    for number in (1, 2, 3, 1):
        torch.set_num_threads(number)
        found.append(run(layer, 33))
    assert set(calls) == {"layer_output"}
    for other in found[1:]:
        assert_same(other, found[0], tolerance=0)


@torch.no_grad()
def test_rows_of_a_batch_are_steps_of_their_own() -> None:
    layer = make(torch.float32, dim=128, short_conv=3, gate=True)
    x = torch.randn(7, 128)
    state = run(layer, 7)[1]
    whole = layer.step(x, state)
    for i in range(7):
        y, after = layer.step(x[i : i + 1], state.select(i))
        assert_same((y, after), (whole[0][i : i + 1], whole[1].select(i)), tolerance=0)


@torch.no_grad()
def test_states_and_inputs_of_any_strides_stay_as_they_are(calls: list[str]) -> None:
    layer = make(short_conv=3, dim_u=2)
    state = run(layer, 4)[1]
    strided = state._map(lambda _, x: x.repeat_interleave(2, dim=-1)[..., ::2] if x.ndim > 1 else x)
    expanded = state.select(0)._map(lambda _, x: x.expand(4, *x.shape[1:]))
    x = torch.randn(12, 4, dtype=torch.float64).T
    before = copy.deepcopy((x, strided))
    wanted = layer.step(x.contiguous(), state)
    assert_same(layer.step(x, strided), wanted, tolerance=0)
    y, after = layer.step(x, expanded)
    assert_same((y[:1], after.select(0)), layer.step(x[:1], state.select(0)), tolerance=0)
    assert torch.equal(x, before[0])
    assert_same((x, strided), before, tolerance=0)
    assert set(calls) == {"layer_output"}


def hooked(layer: LambdaLayer1d) -> None:
    layer.to_keys.register_forward_hook(lambda module, inputs, y: 2 * y)


def hooked_norm(layer: LambdaLayer1d) -> None:
    layer.norm_values.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def replaced(layer: LambdaLayer1d) -> None:
    layer.to_values = nn.Sequential(layer.to_values, nn.Tanh())
    layer.to_values.weight = layer.to_values[0].weight


def replaced_norm(layer: LambdaLayer1d) -> None:
    layer.norm_queries = nn.GroupNorm(4, 64, dtype=torch.float64)


def biased(layer: LambdaLayer1d) -> None:
    layer.to_queries = nn.Conv1d(12, 64, 1, dtype=torch.float64)


def assigned(layer: LambdaLayer1d) -> None:
    whole = layer.to_keys.forward
    layer.to_keys.forward = lambda x: whole(x) + 1


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized(layer: LambdaLayer1d) -> None:
    nn.utils.parametrize.register_parametrization(layer, "positions", Doubled())


def parametrized_weight(layer: LambdaLayer1d) -> None:
    nn.utils.parametrize.register_parametrization(layer.to_keys, "weight", Doubled())


CHANGES = [hooked, hooked_norm, replaced, replaced_norm, biased, assigned, parametrized, parametrized_weight]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_modules_are_called(change: Callable[[LambdaLayer1d], None], calls: list[str]) -> None:
    layer = make()
    change(layer)
    wanted = run(layer, 2)
    with torch.no_grad():
        found = run(layer, 2)
    assert calls == ["output"] * 4
    assert_same(found, wanted)


def test_batch_norms_are_modules(calls: list[str]) -> None:
    layer = make(norm="batch")
    wanted = run(layer, 3)
    with torch.no_grad():
        assert_same(run(layer, 3), wanted)
    assert calls == ["output"] * 4


@pytest.mark.parametrize("name", ["gradients", "bfloat16", "autocast", "vmap", "compile", "off"])
def test_the_library_serves_eager_steps_without_gradients(
    name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make(torch.bfloat16 if name == "bfloat16" else torch.float32), torch.randn(1, 12)
    state = layer.initial_state(1)
    with torch.set_grad_enabled(name == "gradients"):
        if name == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                layer.step(x, state)
        elif name == "vmap":
            torch.func.vmap(lambda x: layer.step(x, state)[0])(x[None])
        elif name == "compile":
            torch.compile(lambda x: layer.step(x, state)[0], backend="eager")(x)
        elif name == "off":
            monkeypatch.setenv(native.library.SWITCH, "0")
            native.library.refresh()
            layer.step(x, state)
            monkeypatch.undo()
            native.library.refresh()
        else:
            layer.step(x.to(layer.to_values.weight.dtype), state)
    assert not calls


@torch.no_grad()
def test_a_step_follows_a_change_of_the_weights() -> None:
    """Nothing is cached: weights change in place, by assignment of data and in their dtype."""
    layer = make()
    for change in (
        lambda: layer.to_keys.weight.mul_(2),
        lambda: setattr(layer.positions, "data", layer.positions.data.flip(0)),
        lambda: layer.float(),
        lambda: layer.double(),
    ):
        change()
        with torch.enable_grad():
            wanted = run(layer, 2)
        assert_same(
            run(layer, 2), wanted, tolerance=1e-5 if layer.positions.dtype == torch.float32 else DOUBLE
        )
