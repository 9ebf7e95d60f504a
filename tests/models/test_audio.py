"""Residual networks on sequences: padding leaks nothing, parameters are counted, options are checked."""

import pytest
import timm
import torch
from torch import nn

from lambdanets.models import create_model, model_info
from lambdanets.nn import LambdaLayer1d

NAMES = ["lambda_audio", "lambda_audio_small"]
OPERATORS = {
    "lambda": {},
    "positions only": {"content": False},
    "content only": {"position": False},
    "conv 9": {"operator": "conv"},
    "conv 3": {"operator": "conv", "taps": 3},
    "depthwise 23": {"operator": "conv", "taps": 23, "depthwise": True},
    "attention": {"operator": "attention"},
    "linear attention": {"operator": "linear_attention"},
    "gru": {"operator": "gru"},
}
LENGTHS = (57, 30, 13, 1)


def network(operator: str = "lambda", **options) -> nn.Module:
    """A narrow network in float64, whose residual branches are not zero."""
    torch.manual_seed(1)
    options = {"widths": (8, 16), "depths": (1, 2), "strides": (1, 2), "dim_k": 4} | options
    model = create_model(
        "lambda_audio", num_classes=5, in_chans=6, dtype=torch.float64, **options, **OPERATORS[operator]
    )
    for block in model.blocks:
        nn.init.uniform_(block.bn3.weight, 0.5, 1.5)
    return model


def padded(lengths: tuple[int, ...] = LENGTHS, fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), 6, max(lengths), dtype=torch.float64)
    return x.masked_fill(~mask[:, None], fill), mask


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_shapes_and_gradients(name: str, operator: str) -> None:
    model = create_model(name, num_classes=7, in_chans=40, **OPERATORS[operator])
    for block in model.blocks:
        nn.init.ones_(block.bn3.weight)
    y = model(torch.randn(3, 40, 20))
    assert y.shape == (3, 7)
    (y * torch.randn_like(y)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.count_nonzero() > 0, key


def by_hand(widths, depths, classes, *, k=16, h=4, r=23, bands=40, stem=5) -> int:
    """Stem, blocks and head of a network of lambda layers."""
    count = bands * widths[0] * stem + 2 * widths[0]
    dim = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for number in range(depth):
            layer = width * (h * k + k + width // h) + r * k + h * k + width // h
            count += dim * width + layer + width * width + 3 * 2 * width
            if dim != width or (stage and not number):
                count += dim * width + 2 * width
            dim = width
    return count + dim * classes + classes


def test_parameters_are_those_counted_by_hand() -> None:
    for name, widths, depths, about in (
        ("lambda_audio", (40, 56, 64), (2, 2, 2), 85e3),
        ("lambda_audio_small", (24, 40, 56), (1, 1, 1), 30e3),
    ):
        count = sum(p.numel() for p in create_model(name, num_classes=10).parameters())
        assert count == by_hand(widths, depths, 10)
        assert count == pytest.approx(about, rel=0.05)


@pytest.mark.parametrize("operator", OPERATORS)
def test_padding_changes_nothing_in_evaluation(operator: str) -> None:
    model = network(operator).eval()
    with torch.no_grad():
        for fill in (0.0, 1e3):
            x, mask = padded(fill=fill)
            y = model(x, mask)
            alone = torch.cat([model(row[None, :, :n]) for row, n in zip(x, LENGTHS, strict=True)])
            torch.testing.assert_close(y, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
def test_padding_changes_neither_gradients_nor_statistics_in_training(operator: str) -> None:
    """The same batch with more padding, of any content, gives the same step."""
    results = []
    for more, fill in ((0, 0.0), (9, 0.0), (16, 1e3)):
        model = network(operator)
        x, mask = padded()
        x = x.masked_fill(~mask[:, None], fill)
        x = torch.nn.functional.pad(x, (0, more), value=fill).requires_grad_()
        mask = torch.nn.functional.pad(mask, (0, more))
        y = model(x, mask)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        assert x.grad is not None
        assert x.grad.masked_fill(mask[:, None], 0).count_nonzero() == 0
        state = {name: value for name, value in model.state_dict().items() if "running" in name}
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((y.detach(), x.grad[..., : max(LENGTHS)].clone(), state, grads))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-8, atol=1e-10)


def test_norms_see_the_elements_of_recordings_alone() -> None:
    """The running mean of the first norm is the mean over all visible positions of the stem's output."""
    model = network()
    x, mask = padded()
    y = model.stem[0](x).mT
    kept = mask[:, ::2]
    rows = y[kept]
    model(x, mask)
    norm = model.stem_norms[0]
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))


def test_a_mask_without_padding_is_no_mask() -> None:
    x, mask = padded((20, 20))
    one, other = network(), network()
    torch.testing.assert_close(one(x, mask), other(x))
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_samples_and_any_length() -> None:
    model = create_model("lambda_audio_small", in_chans=1, num_classes=3, stem_strides=(8, 5, 2)).eval()
    with torch.no_grad():
        for n in (1, 79, 80, 81, 4000):
            assert model(torch.randn(2, 1, n)).shape == (2, 3)
        x = torch.randn(2, 1, 900)
        mask = torch.arange(900) < torch.tensor([[900], [333]])
        torch.testing.assert_close(model(x, mask)[1], model(x[1:, :, :333])[0], rtol=1e-4, atol=1e-5)


def test_the_head_can_be_replaced_and_tables_have_no_weight_decay() -> None:
    model = create_model("lambda_audio_small", num_classes=4)
    model.reset_classifier(9)
    assert model(torch.randn(2, 40, 11)).shape == (2, 9)
    assert model.get_classifier() is model.fc
    model.reset_classifier(0)
    assert model(torch.randn(2, 40, 11)).shape == (2, model.num_features)
    tables = [m for m in model.modules() if isinstance(m, LambdaLayer1d)]
    assert len(model.no_weight_decay()) == len(tables) == 3


def test_they_are_registered() -> None:
    assert set(NAMES) <= set(timm.list_models("lambda_audio*"))
    info = model_info("lambda_audio")
    assert info.image == (40, 1, 100)
    assert "scope 23" in info.description
    assert create_model("lambda_audio").num_classes == 10  # those of its trained weights
    assert timm.create_model("lambda_audio_small", num_classes=3, scope=9).config.scope == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operater": "conv"}, "lambda_audio has no option 'operater'; did you mean operator"),
        ({"operator": "mlp"}, "operator must be one of lambda, attention"),
        ({"depths": (1,)}, "must have one number for each stage"),
        ({"widths": ()}, "widths must be numbers of 1 or more"),
        ({"stem_strides": (0,)}, "stem_strides must be numbers of 1 or more"),
        ({"content": False, "position": False}, "leave nothing to compute"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("lambda_audio", **options)


def test_no_trained_weights_of_the_small_one() -> None:
    with pytest.raises(ValueError, match="no trained weights of lambda_audio_small"):
        create_model("lambda_audio_small", pretrained=True)


def test_inputs_that_do_not_fit() -> None:
    model = create_model("lambda_audio_small")
    with pytest.raises(ValueError, match=r"x must be of shape \(b 40 n\), got \(2, 3, 5\)"):
        model(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(b, n\) = \(2, 5\)"):
        model(torch.randn(2, 40, 5), torch.ones(2, 5))
