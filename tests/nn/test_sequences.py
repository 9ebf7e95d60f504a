"""Causal layers as recurrent ones, against loops over positions that are written from the formulas."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from closeness import assert_close
from lambdanets import LambdaLayer1d
from lambdanets.nn.states import LambdaState

DIM, HEADS, DIM_K, DIM_V = 8, 4, 3, 2
ONE_SENTENCE = r"^[^\n]+$"
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "content": {"scope": None, "position": False},
    "position": {"content": False},
    "no-norm": {"norm": None},
    "decay": {"decay": True},
    "key-heads": {"key_heads": 2},
    "short-conv": {"short_conv": 3},
    "short-conv-position": {"short_conv": 4, "content": False},
    "gate": {"gate": True, "out_norm": True},
    "l2": {"normalize": "l2", "decay": True},
    "none": {"normalize": "none", "decay": True, "out_norm": True},
    "softmax-both": {"normalize": "softmax_both"},
    "dilated": {"scope": 3, "dilation": 3},
    "scope-one": {"scope": 1},
    "global": {"scope": None, "grid": 7},
    "all": {
        "dim_u": 2, "decay": True, "key_heads": 4, "short_conv": 2, "gate": True, "out_norm": True,
        "position_bias": True, "dilation": 2,
    },
}  # fmt: skip


def make(**options: Any) -> LambdaLayer1d:
    """Return a causal layer in float64 whose parameters are all random."""
    torch.manual_seed(0)
    given = {"scope": 4, "causal": True, "norm": "rms", "dtype": torch.float64} | options
    layer = LambdaLayer1d(DIM, HEADS * DIM_V, dim_k=DIM_K, num_heads=HEADS, **given)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer.eval()


def sequences(batch: int, n: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, DIM, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms_normalised(norm: torch.nn.Module, x: Tensor) -> Tensor:
    """Apply a layer's RMS norm, or none, to one position, a vector."""
    if isinstance(norm, torch.nn.Identity):
        return x
    return x / (x.square().mean() + 1e-5).sqrt() * norm.weight


@torch.no_grad()
def by_loops(layer: LambdaLayer1d, x: Tensor) -> Tensor:
    """Return the output of one sequence `[dim, n]`, position by position, from the formulas."""
    n, (dim_k, dim_u) = x.shape[1], (layer.dim_k, layer.dim_u)
    sets = layer.key_heads
    raw = torch.cat([p.weight[:, :, 0] for p in layer._parts()]) @ x  # [channels, n]
    if layer.short_conv is not None:
        taps, mixed = len(layer.short_conv), torch.zeros_like(raw)
        for i in range(n):
            for tap in range(taps):
                source = i - (taps - 1 - tap)
                if source >= 0:
                    mixed[:, i] += layer.short_conv[tap] * raw[:, source]
        raw = mixed
    q, k, v = [], [], []
    for i in range(n):
        queries, values, *keys = raw[:, i].split([p.out_channels for p in layer._parts()])
        q.append(rms_normalised(layer.norm_queries, queries).view(HEADS, dim_k))
        if layer.normalize == "softmax_both":
            q[-1] = q[-1].softmax(-1)
        v.append(rms_normalised(layer.norm_values, values).view(DIM_V, dim_u))
        k.append(keys[0].view(sets, dim_k, dim_u) if keys else None)
    rate = torch.zeros(dim_k, dim_u) if layer.log_decay is None else layer.log_decay.exp()
    columns = []
    for i in range(n):
        y = torch.zeros(HEADS, DIM_V, dtype=torch.float64)
        for h in range(HEADS):
            group = h // (HEADS // sets)
            lambda_ = torch.zeros(dim_k, DIM_V, dtype=torch.float64)
            if layer.content:
                forgotten = torch.stack([rate * (i - m) for m in range(i + 1)])  # [m, k, u]
                keys = torch.stack([k[m][group] for m in range(i + 1)])
                if layer.normalize in ("softmax", "softmax_both"):
                    weights = (keys - forgotten).softmax(0)
                else:
                    weights = keys * (-forgotten).exp()
                    if layer.normalize == "l2":
                        weights = weights / weights.square().sum(0).sqrt()
                for m in range(i + 1):
                    lambda_ += torch.einsum("ku,vu->kv", weights[m], v[m])
            if layer.positions is not None:
                for entry in range(len(layer.positions)):
                    m = i - (len(layer.positions) - 1 - entry) * layer.dilation[0]
                    if m >= 0:
                        lambda_ += torch.einsum("ku,vu->kv", layer.positions[entry], v[m])
            if layer.position_bias is not None:
                lambda_ += layer.position_bias[:, None]
            y[h] = q[i][h] @ lambda_
        if layer.out_norm is not None:
            y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.out_norm.view(HEADS, DIM_V)
        y = y.flatten()
        if layer.to_gate is not None:
            gate = layer.to_gate.weight[:, :, 0] @ x[:, i]
            y = y * gate / (1 + (-gate).exp())
        columns.append(y)
    return torch.stack(columns, dim=1)


def expected(layer: LambdaLayer1d, x: Tensor) -> Tensor:
    return torch.stack([by_loops(layer, row) for row in x])


def assert_same_state(actual: LambdaState, wanted: LambdaState) -> None:
    assert actual.tensors().keys() == wanted.tensors().keys()
    for name, x in wanted.tensors().items():
        torch.testing.assert_close(
            actual.tensors()[name], x, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def in_chunks(layer: LambdaLayer1d, x: Tensor, sizes: list[int]) -> tuple[Tensor, LambdaState]:
    """Return output and state of a sequence that is given in chunks."""
    state, parts = layer.initial_state(len(x)), []
    for part in x.split(sizes, dim=2):
        y, state = layer(part, state=state, return_state=True)
        parts.append(y)
    return torch.cat(parts, dim=2), state


def in_steps(layer: LambdaLayer1d, x: Tensor) -> tuple[Tensor, LambdaState]:
    state, parts = layer.initial_state(len(x)), []
    for i in range(x.shape[2]):
        y, state = layer.step(x[:, :, i], state)
        parts.append(y)
    return torch.stack(parts, dim=2), state


@pytest.mark.parametrize("name", OPTIONS)
def test_a_layer_equals_the_loops_of_its_formulas(name: str) -> None:
    layer, x = make(**OPTIONS[name]), sequences(2, 13)
    wanted = expected(layer, x)
    assert_close(layer(x), wanted)
    y, state = layer(x, return_state=True)
    assert_close(y, wanted)
    assert state.length.tolist() == [13, 13]


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_chunks_and_steps_give_the_result_of_the_whole(name: str, sizes: list[int], way: str) -> None:
    layer, x = make(**OPTIONS[name]), sequences(2, sum(sizes))
    y, state = layer(x, return_state=True)
    for given_y, given_state in (in_chunks(layer, x, sizes), in_steps(layer, x)):
        assert_close(given_y, y)
        assert_same_state(given_state, state)


@pytest.mark.parametrize("kind", ["autograd", "inference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_and_chunks_in_lower_precision(dtype: torch.dtype, kind: str) -> None:
    exact = make(decay=True, short_conv=3, key_heads=2)
    layer, x = copy.deepcopy(exact).to(dtype), sequences(2, 21)
    plain = layer(x.to(dtype)) - expected(exact, x)
    with torch.inference_mode(kind == "inference"):
        for y, state in (in_chunks(layer, x.to(dtype), [1, 7, 13]), in_steps(layer, x.to(dtype))):
            assert y.dtype == state.values.dtype == dtype
            assert state.summary.dtype == torch.float32
            assert (y - expected(exact, x)).abs().max() <= 2 * plain.abs().max() + 1e-5


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("continued", [False, True], ids=["new", "continued"])
def test_padding_on_either_side_changes_nothing(name: str, continued: bool) -> None:
    """Its values are huge, so that a leak would show."""
    layer, lengths = make(**OPTIONS[name]), [5, 9, 1, 0]
    before = sequences(4, 6, seed=2)
    state = layer(before, return_state=True)[1] if continued else None
    x = sequences(4, 9)
    for left in (False, True):
        mask, rows = torch.zeros(4, 9, dtype=torch.bool), torch.full_like(x, 1e6)
        for i, length in enumerate(lengths):
            part = slice(9 - length, 9) if left else slice(0, length)
            mask[i, part], rows[i, :, part] = True, x[i, :, :length]
        y, final = layer(rows, mask=mask, state=state, return_state=True)
        for i, length in enumerate(lengths):
            given = layer.initial_state(1) if state is None else state.select(i)
            if length:
                wanted, given = layer(x[i : i + 1, :, :length], state=given, return_state=True)
                assert_close(y[i][:, mask[i]], wanted[0])
            assert_same_state(final.select(i), given)


def test_a_mask_without_a_state_still_hides_any_elements() -> None:
    layer, x = make(), sequences(1, 7)
    mask = torch.tensor([[True, False, True, True, False, True, False]])
    changed = x.masked_fill(~mask[:, None], 100.0)
    assert_close(layer(changed, mask=mask)[:, :, mask[0]], layer(x, mask=mask)[:, :, mask[0]])


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_packed_sequences_do_not_see_each_other(name: str, lengths: list[int]) -> None:
    layer, x = make(**OPTIONS[name]), sequences(1, sum(lengths))
    boundaries = torch.tensor([0, *lengths]).cumsum(0)
    before = layer(sequences(len(lengths), 5, seed=2), return_state=True)[1]
    for state in (None, before):
        y, final = layer(x, cu_seqlens=boundaries, state=state, return_state=True)
        assert final.batch == len(lengths)
        for i, (first, last) in enumerate(pairwise(boundaries.tolist())):
            given = layer.initial_state(1) if state is None else state.select(i)
            if first < last:
                wanted, given = layer(x[:, :, first:last], state=given, return_state=True)
                assert_close(y[:, :, first:last], wanted)
            assert_same_state(final.select(i), given)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_no_gradient_comes_from_later_positions_or_other_packed_sequences(name: str) -> None:
    layer = make(**OPTIONS[name])
    x = sequences(1, 12).requires_grad_()
    for position in (0, 5, 11):
        (gradient,) = torch.autograd.grad(layer(x)[0, :, position].sum(), x)
        assert (gradient[0, :, position + 1 :] == 0).all()
        assert (gradient[0, :, : position + 1] != 0).any(0).all()
    y = layer(x, cu_seqlens=torch.tensor([0, 4, 9, 12]))
    (gradient,) = torch.autograd.grad(y[0, :, 6].sum(), x)
    assert (gradient[0, :, :4] == 0).all()
    assert (gradient[0, :, 7:] == 0).all()
    assert (gradient[0, :, 4:7] != 0).any(0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_chunks_padding_and_packing_are_those_of_the_whole(name: str) -> None:
    layer, x = make(**OPTIONS[name]), sequences(2, 11)
    upstream = torch.randn(2, HEADS * DIM_V, 11, dtype=torch.float64)

    def gradients(function: Any) -> list[Tensor]:
        given = x.clone().requires_grad_()
        return list(torch.autograd.grad((function(given) * upstream).sum(), [given, *layer.parameters()]))

    def padded(x: Tensor) -> Tensor:
        mask = torch.zeros(2, 15, dtype=torch.bool)
        mask[:, 3:14] = True
        rows = torch.cat([x.new_full((2, DIM, 3), 9.0), x, x.new_full((2, DIM, 1), 9.0)], dim=2)
        return layer(rows, mask=mask, return_state=True)[0][:, :, 3:14]

    def packed(x: Tensor) -> Tensor:
        row = x.transpose(0, 1).flatten(1)[None]
        return layer(row, cu_seqlens=torch.tensor([0, 11, 22]))[0].unflatten(1, (2, 11)).transpose(0, 1)

    wanted = gradients(layer)
    ways = {
        "chunks": lambda x: in_chunks(layer, x, [4, 1, 6])[0],
        "steps": lambda x: in_steps(layer, x)[0],
        "padded": padded,
        "packed": packed,
    }
    for way, function in ways.items():
        for actual, gradient in zip(gradients(function), wanted, strict=True):
            assert_close(actual, gradient, name=way)


def test_the_state_may_be_the_second_argument() -> None:
    layer, x = make(), sequences(1, 8)
    _, state = layer(x[:, :, :5], return_state=True)
    assert torch.equal(layer(x[:, :, 5:], state), layer(x[:, :, 5:], state=state))
    with pytest.raises(ValueError, match="two states"):
        layer(x, state, state=state)


def test_gradients_stop_at_a_detached_state() -> None:
    layer, x = make(), sequences(1, 8).requires_grad_()
    _, state = layer(x[:, :, :5], return_state=True)
    for before, reaches in ((state, True), (state.detach(), False)):
        y = layer(x[:, :, 5:], state=before)
        (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert bool((gradient[:, :, :5] != 0).any()) is reaches
        assert (gradient[:, :, 5:] != 0).any()


@pytest.mark.parametrize("rows", [1, slice(0, 2), [2, 0], [2, 2, 1, 1], torch.tensor([True, False, True])])
def test_selected_rows_continue_as_their_sequences(rows: Any) -> None:
    layer, x = make(**OPTIONS["all"]), sequences(3, 9)
    _, state = layer(x[:, :, :6], return_state=True)
    chosen = x[rows] if not isinstance(rows, int) else x[[rows]]
    y = layer(chosen[:, :, 6:], state=state.select(rows))
    assert_close(y, layer(chosen)[:, :, 6:])


def test_reset_rows_begin_anew_and_the_others_go_on() -> None:
    layer, x = make(**OPTIONS["all"]), sequences(3, 9)
    _, state = layer(x[:, :, :6], return_state=True)
    y = layer(x[:, :, 6:], state=state.reset([1]))
    assert_close(y[1:2], layer(x[1:2, :, 6:]))
    assert_close(y[[0, 2]], layer(x[[0, 2]])[:, :, 6:])
    assert_same_state(state.reset(), layer.initial_state(3))
    assert state.length.tolist() == [6, 6, 6]  # the given state is unchanged


def test_a_state_has_a_constant_size_and_converts() -> None:
    layer, x = make(), sequences(2, 40)
    _, state = layer(x, return_state=True)
    content, positions = DIM_K * (DIM_V + 1), 3 * DIM_V
    assert state.nbytes == 2 * 8 * (content + positions + 1) == layer.initial_state(2).nbytes
    half = state.to(torch.bfloat16)
    assert (half.values.dtype, half.summary.dtype) == (torch.bfloat16, torch.float32)
    assert half.length.dtype == torch.int64
    assert state.to("meta").summary.is_meta
    assert not state.detach().summary.requires_grad


@pytest.mark.parametrize("options", [*OPTIONS.values(), {"normalize": "none"}])
def test_a_state_keeps_no_memory_of_earlier_positions(options: dict[str, Any]) -> None:
    with torch.no_grad():
        _, state = make(**options)(sequences(1, 500), return_state=True)
    for x in state.tensors().values():
        assert x.untyped_storage().nbytes() <= 2 * x.nbytes


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_under_autocast_have_the_dtype_of_a_call(name: str) -> None:
    layer, x = make(**OPTIONS[name]).float(), sequences(2, 5).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, state = in_steps(layer, x)
        assert y.dtype == layer(x).dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.1)
    assert state.values is None or state.values.dtype == torch.float32


@pytest.mark.parametrize("value", [80.0, -80.0, 0.0])
def test_keys_far_from_zero_and_constant_keys_stay_finite(value: float, way: str) -> None:
    layer, x = make(decay=True).float(), sequences(2, 50).float()
    with torch.no_grad():
        layer.to_keys.weight.fill_(0 if value == 0 else value / x.sum(1).abs().max())
    exact = expected(copy.deepcopy(layer).double(), x.double())
    for y, state in (in_chunks(layer, x, [20, 30]), in_steps(layer, x)):
        assert all(t.isfinite().all() for t in state.tensors().values())
        torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


def test_any_memory_format_and_an_empty_batch() -> None:
    layer, x = make(**OPTIONS["all"]), sequences(2, 9)
    by_position = x.mT.contiguous().mT
    assert_close(layer(by_position), layer(x))
    assert layer(by_position).stride() == by_position.stride()
    y, state = layer(x[:0], return_state=True)
    assert (y.shape, state.batch) == ((0, 8, 9), 0)
    assert layer.step(x[:0, :, 0], state)[0].shape == (0, 8)


def test_a_bidirectional_layer_with_options_sees_both_sides() -> None:
    layer = LambdaLayer1d(8, scope=3, norm="rms", gate=True, out_norm=True, table_init="decay")
    x = torch.randn(2, 8, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 4].sum(), x)
    assert (gradient[0] != 0).any(0).all()


def test_the_table_may_begin_small_far_away() -> None:
    torch.manual_seed(0)
    layer = LambdaLayer1d(8, scope=64, dim_k=64, causal=True, norm=None, table_init="decay")
    spread = layer.positions.std((1, 2))
    torch.testing.assert_close(spread, 1 / (64 - torch.arange(64.0)), rtol=0.4, atol=0)
    centred = LambdaLayer1d(8, scope=65, dim_k=64, norm=None, table_init="decay").positions.std((1, 2))
    torch.testing.assert_close(centred, 1 / (1 + (torch.arange(65) - 32.0).abs()), rtol=0.4, atol=0)


def test_table_dropout_leaves_out_offsets_in_training_alone() -> None:
    layer = make(table_dropout=0.5, content=False)
    x = sequences(1, 9)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    torch.manual_seed(0)
    outputs = torch.stack([layer(x) for _ in range(400)])
    assert len(outputs.unique(dim=0)) == 2**4
    mean, spread = outputs.mean(0), outputs.std(0)
    assert ((mean - layer.eval()(x)).abs() <= 5 * spread / len(outputs) ** 0.5 + 1e-12).all()


def test_table_dropout_leaves_out_offsets_in_steps_too(way: str) -> None:
    layer = make(table_dropout=0.5, content=False)
    state, x = layer(sequences(1, 8), return_state=True)[1], sequences(1, 1)[:, :, 0]
    assert torch.equal(layer.step(x, state)[0], layer.step(x, state)[0])
    layer.train()
    torch.manual_seed(0)
    assert len({layer.step(x, state)[0].sum().item() for _ in range(100)}) == 2**4


REFUSED = {
    "another-layer": (lambda s: make(scope=5).initial_state(2), "its values is (2, 4, 2, 1)"),
    "without-content": (lambda s: make(content=False).initial_state(2), "of another layer: its"),
    "another-batch": (lambda s: s.select([0, 1, 0]), "the state has 3 rows and this call 2"),
    "another-dtype": (
        lambda s: s.to(torch.float32),
        "torch.float32 on cpu, this layer needs torch.float64",
    ),
    "another-device": (lambda s: s.to("meta"), "on meta, this layer needs"),
    "no-state": (lambda s: (s.summary, s.values), "LambdaState"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_of_other_layers_batches_dtypes_and_devices_are_refused(name: str) -> None:
    layer, x = make(), sequences(2, 5)
    change, sentence = REFUSED[name]
    state = change(layer(x, return_state=True)[1])
    for call in (lambda: layer(x, state=state), lambda: layer.step(x[:, :, 0], state)):
        with pytest.raises(ValueError, match=ONE_SENTENCE) as error:
            call()
        assert sentence in str(error.value)


def packed(layer: LambdaLayer1d, x: Tensor, boundaries: list[float], **options: Any) -> Tensor:
    return layer(x[:1], cu_seqlens=torch.tensor(boundaries), **options)


def masked(layer: LambdaLayer1d, x: Tensor, mask: list[list[int]]) -> Tensor:
    return layer(x, mask=torch.tensor(mask) > 0, return_state=True)[0]


CALLS = {
    "step-of-a-bidirectional-layer": (
        lambda layer, x: LambdaLayer1d(8, scope=3, norm=None).step(x[:, :, 0], None), "causal=True"
    ),
    "state-of-a-bidirectional-layer": (
        lambda layer, x: LambdaLayer1d(8, scope=3, norm=None).initial_state(2), "causal=True"
    ),
    "packed-bidirectional": (
        lambda layer, x: packed(LambdaLayer1d(8, scope=3, norm=None), x, [0, 5]),
        "causal=True",
    ),
    "step-of-a-sequence": (lambda layer, x: layer.step(x, layer.initial_state(2)), "(b 8)"),
    "step-after-packing": (
        lambda layer, x: layer.step(
            x[:1, :, 0], layer(x[:1], cu_seqlens=torch.tensor([0, 2, 5]), return_state=True)[1]
        ),
        "the state has 2 rows and this call 1",
    ),
    "boundaries-too-short": (lambda layer, x: packed(layer, x, [0, 4]), "n=5, got 0 to 4"),
    "boundaries-too-late": (lambda layer, x: packed(layer, x, [1, 5]), "got 1 to 5"),
    "boundaries-backwards": (lambda layer, x: packed(layer, x, [0, 3, 2, 5]), "2 follows 3"),
    "boundaries-of-floats": (lambda layer, x: packed(layer, x, [0.0, 5.0]), "integers"),
    "no-boundaries": (lambda layer, x: layer(x[:1], cu_seqlens=torch.arange(0)), "nothing"),
    "boundaries-for-rows": (lambda layer, x: layer(x, cu_seqlens=torch.tensor([0, 5])), "2 rows"),
    "boundaries-and-mask": (lambda layer, x: packed(layer, x, [0, 5], mask=torch.ones(1, 5) > 0), "exclude"),
    "packed-with-batch-statistics": (
        lambda layer, x: packed(make(norm="batch").train(), x, [0, 2, 5]), "call eval() first"
    ),
    "holes": (lambda layer, x: masked(layer, x, [[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), "neighbours"),
    "context": (lambda layer, x: layer(x, x, return_state=True), "no context"),
    "mask-shape": (lambda layer, x: masked(layer, x, [[1, 1, 1, 1]]), "(b, n) = (2, 5)"),
    "key-heads": (lambda layer, x: make(key_heads=3), "divides num_heads=4"),
    "one-tap": (lambda layer, x: make(short_conv=1), "at least 2 taps"),
    "table-init": (lambda layer, x: make(table_init="decayed"), "did you mean decay"),
    "table-dropout": (lambda layer, x: make(table_dropout=1.0), "below 1"),
    "decay-of-both-sides": (lambda layer, x: make(causal=False, decay=True), "decay needs causal=True"),
    "decay-without-content": (lambda layer, x: make(content=False, decay=True), "decay is for the content"),
    "dropout-without-table": (
        lambda layer, x: make(scope=None, position=False, table_dropout=0.1), "table_dropout is for"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused_in_one_sentence(name: str) -> None:
    call, sentence = CALLS[name]
    with pytest.raises(ValueError, match=ONE_SENTENCE) as error:
        call(make(), sequences(2, 5))
    assert sentence in str(error.value)


def test_script_serves_the_plain_layer_and_refuses_the_options() -> None:
    layer, x = make(), sequences(2, 7)
    assert_close(torch.jit.script(layer)(x), layer(x))
    with pytest.raises(ValueError, match=r"torch\.jit\.script serves"):
        torch.jit.script(make(gate=True))
