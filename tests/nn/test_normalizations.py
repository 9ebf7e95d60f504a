"""The layer's options of Table 12, against the operator called by hand."""

import pytest
import torch

from closeness import assert_close
from lambdanets.nn import LambdaLayer2d
from lambdanets.ops import LocalContext, lambda_layer


def by_hand(layer: LambdaLayer2d, x: torch.Tensor, normalize: str, softmax_queries: bool) -> torch.Tensor:
    """The layer without batch norms, from its weights."""

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


def test_evaluation_folds_the_same_numbers_whatever_the_normalisation() -> None:
    for normalize in ("softmax_both", "l2", "none"):
        layer = LambdaLayer2d(6, 12, num_heads=3, scope=3, normalize=normalize, dtype=torch.float64).eval()
        x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
        with torch.no_grad():
            folded = layer(x)
        assert_close(folded, layer(x))


def test_the_default_is_the_papers() -> None:
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


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalize 'l3'"):
        LambdaLayer2d(8, scope=3, normalize="l3")
    for normalize in ("l2", "none"):
        with pytest.raises(ValueError, match=f"normalize='{normalize}' is for keys, which content=False"):
            LambdaLayer2d(8, scope=3, content=False, normalize=normalize)
    LambdaLayer2d(8, scope=3, content=False, normalize="softmax_both")(torch.randn(2, 8, 3, 3))
