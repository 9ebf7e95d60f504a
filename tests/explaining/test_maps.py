"""The maps are exact: equal to the formula, written out in float64, for every kind of layer."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lambdanets
from foreign import DLi14, awake
from foreign import LambdaLayer as Lucidrains
from lambdanets import LambdaLayer, LambdaLayer1d, LambdaLayer2d, LambdaLayer3d, explain
from lambdanets.models import create_language_model
from oracles import dense_embeddings

DIM = 6
LAYERS: dict[str, tuple[type[LambdaLayer], dict[str, Any], tuple[int, ...]]] = {
    "global": (LambdaLayer2d, {"grid": (4, 5)}, (4, 5)),
    "global, smaller grid": (LambdaLayer2d, {"grid": (4, 5)}, (3, 2)),
    "global, larger grid": (LambdaLayer2d, {"grid": (3, 3)}, (4, 5)),
    "local": (LambdaLayer2d, {"scope": (3, 5)}, (5, 4)),
    "even scope": (LambdaLayer2d, {"scope": 4}, (5, 4)),
    "dilated": (LambdaLayer2d, {"scope": 3, "dilation": 2}, (6, 5)),
    "intra-depth": (LambdaLayer2d, {"scope": 3, "dim_u": 3}, (5, 4)),
    "content alone": (LambdaLayer2d, {"position": False}, (5, 4)),
    "position alone": (LambdaLayer2d, {"content": False, "scope": 3}, (5, 4)),
    "position bias": (LambdaLayer2d, {"scope": 3, "position_bias": True}, (5, 4)),
    "l2": (LambdaLayer2d, {"scope": 3, "normalize": "l2"}, (5, 4)),
    "none": (LambdaLayer2d, {"scope": 3, "normalize": "none"}, (5, 4)),
    "softmax of queries": (LambdaLayer2d, {"scope": 3, "normalize": "softmax_both"}, (5, 4)),
    "rms": (LambdaLayer2d, {"scope": 3, "norm": "rms"}, (5, 4)),
    "no norm": (LambdaLayer2d, {"scope": 3, "norm": None}, (5, 4)),
    "one axis": (LambdaLayer1d, {"scope": 5}, (9,)),
    "three axes": (LambdaLayer3d, {"scope": 3}, (2, 4, 3)),
    "three axes, global": (LambdaLayer3d, {"grid": (2, 4, 3), "dim_u": 2}, (2, 4, 3)),
    "gated": (LambdaLayer1d, {"scope": 5, "gate": True, "out_norm": True}, (9,)),
    "causal": (LambdaLayer1d, {"scope": 4, "causal": True}, (9,)),
    "causal, global": (LambdaLayer1d, {"grid": 9, "causal": True, "dim_u": 2}, (9,)),
    "causal, dilated": (LambdaLayer1d, {"scope": 3, "dilation": 2, "causal": True}, (9,)),
    "causal, l2": (LambdaLayer1d, {"scope": 4, "causal": True, "normalize": "l2"}, (9,)),
    "causal, none": (LambdaLayer1d, {"scope": 4, "causal": True, "normalize": "none"}, (9,)),
    "decay": (LambdaLayer1d, {"scope": 4, "causal": True, "decay": True}, (9,)),
    "decay, l2": (LambdaLayer1d, {"scope": 4, "causal": True, "decay": True, "normalize": "l2"}, (9,)),
    "decay, none": (LambdaLayer1d, {"scope": 4, "causal": True, "decay": True, "normalize": "none"}, (9,)),
    "key heads": (LambdaLayer1d, {"scope": 4, "causal": True, "key_heads": 2, "dim_u": 2}, (9,)),
    "short convolution": (LambdaLayer1d, {"scope": 4, "causal": True, "short_conv": 3}, (9,)),
    "all of a sequence": (
        LambdaLayer1d,
        {"scope": 4, "causal": True, "key_heads": 2, "decay": True, "short_conv": 3, "gate": True,
         "out_norm": True, "norm": "rms", "position_bias": True},
        (9,),
    ),
}  # fmt: skip


def make(name: str, **more: Any) -> tuple[Any, tuple[int, ...]]:
    """A layer in evaluation whose parameters and statistics are not those of the initialisation."""
    torch.manual_seed(0)
    kind, options, grid = LAYERS[name]
    layer = kind(DIM, 8, dim_k=3, num_heads=4, **options, **more)
    for part in layer.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    for parameter in ("position_bias", "short_conv", "out_norm"):
        if getattr(layer, parameter, None) is not None:
            nn.init.normal_(getattr(layer, parameter))
    return layer.eval(), grid


def written_out(layer: Any, x: Tensor, source: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The content and the position part of A `[h, n, m, u]` and the values `[m, v, u]`, by the formula."""
    causal = layer.causal
    convolve = getattr(layer, "short_conv", None)
    parts = [layer.to_queries(x), layer.to_values(source)]
    parts += [] if layer.to_keys is None else [layer.to_keys(source)]
    if convolve is not None:
        channels = torch.cat(parts, dim=1)
        padded = F.pad(channels, (len(convolve) - 1, 0))
        channels = sum(tap[:, None] * padded[..., j : j + x.shape[-1]] for j, tap in enumerate(convolve))
        parts = list(channels.split([part.shape[1] for part in parts], dim=1))
    q = layer.norm_queries(parts[0])[0].flatten(1).view(layer.num_heads, layer.dim_k, -1)  # [h, k, n]
    q = q.softmax(1) if layer.normalize == "softmax_both" else q
    v = layer.norm_values(parts[1])[0].flatten(1).view(-1, layer.dim_u, math.prod(source.shape[2:]))
    n, m, u = q.shape[2], v.shape[2], layer.dim_u
    seen = torch.ones(n, m, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & mask[0].flatten()
    content = position = q.new_zeros(layer.num_heads, n, m, u)
    if layer.content:
        sets = getattr(layer, "key_heads", 1)
        keys = parts[2][0].flatten(1).view(sets, layer.dim_k, u, m)
        forgotten = q.new_zeros(layer.dim_k, u, n, m)
        if getattr(layer, "log_decay", None) is not None:
            distance = torch.arange(n)[:, None] - torch.arange(m)
            forgotten = layer.log_decay.exp()[..., None, None] * distance
        if layer.normalize in ("softmax", "softmax_both"):
            scores = (keys[..., None, :] - forgotten).masked_fill(~seen, -torch.inf)
            kbar = scores.softmax(-1).nan_to_num()  # [g, k, u, n, m]
        else:
            kbar = torch.where(seen, keys[..., None, :] * (-forgotten).exp(), 0)
            if layer.normalize == "l2":
                kbar = kbar / kbar.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-300)
        kbar = kbar.repeat_interleave(layer.num_heads // sets, dim=0)
        content = torch.einsum("hkn,hkunm->hnmu", q, kbar)
    if layer.positions is not None:
        scope = tuple(layer.positions.shape[:-2])
        centre = tuple(size - 1 if causal else size // 2 for size in scope)
        e = dense_embeddings(
            layer.positions, grid=tuple(x.shape[2:]), context_grid=tuple(source.shape[2:]), scope=scope,
            dilation=layer.dilation, centre=centre,
        )  # fmt: skip
        position = torch.einsum("hkn,nmku->hnmu", q, torch.where(seen[..., None, None], e, 0))
    return content, position, v.permute(2, 0, 1)


def check(layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            options = {
                name: value for name, value in (("context", context), ("mask", mask)) if value is not None
            }
            return self.layer(x, **options)

    with torch.no_grad():
        explanation = explain(Model().eval(), x, example=0)
        source = x if context is None else context
        content, position, v = written_out(layer, x[:1], source[:1], mask)
    assert explanation.layers == ("layer",)
    assert explanation.error <= 1e-10
    maps = explanation.layer(0)
    queries = torch.arange(content.shape[1])
    for part, expected in (("content", content), ("position", position), ("sum", content + position)):
        torch.testing.assert_close(maps.weights(queries, part), expected, rtol=1e-10, atol=1e-10)
    hidden = torch.ones(len(v), dtype=torch.bool) if mask is None else mask[0].flatten()
    parts = [torch.einsum("hnmu,mvu->hnv", part[:, :, hidden], v[hidden]) for part in (content, position)]
    for share, part in zip(explanation.shares()["layer"], parts, strict=True):
        torch.testing.assert_close(share.flatten(1), part.square().sum(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_maps_are_the_formula_in_float64_and_sum_to_the_output_in_float32(name: str) -> None:
    layer, grid = make(name)
    x = torch.randn(2, DIM, *grid)
    assert explain(layer, x).error <= 1e-5
    check(layer.double(), x.double())


@pytest.mark.parametrize("name", ["global", "local", "causal", "all of a sequence", "l2", "three axes"])
def test_hidden_elements_have_no_weight(name: str) -> None:
    layer, grid = make(name)
    x = torch.randn(2, DIM, *grid, dtype=torch.float64)
    mask = torch.arange(math.prod(grid)) < torch.tensor([[math.prod(grid) - 3], [2]])
    explanation = explain(layer.double(), (x, None, mask))
    assert explanation.error <= 1e-10
    assert not explanation.maps(0, query=1)[..., -3:].flatten(1)[:, -3:].any()
    if name != "all of a sequence":  # whose outputs at padding have no meaning
        check(layer, x, mask=mask)


def test_the_context_may_be_another_grid() -> None:
    for name in ("local", "content alone", "global, larger grid"):
        layer, _ = make(name)
        x, context = torch.randn(1, DIM, 4, 5).double(), torch.randn(1, DIM, 3, 6).double()
        check(layer.double(), x, context=context)


@pytest.mark.parametrize("kernel", ["reference", "conv", "attention", "fft", "native"])
def test_every_kernel_computes_what_the_maps_sum_to(kernel: str) -> None:
    layer, grid = make("local", kernel=kernel)
    assert explain(layer, torch.randn(1, DIM, *grid)).error <= 1e-5


def test_layers_of_other_packages_are_explained_without_a_change_of_the_model() -> None:
    timm_layer = pytest.importorskip("timm.layers.lambda_layer").LambdaLayer
    torch.manual_seed(0)
    model = nn.Sequential(
        Lucidrains(8, dim_k=4, r=3, heads=2, dim_u=2),
        Lucidrains(8, dim_k=4, n=6, heads=2),
        DLi14(8, dk=4, du=2, Nh=2, r=3),
        DLi14(8, dk=4, Nh=2, r=5, stride=2),
        timm_layer(8, num_heads=2, dim_head=4, r=3),
        timm_layer(8, num_heads=2, dim_head=4, r=None, feat_size=(3, 3), stride=2),
    )
    awake(model).double().eval()
    kinds = [type(layer) for layer in model]
    explanation = explain(model, torch.randn(2, 8, 6, 6, dtype=torch.float64), example=1)
    assert explanation.layers == ("0", "1", "2", "3", "4", "5")
    assert explanation.error <= 1e-10
    assert [type(layer) for layer in model] == kinds
    assert not any(layer._forward_hooks for layer in model)
    assert explanation.maps("0", query=7).shape == (2, 6, 6, 2)


def test_whole_networks_are_explained() -> None:
    image = lambdanets.create_model("lambda_resnet_mini", num_classes=3).eval()
    explanation = explain(image, torch.randn(1, 3, 64, 64))
    assert explanation.error <= 1e-5
    assert explanation.output.shape == (1, 3)
    assert explanation.scene.picture.size == (64, 64)
    text = create_language_model("lambda_lm_mini", vocabulary=9, depth=2, scope=8).eval()
    explanation = explain(text, torch.randint(0, 9, (1, 20)))
    assert len(explanation.layers) == 2
    assert explanation.error <= 1e-5
    assert not explanation.maps(0, query=4)[:, 5:].any(), "a causal layer has no future"


def test_a_layer_that_is_called_twice_has_two_maps() -> None:
    shared = lambdanets.LambdaLayer2d(8, scope=3).eval()
    explanation = explain(
        nn.Sequential(shared, nn.ReLU(inplace=True), shared).eval(), torch.randn(1, 8, 4, 4)
    )
    assert explanation.layers == ("0", "0 (call 2)")
    assert explanation.error <= 1e-5


def test_content_maps_reach_and_shares() -> None:
    layer, grid = make("global")
    explanation = explain(layer, torch.randn(1, DIM, *grid))
    columns = explanation.content(0)
    torch.testing.assert_close(columns.flatten(1).sum(1), torch.ones(3))
    entropy = explanation.entropy(0)
    assert bool(((entropy > 0) & (entropy <= math.log2(20))).all())
    torch.testing.assert_close(explanation.table(0), layer.positions.detach()[..., 0].movedim(-1, 0))
    fraction = explanation.shares()[explanation.layers[0]].fraction
    assert fraction.shape == (4, *grid)
    assert bool(((fraction >= 0) & (fraction <= 1)).all())
    # A table of ones at distance 2 and zeros elsewhere.
    sequence = LambdaLayer1d(DIM, 8, dim_k=3, scope=9, num_heads=4, norm=None).eval()
    with torch.no_grad():
        sequence.positions.zero_()[[2, 6]] = -1
    reach = explain(sequence, torch.randn(1, DIM, 9)).reach(0)
    assert reach is not None
    assert reach.distances == [0, 1, 2, 3, 4]
    assert reach.magnitudes == [0, 0, 1, 0, 0]
    assert reach.radius == 2
    assert explain(make("content alone")[0], torch.randn(1, DIM, 5, 4)).reach(0) is None


def test_at_most_two_per_cent_of_the_weights_are_beyond_the_colour_scale() -> None:
    layer, grid = make("global")
    maps = explain(layer, torch.randn(1, DIM, *grid)).layer(0)
    for part, ends in maps.scales().items():
        weights = maps.weights(torch.arange(20), part).abs().flatten(1)
        for row, end in zip(weights, ends, strict=True):
            beyond = (row[row > 0] > end).float().mean()
            assert beyond <= 0.02
            assert beyond > 0.01 or part == "sum"


def test_weighted_maps_are_multiplied_by_the_length_of_the_values() -> None:
    layer, grid = make("local")
    explanation = explain(layer, torch.randn(1, DIM, *grid))
    plain = explanation.maps(0, 3)
    lengths = explanation.layer(0).v[..., 0].norm(dim=1).view(grid)
    torch.testing.assert_close(explanation.maps(0, 3, weighted=True), plain * lengths)


@pytest.mark.parametrize(
    ("model", "x", "options", "message"),
    [
        (nn.Conv2d(3, 3, 1), (1, 3, 4, 4), {}, "Conv2d has no lambda layer"),
        (LambdaLayer2d(6, 8, scope=3), (1, 6, 4, 4), {}, "is in training mode.*call model.eval"),
        (LambdaLayer2d(6, 8, scope=3).eval(), (1, 6, 4, 4), {"layers": ["conv9"]}, "no lambda layer 'conv9'"),
        (LambdaLayer2d(6, 8, scope=3).eval(), (1, 6, 4, 4), {"example": 1}, "no example 1 in a batch of 1"),
        (LambdaLayer2d(6, 8, scope=3).eval(), (1, 6, 200, 200), {}, "on its grid of 200x200.*smaller input"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    model: nn.Module, x: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        explain(model, torch.randn(x), **options)


def test_unknown_layers_heads_queries_parts_and_files_are_refused(tmp_path: Any) -> None:
    layer, grid = make("local")
    explanation = explain(layer, torch.randn(1, DIM, *grid))
    with pytest.raises(ValueError, match="there is no layer 3; there are LambdaLayer2d"):
        explanation.maps(3, 0)
    with pytest.raises(ValueError, match="heads 0 to 3, got 4"):
        explanation.maps(0, 0, head=4)
    with pytest.raises(ValueError, match="queries 0 to 19, got 20"):
        explanation.maps(0, 20)
    with pytest.raises(ValueError, match=r"grid of 5x4, which has no query \(5, 0\)"):
        explanation.maps(0, (5, 0))
    with pytest.raises(ValueError, match="one of content, position, sum"):
        explanation.maps(0, 0, part="both")
    with pytest.raises(ValueError, match=r"ends in \.html, \.png, \.npz, \.json"):
        explanation.save(tmp_path / "maps.gif")
    assert not list(tmp_path.iterdir())


def test_calls_with_a_state_or_packed_sequences_are_refused() -> None:
    layer, _ = make("causal")
    x = torch.randn(1, DIM, 9)
    with pytest.raises(ValueError, match="give the whole sequence"):
        explain(layer, (x, layer.initial_state(1)))
    with pytest.raises(ValueError, match="give the sequences one by one"):
        explain(layer, x, forward=lambda x: layer(x, cu_seqlens=torch.tensor([0, 4, 9])))


def test_values_that_no_map_has_are_refused() -> None:
    layer = LambdaLayer2d(8, scope=3).eval()
    x = torch.randn(2, 8, 4, 4)
    with pytest.raises(ValueError, match="there is no example -3 in a batch of 2"):
        lambdanets.explain(layer, x, example=-3)
    for value in (float("nan"), float("inf")):
        x[1, 0, 0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite values"):
            lambdanets.explain(layer, x, example=1)
        assert lambdanets.explain(layer, x).error < 1e-5
    with pytest.raises(ValueError, match="meta device"):
        lambdanets.explain(layer.to("meta"), x.to("meta"))
    assert not layer._forward_hooks
