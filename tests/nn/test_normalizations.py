"""The layer's options of Table 12 compared with explicit calls of the operator."""

import warnings

import pytest
import torch

from closeness import assert_close
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d
from lambdanets.ops import LocalContext, lambda_layer


def by_hand(layer: LambdaLayer2d, x: torch.Tensor, normalize: str, softmax_queries: bool) -> torch.Tensor:
    """Return the output of the layer without batch norms, computed from its weights."""

    def project(convolution: torch.nn.Conv2d) -> torch.Tensor:
        return torch.einsum("oc,bcn->bon", convolution.weight.flatten(1), x.flatten(2))

    q = project(layer.to_queries).unflatten(1, (layer.num_heads, layer.dim_k)).mT  # b h n k
    k = project(layer.to_keys).mT[..., None]
    v = project(layer.to_values).mT[..., None]
    if softmax_queries:
        q = q.exp() / q.exp().sum(3, keepdim=True)
    context = LocalContext(tuple(x.shape[2:]), (3, 3))
    y = lambda_layer(q, k, v, layer.positions, context=context, normalize=normalize, kernel="reference")
    return y.mT.flatten(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("normalize", ["softmax", "softmax_both", "l2", "none"])
@pytest.mark.parametrize("grads", [True, False])
def test_without_batch_norm_the_layer_is_the_operator_on_its_projections(normalize: str, grads: bool) -> None:
    layer = LambdaLayer2d(
        6, 12, dim_k=5, num_heads=3, scope=3, normalize=normalize, norm=None, dtype=torch.float64
    )
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    both = normalize == "softmax_both"
    with torch.set_grad_enabled(grads):
        assert_close(layer(x), by_hand(layer, x, "softmax" if both else normalize, both))
    assert not any("norm" in name for name, _ in layer.named_parameters())


def test_fusing_does_not_change_the_output_of_any_normalisation() -> None:
    for normalize in ("softmax_both", "l2", "none"):
        layer = LambdaLayer2d(6, 12, num_heads=3, scope=3, normalize=normalize, dtype=torch.float64).eval()
        x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
        with torch.no_grad():
            folded = layer(x)
        assert_close(folded, layer(x))


def test_the_default_normalisation_is_that_of_the_paper() -> None:
    options = {"dim_k": 5, "num_heads": 3, "scope": 3, "dtype": torch.float64}
    plain, said = (
        LambdaLayer2d(6, **options, **more) for more in ({}, {"normalize": "softmax", "norm": "batch"})
    )
    said.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    assert_close(said(x), plain(x))
    assert "normalize" not in repr(plain)
    assert "normalize='l2', norm=None" in repr(
        LambdaLayer2d(6, num_heads=3, scope=3, normalize="l2", norm=None)
    )


def test_rms_norms_normalise_each_position_separately() -> None:
    """The layer is the operator on projections, each divided by its root mean square over channels."""
    layer = LambdaLayer2d(6, 12, dim_k=5, num_heads=3, scope=3, norm="rms", dtype=torch.float64)
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    norms = {}
    for name in ("queries", "values"):
        norm = getattr(layer, f"norm_{name}")
        torch.nn.init.normal_(norm.weight)
        projected = torch.einsum("oc,bcn->bon", getattr(layer, f"to_{name}").weight.flatten(1), x.flatten(2))
        mean = projected.square().mean(1, keepdim=True)
        norms[name] = projected / (mean + 1e-5).sqrt() * norm.weight[:, None]
    k = torch.einsum("oc,bcn->bno", layer.to_keys.weight.flatten(1), x.flatten(2))[..., None]
    q, v = norms["queries"].unflatten(1, (3, 5)).mT, norms["values"].mT[..., None]
    context = LocalContext((4, 7), (3, 3))
    y = lambda_layer(q, k, v, layer.positions, context=context, kernel="reference")
    expected = y.mT.flatten(1, 2).unflatten(2, (4, 7))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=memory_format)
        assert_close(layer(given), expected)
        with torch.no_grad():
            assert_close(layer.eval()(given), expected)
    assert set(layer.state_dict()) == {
        *(f"to_{name}.weight" for name in ("queries", "keys", "values")),
        *(f"norm_{name}.weight" for name in ("queries", "values")),
        "positions",
    }


@pytest.mark.parametrize("norm", ["rms", None])
@pytest.mark.parametrize("content", [True, False])
def test_a_causal_layer_trains_without_later_positions(norm: str | None, content: bool) -> None:
    """Checked by the gradient and by a changed last position; batch norms fail both checks."""
    layer = LambdaLayer1d(6, num_heads=3, scope=9, causal=True, norm=norm, content=content)
    x = torch.randn(2, 6, 7, requires_grad=True)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y[..., :4].square().sum(), x)
    assert (gradient[..., 4:] == 0).all()
    assert (gradient[..., :4] != 0).any()
    changed = x.detach().clone()
    changed[..., -1] += 1
    after = layer(changed)
    torch.testing.assert_close(after[..., :-1], y[..., :-1])
    assert not torch.allclose(after[..., -1], y[..., -1])


@pytest.mark.parametrize("norm", ["rms", None])
def test_padding_has_no_effect_in_training(norm: str | None) -> None:
    layer = LambdaLayer1d(6, num_heads=3, scope=5, norm=norm, dtype=torch.float64)
    x = torch.randn(2, 6, 7, dtype=torch.float64)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    padded = x.clone()
    padded[1, :, 4:] = 100.0
    y = layer(padded, mask=mask)
    assert_close(y[:1], layer(x[:1]))
    assert_close(y[1:, :, :4], layer(x[1:, :, :4]))


def test_batch_norms_over_hidden_positions_warn_in_training() -> None:
    causal, plain = (
        LambdaLayer1d(6, num_heads=3, scope=3, causal=True),
        LambdaLayer1d(6, num_heads=3, scope=3),
    )
    x, mask = torch.randn(2, 6, 5), torch.ones(2, 5, dtype=torch.bool)
    with pytest.warns(UserWarning, match="norm='batch'.* later positions .*norm='rms'") as caught:
        causal(x)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="norm='batch'.* that the mask hides .*norm='rms'"):
        plain(x, mask=mask)
    safe = LambdaLayer1d(6, num_heads=3, scope=3, causal=True, norm="rms")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain(x)
        safe(x, mask=mask)
        plain.eval()(x, mask=mask)
        causal.eval()(x)


def test_contradictory_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalize 'l3'"):
        LambdaLayer2d(8, scope=3, normalize="l3")
    for normalize in ("l2", "none"):
        with pytest.raises(ValueError, match=f"normalize='{normalize}' is for keys, which content=False"):
            LambdaLayer2d(8, scope=3, content=False, normalize=normalize)
    LambdaLayer2d(8, scope=3, content=False, normalize="softmax_both")(torch.randn(2, 8, 3, 3))
