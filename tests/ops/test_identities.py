"""Properties of the operator that need no oracle, on random problems."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import Case
from closeness import assert_close
from lambdanets.ops import GlobalContext, LocalContext, MaskedContext, lambda_layer

kernels = pytest.mark.parametrize("kernel", ["reference", "auto"])
LONGEST = {1: 9, 2: 4, 3: 3}


@st.composite
def problems(draw: st.DrawFn, *, rank: int | None = None, **fixed: object) -> Case:
    """Any problem with a relative table: global or local, one to three axes, with padding, u and dilation."""
    rank = rank or draw(st.integers(1, 3))
    axes = st.tuples(*[st.integers(1, LONGEST[rank])] * rank)
    scope = draw(st.none() | st.tuples(*[st.integers(1, 6)] * rank))
    local = scope is not None
    entries = st.tuples(*(st.integers(0, size - 1) for size in scope or ()))
    options: dict[str, object] = {
        "name": "drawn",
        "grid": draw(axes),
        "context_grid": draw(st.none() | axes),
        "scope": scope,
        "centre": draw(st.none() | entries) if local else None,
        "dilation": draw(st.tuples(*[st.integers(1, 3)] * rank)) if local else None,
        "causal": rank == 1 and draw(st.booleans()),
        "padded": draw(st.booleans()),
        "content": draw(st.booleans()),
        "dim_u": draw(st.integers(1, 3)),
        "batch": draw(st.integers(1, 2)),
        "num_heads": draw(st.integers(1, 3)),
        "dim_k": draw(st.integers(1, 4)),
        "dim_v": draw(st.integers(1, 4)),
    }
    return Case(**(options | fixed))


seeds = st.integers(0, 2**16)


@kernels
@given(case=problems(), seed=seeds, a=st.floats(-3, 3), b=st.floats(-3, 3))
@pytest.mark.parametrize("name", ["q", "v"])
def test_linear_in_q_and_in_v(kernel: str, name: str, case: Case, seed: int, a: float, b: float) -> None:
    inputs, other = case.inputs(seed=seed), case.inputs(seed=seed + 1)[name]
    mixed = case.call(lambda_layer, inputs | {name: a * inputs[name] + b * other}, kernel=kernel)
    one = case.call(lambda_layer, inputs, kernel=kernel)
    two = case.call(lambda_layer, inputs | {name: other}, kernel=kernel)
    scale = 1 + one.abs().max() + two.abs().max()  # a and b may cancel
    assert_close(mixed / scale + 1, (a * one + b * two) / scale + 1)


@kernels
@given(case=problems(), seed=seeds)
def test_content_plus_position_is_the_sum_of_the_parts(kernel: str, case: Case, seed: int) -> None:
    case = replace(case, content=True)
    inputs = case.inputs(seed=seed)
    both = case.call(lambda_layer, inputs, kernel=kernel)
    position = replace(case, content=False).call(lambda_layer, inputs, kernel=kernel)
    content = case.call(lambda_layer, inputs | {"e": None}, kernel=kernel)
    assert_close(both, content + position)


@kernels
@given(case=problems(), seed=seeds)
def test_u_is_a_sum_of_operators_with_u_one(kernel: str, case: Case, seed: int) -> None:
    inputs = case.inputs(seed=seed)
    parts = []
    for j in range(case.dim_u):
        column = {name: x if name == "q" else x[..., j : j + 1] for name, x in inputs.items()}
        parts.append(case.call(lambda_layer, column, kernel=kernel))
    assert_close(case.call(lambda_layer, inputs, kernel=kernel), torch.stack(parts).sum(0))


@kernels
@given(case=problems(), seed=seeds)
def test_heads_and_examples_do_not_mix(kernel: str, case: Case, seed: int) -> None:
    inputs = case.inputs(seed=seed)
    whole = case.call(lambda_layer, inputs, kernel=kernel)
    context, mask = case.context(), case.mask()
    for b in range(case.batch):
        for h in range(case.num_heads):
            y = lambda_layer(
                inputs["q"][b : b + 1, h : h + 1],
                inputs["k"][b : b + 1],
                inputs["v"][b : b + 1],
                inputs["e"],
                context=context,
                mask=None if mask is None else mask[b : b + 1],
                content=case.content,
                kernel=kernel,
            )
            assert_close(y, whole[b : b + 1, h : h + 1])


@kernels
@given(case=problems(content=True), seed=seeds)
def test_a_constant_added_to_the_keys_of_a_column_changes_nothing(kernel: str, case: Case, seed: int) -> None:
    inputs = case.inputs(seed=seed)
    shifted = inputs["k"] + torch.randn(case.batch, 1, case.dim_k, case.dim_u, dtype=torch.float64)
    exact = case.call(lambda_layer, inputs, kernel=kernel)
    assert_close(case.call(lambda_layer, inputs | {"k": shifted}, kernel=kernel), exact)


@kernels
@given(n=st.integers(1, 7), m=st.integers(1, 7), padded=st.booleans(), position=st.booleans(), seed=seeds)
def test_permuting_the_context_with_its_embeddings_changes_nothing(
    kernel: str, n: int, m: int, padded: bool, position: bool, seed: int
) -> None:
    for masked in (False, True):
        case = Case(
            name="drawn",
            grid=(n,),
            context_grid=(m,),
            dense=True,
            padded=padded,
            masked=masked,
            position=position,
        )
        inputs, context, mask = case.inputs(seed=seed), case.context(), case.mask()
        order = torch.randperm(m)
        permuted = {"q": inputs["q"], "k": inputs["k"][:, order], "v": inputs["v"][:, order]}
        if position:
            permuted["e"] = inputs["e"][:, order]
        y = lambda_layer(
            **permuted,
            context=MaskedContext(case.visible()[:, order]) if masked else context,
            mask=None if mask is None else mask[:, order],
            kernel=kernel,
        )
        assert_close(y, case.call(lambda_layer, inputs, kernel=kernel))


@kernels
@given(n=st.integers(1, 7), m=st.integers(2, 7), content=st.booleans(), dim_u=st.integers(1, 3), seed=seeds)
def test_masking_is_dropping(kernel: str, n: int, m: int, content: bool, dim_u: int, seed: int) -> None:
    case = Case(name="drawn", grid=(n,), context_grid=(m,), dense=True, content=content, dim_u=dim_u, batch=1)
    inputs = case.inputs(seed=seed)
    keep = torch.rand(m) < 0.6
    keep[torch.randint(m, ())] = True
    dropped = lambda_layer(
        inputs["q"],
        inputs["k"][:, keep],
        inputs["v"][:, keep],
        inputs["e"][:, keep],
        context=GlobalContext(n, context_grid=int(keep.sum())),
        content=content,
        kernel=kernel,
    )
    padded = lambda_layer(**inputs, context=case.context(), mask=keep[None], content=content, kernel=kernel)
    assert_close(padded, dropped)
    context = MaskedContext(keep.expand(n, m))
    assert_close(lambda_layer(**inputs, context=context, content=content, kernel=kernel), dropped)


@kernels
@given(case=problems(padded=True), seed=seeds)
def test_what_hidden_elements_hold_does_not_matter(kernel: str, case: Case, seed: int) -> None:
    inputs, mask = case.inputs(seed=seed), case.mask()
    changed = dict(inputs)
    for name in ("k", "v"):
        changed[name] = torch.where(mask[..., None, None], inputs[name], torch.nan)
    y = case.call(lambda_layer, inputs, kernel=kernel)
    assert_close(case.call(lambda_layer, changed, kernel=kernel), y)


@kernels
@given(case=problems(dilation=None, context_grid=None, centre=None), seed=seeds)
def test_local_with_scope_twice_the_grid_less_one_is_global(kernel: str, case: Case, seed: int) -> None:
    whole = replace(case, scope=None)
    centre = tuple(g - 1 for g in case.grid)
    local = replace(case, scope=tuple(2 * g - 1 for g in case.grid), centre=centre)
    inputs = whole.inputs(seed=seed)
    assert isinstance(local.context(), LocalContext)
    assert_close(
        local.call(lambda_layer, inputs, kernel=kernel), whole.call(lambda_layer, inputs, kernel=kernel)
    )


@kernels
@given(case=st.integers(1, 2).flatmap(lambda rank: problems(rank=rank, causal=False)), seed=seeds)
def test_a_trailing_axis_of_length_one_changes_nothing(kernel: str, case: Case, seed: int) -> None:
    inputs = case.inputs(seed=seed)
    longer = replace(
        case,
        grid=(*case.grid, 1),
        context_grid=case.context_grid and (*case.context_grid, 1),
        scope=case.scope and (*case.scope, 1),
        dilation=case.dilation and (*case.dilation, 1),
        centre=case.centre and (*case.centre, 0),
    )
    y = longer.call(lambda_layer, inputs | {"e": inputs["e"].unsqueeze(-3)}, kernel=kernel)
    assert_close(y, case.call(lambda_layer, inputs, kernel=kernel))


@kernels
@given(case=problems(rank=1, causal=True, padded=False, content=True), seed=seeds, data=st.data())
def test_causal_has_no_gradient_from_the_future(
    kernel: str, case: Case, seed: int, data: st.DataObject
) -> None:
    inputs = {name: x.requires_grad_() for name, x in case.inputs(seed=seed).items()}
    n = data.draw(st.integers(0, case.n - 1))
    y = case.call(lambda_layer, inputs, kernel=kernel)[:, :, n]
    by_name = dict(zip("kv", torch.autograd.grad(y.square().sum(), (inputs["k"], inputs["v"])), strict=True))
    for name, gradient in by_name.items():
        assert (gradient[:, n + 1 :] == 0).all(), name
    assert (by_name["v"][:, : n + 1] != 0).any(), "the past must have one"


@kernels
@given(grid=st.tuples(st.integers(3, 5), st.integers(3, 5)), seed=seeds)
def test_position_part_moves_with_the_values(kernel: str, grid: tuple[int, int], seed: int) -> None:
    """Values shifted by one column give outputs shifted by one column, away from the border."""
    case = Case(name="drawn", grid=grid, scope=(3, 3), content=False)
    inputs = case.inputs(seed=seed)
    inputs["q"] = inputs["q"][:, :, :1].expand_as(inputs["q"])
    v = inputs["v"].unflatten(1, grid)
    v[:, :, -1] = 0  # what would move out
    moved = v.roll(1, 2)
    y = case.call(lambda_layer, inputs | {"v": v.flatten(1, 2)}, kernel=kernel).unflatten(2, grid)
    y_moved = case.call(lambda_layer, inputs | {"v": moved.flatten(1, 2)}, kernel=kernel).unflatten(2, grid)
    assert_close(y_moved[:, :, :, 1:], y[:, :, :, :-1])
