"""The layers on sequences that the lambda layer is compared with, and what all of them promise."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sequence_oracles as oracles
from closeness import assert_close
from lambdanets.nn import Attention1d, Convolution1d, GRU1d, LinearAttention1d
from lambdanets.nn.attention_1d import _Buffer
from lambdanets.nn.sequence_layer import SequenceLayer
from lambdanets.nn.states import SequenceState

DIM, DIM_OUT = 6, 8
CAUSAL: dict[str, Callable[..., SequenceLayer]] = {
    "attention": lambda **f: Attention1d(DIM, DIM_OUT, num_heads=2, **f),
    "attention of window 3": lambda **f: Attention1d(DIM, DIM_OUT, num_heads=2, window=3, **f),
    "attention of window 1": lambda **f: Attention1d(DIM, DIM_OUT, num_heads=2, window=1, **f),
    "linear attention": lambda **f: LinearAttention1d(DIM, DIM_OUT, num_heads=2, **f),
    "convolution": lambda **f: Convolution1d(DIM, DIM_OUT, taps=4, **f),
    "convolution of one tap": lambda **f: Convolution1d(DIM, DIM_OUT, taps=1, **f),
    "depthwise convolution": lambda **f: Convolution1d(DIM, DIM, taps=5, depthwise=True, **f),
    "gru": lambda **f: GRU1d(DIM, DIM_OUT, **f),
    "gated attention": lambda **f: Attention1d(DIM, DIM_OUT, num_heads=2, gate=True, **f),
    "gated gru": lambda **f: GRU1d(DIM, DIM_OUT, gate=True, **f),
}
CENTRED: dict[str, Callable[..., SequenceLayer]] = {
    f"{name}, not causal": lambda build=build, **f: build(causal=False, **f) for name, build in CAUSAL.items()
}
ALL = CAUSAL | CENTRED
ORACLES = {
    Attention1d: oracles.attention,
    LinearAttention1d: oracles.linear_attention,
    Convolution1d: oracles.convolution,
    GRU1d: oracles.gru,
}


def layer_named(name: str) -> SequenceLayer:
    return ALL[name](dtype=torch.float64)


def expected(layer: SequenceLayer, x: Tensor) -> Tensor:
    """The output of `[b, dim, n]` by the oracle, sequence by sequence."""
    return torch.stack([oracle(layer, row) for row in x])


def oracle(layer: SequenceLayer, x: Tensor) -> Tensor:
    """The output of one sequence `[dim, n]`, `[dim_out, n]`."""
    y = ORACLES[type(layer)](layer, x)
    if layer.to_gate is not None:
        gate = layer.to_gate.weight @ x
        y = y * gate / (1 + (-gate).exp())
    return y


def inputs(b: int, n: int) -> Tensor:
    return torch.randn(b, DIM, n, dtype=torch.float64)


def assert_equal_states(actual, expected) -> None:
    assert type(actual) is type(expected)
    for field in fields(actual):
        if field.name == "positions":
            assert torch.equal(actual.positions, expected.positions)
        else:
            assert_close(getattr(actual, field.name).double(), getattr(expected, field.name).double())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("b", "n"), [(2, 13), (3, 1), (1, 2)])
def test_forward_computes_the_equation(name: str, b: int, n: int) -> None:
    layer, x = layer_named(name), inputs(b, n)
    assert_close(layer(x), expected(layer, x))
    by_position = x.mT.contiguous().mT
    assert_close(layer(by_position), expected(layer, x))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("grad", [False, True])
def test_steps_and_any_chunks_equal_the_whole(name: str, grad: bool) -> None:
    layer, x = layer_named(name), inputs(3, 70)
    with torch.set_grad_enabled(grad):
        whole, end = layer(x, return_state=True)
        state, outputs = layer.initial_state(3), []
        for i in range(70):
            y, state = layer.step(x[:, :, i], state)
            outputs.append(y)
        assert_close(torch.stack(outputs, 2), whole)
        assert_equal_states(state, end)
        for seed in range(5):
            torch.manual_seed(seed)
            cuts = [0, *sorted(torch.randperm(69)[:6].add(1).tolist()), 70]
            state, outputs = None, []
            for begin, stop in pairwise(cuts):
                if stop - begin == 1 and state is not None:
                    y, state = layer.step(x[:, :, begin], state)
                    y = y[..., None]
                else:
                    y, state = layer(x[:, :, begin:stop], state, return_state=True)
                outputs.append(y)
            assert_close(torch.cat(outputs, 2), whole)
            assert_equal_states(state, end)
    assert end.length.tolist() == [70] * 3


@pytest.mark.parametrize("name", ["attention", "attention of window 3", "linear attention"])
@pytest.mark.parametrize("causal", [True, False])
def test_long_sequences(name: str, causal: bool) -> None:
    """They are computed in chunks or by PyTorch's fused kernel, so not as the short ones above."""
    layer, x = CAUSAL[name](causal=causal, dtype=torch.float64), inputs(2, 300)
    whole = layer(x)
    mask = torch.ones(2, 302, dtype=torch.bool)
    mask[:, -2:] = False
    assert_close(layer(torch.cat([x, x[:, :, :2]], 2), mask=mask)[:, :, :300], whole)
    for i in (0, 150, 299):
        part = x[:, :, : i + 1] if causal else x
        assert_close(whole[:, :, i], masked_attention(layer, part)[:, :, i])
    if causal:
        first, state = layer(x[:, :, :20], return_state=True)
        assert_close(torch.cat([first, layer(x[:, :, 20:], state)], 2), whole)


def masked_attention(layer, x: Tensor) -> Tensor:
    """Attention or linear attention by its complete map, `[b, dim_out, n]`."""
    n = x.shape[2]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    rows = []
    for row in x:
        q, k, v = (part.transpose(0, 1) for part in oracles.heads(layer, row))  # [h, n, d]
        if isinstance(layer, LinearAttention1d):
            weights = (torch.nn.functional.elu(q) + 1) @ (torch.nn.functional.elu(k) + 1).mT
            weights = weights * (distance >= 0) if layer.causal else weights
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        else:
            q, k = (
                torch.stack(
                    [torch.stack([oracles.rotated(y[i], i, layer.base) for i in range(n)]) for y in part]
                )
                for part in (q, k)
            )
            seen = torch.tensor([[oracles.sees(layer, i, j) for j in range(n)] for i in range(n)])
            weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        rows.append((weights @ v).mT.flatten(0, 1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CAUSAL)
def test_no_output_depends_on_a_later_input(name: str) -> None:
    layer, x = layer_named(name), inputs(1, 9).requires_grad_()
    for i in range(9):
        (gradient,) = torch.autograd.grad(layer(x)[:, :, i].sum(), x)
        assert gradient[:, :, i + 1 :].count_nonzero() == 0
        assert gradient[:, :, i].count_nonzero() > 0


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_pass_through_the_state_unless_it_is_detached(name: str) -> None:
    layer, x = layer_named(name), inputs(2, 11)
    target = torch.randn_like(layer(x))

    def gradients(compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (compute(leaf) * target).sum().backward()
        found = [leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
        layer.zero_grad()
        return found

    def chunks(leaf: Tensor) -> Tensor:
        first, state = layer(leaf[:, :, :5], return_state=True)
        middle, state = layer.step(leaf[:, :, 5], state)
        return torch.cat([first, middle[..., None], layer(leaf[:, :, 6:], state)], 2)

    for actual, exact in zip(gradients(chunks), gradients(layer), strict=True):
        assert_close(actual, exact)
    leaf = x.clone().requires_grad_()
    _, state = layer(leaf, return_state=True)
    y, _ = layer.step(x[:, :, 0], state.detach())
    assert not torch.autograd.grad(y.sum(), leaf, allow_unused=True)[0]


def padded(x: Tensor, rows: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return `x` with huge and non-finite padding outside the runs [begin, stop) of its rows, and a mask."""
    columns = torch.arange(x.shape[2])
    mask = torch.stack([(columns >= begin) & (columns < stop) for begin, stop in rows])
    filled = torch.where(mask[:, None], x, 1e30)
    filled[:, :, -1:] = torch.where(mask[:, None, -1:], filled[:, :, -1:], torch.nan)
    return filled, mask


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "runs", [[(0, 9), (0, 4), (0, 1)], [(3, 9), (2, 7), (0, 9)], [(0, 0), (4, 4), (1, 6)]]
)
def test_padding_has_no_effect(name: str, runs: list[tuple[int, int]]) -> None:
    layer = layer_named(name)
    x, mask = padded(inputs(3, 9), runs)
    x.requires_grad_()
    y = layer(x, mask=mask)
    for row, (begin, stop) in enumerate(runs):
        if begin < stop:
            assert_close(y[row, :, begin:stop], oracle(layer, x[row, :, begin:stop]))
    assert y.mT[~mask].count_nonzero() == 0
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.mT[~mask].count_nonzero() == 0


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("grad", [False, True])
def test_padding_leaves_the_state_as_it_is(name: str, grad: bool) -> None:
    layer, x = layer_named(name), inputs(3, 40)
    seen: list[list[Tensor]] = [[], [], []]
    outputs: list[list[Tensor]] = [[], [], []]
    state = None
    with torch.set_grad_enabled(grad):
        for runs in ([(0, 5), (2, 5), (0, 0)], [(0, 3), (5, 5), (1, 4)], [(0, 5), (0, 2), (0, 5)], None):
            chunk = inputs(3, 5)
            if runs is None:
                y, state = layer(chunk, state, return_state=True)
                runs = [(0, 5)] * 3
            else:
                filled, mask = padded(chunk, runs)
                y, state = layer(filled, state, return_state=True, mask=mask)
            for row, (begin, stop) in enumerate(runs):
                seen[row].append(chunk[row, :, begin:stop])
                outputs[row].append(y[row, :, begin:stop])
        for i in range(20):
            y, state = layer.step(x[:, :, i], state)
            for row in range(3):
                seen[row].append(x[row, :, i : i + 1])
                outputs[row].append(y[row, :, None])
    for row in range(3):
        whole = torch.cat(seen[row], 1)
        assert state.length[row] == whole.shape[1]
        assert_close(torch.cat(outputs[row], 1), oracle(layer, whole))


@pytest.mark.parametrize("name", ALL)
def test_packed_sequences_do_not_see_each_other(name: str) -> None:
    layer, x = layer_named(name), inputs(1, 17)
    bounds = [0, 4, 5, 5, 15, 17]
    parts = [x[0, :, begin:stop] for begin, stop in pairwise(bounds)]
    exact = torch.cat([oracle(layer, part) for part in parts if part.shape[1]], 1)
    assert_close(layer(x, cu_seqlens=torch.tensor(bounds))[0], exact)
    assert_close(layer(x, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))[0], exact)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_state_after_packed_sequences_has_a_row_for_each(name: str) -> None:
    layer, x, more = layer_named(name), inputs(1, 12), inputs(3, 4)
    bounds = torch.tensor([0, 5, 5, 12])
    _, state = layer(x, return_state=True, cu_seqlens=bounds)
    assert state.length.tolist() == [5, 0, 7]
    y, _ = layer(more, state, return_state=True)
    for row, (begin, stop) in enumerate([(0, 5), (5, 5), (5, 12)]):
        whole = torch.cat([x[0, :, begin:stop], more[row]], 1)
        assert_close(y[row], oracle(layer, whole)[:, stop - begin :])
    packed = torch.cat(list(more), 1)[None]
    y_packed = layer(packed, state, cu_seqlens=torch.tensor([0, 4, 8, 12]))
    assert_close(y_packed[0], torch.cat(list(y), 1))


@pytest.mark.parametrize("name", CAUSAL)
def test_states_can_be_selected_reset_and_converted(name: str) -> None:
    layer, x, x_t = layer_named(name), inputs(4, 6), inputs(4, 7)
    _, state = layer(x, return_state=True)
    exact = expected(layer, torch.cat([x, x_t], 2))[:, :, 6:]
    fresh = expected(layer, x_t)

    def outputs(state, rows: list[int]) -> Tensor:
        found = []
        for i in range(7):
            y, state = layer.step(x_t[rows][:, :, i], state)
            found.append(y)
        return torch.stack(found, 2)

    assert_close(outputs(state.select([2, 0, 2]), [2, 0, 2]), exact[[2, 0, 2]])
    assert_close(outputs(state.select(slice(1, 3)), [1, 2]), exact[1:3])
    reset = outputs(state.reset([1, 3]), [0, 1, 2, 3])
    assert_close(reset[[0, 2]], exact[[0, 2]])
    assert_close(reset[[1, 3]], fresh[[1, 3]])
    assert_close(outputs(state.reset(), [0, 1, 2, 3]), fresh)
    assert_close(outputs(state.to(torch.float64).to("cpu").detach(), [0, 1, 2, 3]), exact)
    # The same state once more: steps from it have not changed it.
    assert_close(outputs(state, [0, 1, 2, 3]), exact)
    assert state.nbytes == sum(x.numel() * x.element_size() for x in state.tensors().values())
    assert state.to(torch.float32).tensors().keys() == state.tensors().keys()
    assert layer.float().step(x_t[:, :, 0].float(), state.to(torch.float32))[0].dtype == torch.float32


@pytest.mark.parametrize("name", CAUSAL)
def test_two_continuations_of_one_state_do_not_disturb_each_other(name: str) -> None:
    layer, x = layer_named(name), inputs(2, 12)
    with torch.no_grad():
        state = layer.initial_state(2)
        for i in range(6):
            _, state = layer.step(x[:, :, i], state)
        other = state
        y_first = []
        for i in range(6, 12):
            y, state = layer.step(x[:, :, i], state)
            layer.step(-x[:, :, i], other)
            _, other = layer(-x[:, :, i : i + 1], other, return_state=True)
            y_first.append(y)
        assert_close(torch.stack(y_first, 2), layer(x)[:, :, 6:])


def test_threads_that_continue_one_state_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_named("attention"), inputs(4, 1)[:, None, :, 0]  # [4, 1, dim]
    with torch.no_grad():
        _, state = layer(inputs(1, 5), return_state=True)
        _, state = layer.step(x[0], state)
        wanted = [layer.step(x_t, state.select([0]))[1].keys for x_t in x]
    write = _Buffer.write

    def write_slowly(*arguments) -> None:
        time.sleep(0.05)
        write(*arguments)

    def continued(x_t: Tensor) -> SequenceState:
        with torch.no_grad():
            return layer.step(x_t, state)[1]

    monkeypatch.setattr(_Buffer, "write", write_slowly)
    with ThreadPoolExecutor(len(x)) as pool:
        found = [after.keys for after in pool.map(continued, x)]
    for actual, keys in zip(found, wanted, strict=True):
        assert torch.equal(actual, keys)


@pytest.mark.parametrize("name", CAUSAL)
def test_states_of_inference_mode_can_be_continued_outside(name: str) -> None:
    layer, x = layer_named(name), inputs(2, 12)
    exact = layer(x).detach()
    with torch.inference_mode():
        state = layer.initial_state(2)
        for i in range(6):
            _, state = layer.step(x[:, :, i], state)
    with torch.no_grad():
        y, state = layer.step(x[:, :, 6], state)
        assert_close(y, exact[:, :, 6])
    y, _ = layer(x[:, :, 7:], state.detach(), return_state=True)
    y.sum().backward()
    assert_close(y, exact[:, :, 7:])


@pytest.mark.parametrize("name", CAUSAL)
def test_layers_train_from_states_of_inference_mode(name: str) -> None:
    layer, x = layer_named(name), inputs(2, 12)
    exact = layer(x).detach()
    with torch.inference_mode():
        _, state = layer(x[:, :, :6], return_state=True)
    y_t, after = layer.step(x[:, :, 6], state)
    y, _ = layer(x[:, :, 7:], after, return_state=True)
    (y_t.sum() + y.sum()).backward()
    assert_close(torch.cat([y_t[:, :, None], y], dim=2), exact[:, :, 6:])


EXPORTED = [name for name in CENTRED if "gru" not in name]  # packed sequences cannot be exported


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_layer_takes_masks(name: str) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer_named(name)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask=mask)

    network, batch, length = Masked(), torch.export.Dim("batch"), torch.export.Dim("length", min=4)
    lengths = torch.tensor([4, 0, 7])
    shapes = {"x": {0: batch, 2: length}, "mask": {0: batch, 1: length}}
    example = inputs(3, 7), torch.arange(7) < lengths[:, None]
    program = torch.export.export(network, example, dynamic_shapes=shapes)
    x, mask = inputs(2, 9), torch.arange(9) >= torch.tensor([[5], [0]])
    assert_close(program.module()(x, mask), network(x, mask))


@pytest.mark.parametrize("name", ["attention", "convolution", "linear attention, not causal"])
def test_a_compiled_layer_refuses_padding_between_elements(name: str) -> None:
    layer, x = layer_named(name), inputs(2, 5)
    compiled = torch.compile(
        lambda x, mask: layer(x, mask=mask), backend="aot_eager", fullgraph=True, dynamic=False
    )
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    assert_close(compiled(x, mask), layer(x, mask=mask))
    with pytest.raises(RuntimeError, match="the mask has padding between them"):
        compiled(x, torch.tensor([[True] * 5, [True, False, True, True, True]]))


@pytest.mark.parametrize(
    "name", ["linear attention", "convolution", "convolution of one tap", "depthwise convolution", "gru"]
)
def test_a_state_keeps_no_memory_of_earlier_positions(name: str) -> None:
    layer = layer_named(name)
    with torch.no_grad():
        _, state = layer(inputs(1, 500), return_state=True)
    for tensor in state.tensors().values():
        assert tensor.untyped_storage().nbytes() <= 2 * tensor.nbytes


@pytest.mark.parametrize("continued", [False, True])
def test_a_window_keeps_no_memory_of_a_long_call(continued: bool) -> None:
    layer = Attention1d(8, num_heads=2, window=5)
    with torch.no_grad():
        state = layer.initial_state(2) if continued else None
        _, state = layer(torch.randn(2, 8, 500), state, return_state=True)
    for tensor in state.tensors().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_memory_of_a_window_does_not_grow() -> None:
    layer = Attention1d(8, num_heads=2, window=5)
    with torch.no_grad():
        state = layer.initial_state(2)
        sizes = set()
        for i in range(200):
            _, state = layer.step(torch.randn(2, 8), state)
            if i > 50:
                sizes.add((state.nbytes, state.keys.untyped_storage().nbytes()))
        ragged = state.reset([0])
        for _ in range(200):
            _, ragged = layer.step(torch.randn(2, 8), ragged)
        assert ragged.keys.shape[2] <= 12
    assert len({nbytes for nbytes, _ in sizes}) == 1
    assert max(storage for _, storage in sizes) <= 4 * 2 * 2 * 4 * 4 * 5


def test_steps_of_attention_copy_its_keys_only_when_the_buffer_doubles() -> None:
    layer = Attention1d(8, num_heads=2)
    with torch.no_grad():
        state, buffers = layer.initial_state(1), set()
        for _ in range(1000):
            _, state = layer.step(torch.randn(1, 8), state)
            buffers.add(state.keys.data_ptr())
    assert len(buffers) <= 11


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(name: str, dtype: torch.dtype) -> None:
    layer, x = ALL[name](dtype=dtype), inputs(2, 20).to(dtype)
    exact = ALL[name](dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    y, state = layer(x, return_state=True)
    assert y.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=tolerance, atol=tolerance)
    y_t, _ = layer.step(x[:, :, 0], state)
    assert y_t.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        float_layer = layer.float()
        _, state = float_layer(x.float(), return_state=True)
        y_t, state = float_layer.step(x[:, :, 0].float(), state)
        float_layer(x.float(), state, return_state=True)


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch(name: str) -> None:
    layer = layer_named(name)
    assert layer(inputs(0, 5)).shape == (0, layer.dim_out, 5)


@pytest.mark.parametrize("name", CENTRED)
def test_layers_that_are_not_causal_refuse_states(name: str) -> None:
    layer = layer_named(name)
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=f"step needs a causal layer; this {kind} has causal=False"):
        layer.step(inputs(2, 1)[:, :, 0], None)
    with pytest.raises(ValueError, match="initial_state needs a causal layer"):
        layer.initial_state(2)
    with pytest.raises(ValueError, match="a state needs a causal layer"):
        layer(inputs(2, 3), return_state=True)


def test_arguments_that_are_refused() -> None:
    layer, x = Attention1d(DIM, DIM_OUT, num_heads=2), torch.randn(2, DIM, 5)
    _, state = layer(x, return_state=True)
    gru = GRU1d(DIM, DIM_OUT)
    cases = {
        r"x must be of shape \(b 6 n\), got \(2, 5, 6\)": lambda: layer(x.mT),
        "x has no positions": lambda: layer(x[:, :, :0]),
        r"x_t must be of shape \(b 6\), got \(2, 6, 5\)": lambda: layer.step(x, state),
        "the state must be a GRUState, got AttentionState": lambda: gru.step(x[:, :, 0], state),
        "the state has 2 rows and this call 1: ": lambda: layer(x[:1], state),
        "the state's keys is torch.float64 on cpu, this layer needs torch.float32": lambda: layer(
            x, state.to(torch.float64)
        ),
        "the state is of another layer": lambda: Attention1d(DIM, 16).step(x[:, :, 0], state),
        "cu_seqlens and mask exclude each other": lambda: layer(
            x, mask=torch.ones(2, 5, dtype=torch.bool), cu_seqlens=torch.tensor([0, 5])
        ),
        "the mask has padding between them": lambda: layer(
            x, mask=torch.tensor([[True] * 5, [True, False, True, True, True]])
        ),
        r"mask must be a bool tensor of shape \(b, n\) = \(2, 5\)": lambda: layer(x, mask=torch.ones(2, 5)),
        "cu_seqlens divides one row into sequences, but x has 2 rows": lambda: layer(
            x, cu_seqlens=torch.tensor([0, 5])
        ),
        "cu_seqlens must lead from 0 to n=5, got 0 to 4": lambda: layer(
            x[:1], cu_seqlens=torch.tensor([0, 4])
        ),
        "cu_seqlens must not decrease, but 2 follows 3": lambda: layer(
            x[:1], cu_seqlens=torch.tensor([0, 3, 2, 5])
        ),
        "cu_seqlens must be a tensor of integers": lambda: layer(x[:1], cu_seqlens=torch.tensor([0.0, 5.0])),
        "the state has 2 rows and this call 1": lambda: layer(x[:1], state, cu_seqlens=torch.tensor([0, 5])),
        "window must be at least 1, got 0": lambda: Attention1d(8, window=0),
        "window must be odd with causal=False, got 4": lambda: Attention1d(8, causal=False, window=4),
        "rotary positions need an even depth": lambda: Attention1d(12, num_heads=4),
        "base must be above 0": lambda: Attention1d(8, base=0),
        "dim_out must be a multiple of num_heads=4, got 6": lambda: LinearAttention1d(6),
        "taps must be at least 1": lambda: Convolution1d(6, taps=0),
        "depthwise=True needs dim_out = dim = 6, got 8": lambda: Convolution1d(6, 8, depthwise=True),
        "causal=False needs an even dim_out, got 5": lambda: GRU1d(6, 5, causal=False),
        "dim must be at least 1": lambda: GRU1d(0),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", [Attention1d, Convolution1d, GRU1d, LinearAttention1d])
def test_a_new_gate_has_the_variance_of_the_input(kind: Callable[..., SequenceLayer]) -> None:
    torch.manual_seed(0)
    gate = kind(256, gate=True).to_gate
    assert gate is not None
    torch.testing.assert_close(gate.weight.std().item(), 256**-0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "attention": 3 * 6 * 8,
        "linear attention": 3 * 6 * 8,
        "convolution": 6 * 8 * 4,
        "depthwise convolution": 6 * 5,
        "gru": 3 * 8 * (6 + 8 + 2),
        "gated attention": 4 * 6 * 8,
    }.items(),
)
def test_the_number_of_parameters(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in layer_named(name).parameters()) == count
