"""Networks as backbones: where they start, what of them is fixed, and which are refused."""

from pathlib import Path

import pytest
import torch

from detectors import BODY, batch, pictures, tiny, tiny_config
from foreign import awake, saved
from lambdanets.detection import Detector, create_detector
from lambdanets.models import WeightsError, create_model


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Weights of a classifier of the tests' backbone, with a head of seven classes."""
    torch.manual_seed(3)
    model = awake(create_model("lambda_resnet_mini", num_classes=7, **BODY))
    return saved(model, tmp_path / "weights.safetensors")


def step(detector: Detector) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The state before and after a large step of training."""
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    detector.train()
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    torch.stack(list(detector(*batch()).values())).sum().backward()
    optimizer.step()
    return before, detector.state_dict()


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_a_classifier_is_where_it_starts(classifier: Path) -> None:
    detector = tiny_from(classifier)
    model = create_model("lambda_resnet_mini", num_classes=7, checkpoint_path=str(classifier), **BODY)
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    assert detector.backbone.body.state_dict().keys() == expected.keys()
    torch.testing.assert_close(detector.backbone.body.state_dict(), expected, rtol=0, atol=0)
    images = torch.rand(1, 3, 64, 96)
    maps = detector.eval().backbone.body.forward_intermediates(images, intermediates_only=True)[1:]
    features = model.eval().forward_intermediates(images, intermediates_only=True)[1:]
    torch.testing.assert_close(maps, features, rtol=0, atol=0)


def tiny_from(weights: Path, **changes) -> Detector:
    return create_detector(tiny_config(weights=str(weights), **changes), num_classes=2, masks=True)


def test_weights_that_follow_are_not_read_before(tmp_path: Path) -> None:
    config = tiny_config(weights=str(tmp_path / "gone"), frozen_stages=1)
    assert create_detector(config, num_classes=2, masks=True, loads_weights=True)
    with pytest.raises(WeightsError, match="no such file"):
        create_detector(config, num_classes=2, masks=True)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = saved(create_model("lambda_resnet_digits"), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not those of lambda_resnet_mini"):
        tiny_from(other)


@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_frozen_stages_do_not_move(classifier: Path, stages: int) -> None:
    before, after = step(tiny_from(classifier, frozen_stages=stages))
    names = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))
    for number, prefixes in enumerate(names):
        own = {name for name in before if name.removeprefix("backbone.body.").startswith(prefixes)}
        assert len(own) > 5
        assert own & moved(before, after) == (set() if number < stages else own)
    heads = {name for name in before if not name.startswith("backbone.body.")}
    assert heads <= moved(before, after)


def test_frozen_stages_stay_in_evaluation_mode(classifier: Path) -> None:
    detector = tiny_from(classifier, frozen_stages=2, options={**BODY, "drop_path_rate": 0.5})
    for mode in (True, False):
        detector.train(mode)
        modes = {name: module.training for name, module in detector.backbone.body.named_modules()}
        assert not any(modes[name] for name in modes if name.startswith(("conv1", "bn1", "layer1")))
        assert {modes[name] for name in modes if name.startswith(("layer2", "layer3", "layer4"))} == {mode}


def test_frozen_norms_do_not_move(classifier: Path) -> None:
    detector = tiny_from(classifier, norms="frozen")
    before, after = step(detector)
    norms = {
        f"backbone.body.{name}.{part}"
        for name, module in detector.backbone.body.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for part in module.state_dict()
    }
    assert len(norms) > 50
    assert moved(before, after) == before.keys() - norms


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "regnetx_002",
        "convnext_atto",
        "mobilenetv2_lambda",
        "mobilenetv3_small_050",
        "resnet_mini_conv",
    ],
)
def test_other_networks(name: str) -> None:
    detector = tiny(name=name, options={})
    torch.stack(list(detector(*batch()).values())).sum().backward()
    assert [key for key, p in detector.named_parameters() if p.grad is None] == []
    features = detector.eval().backbone(torch.rand(1, 3, 128, 192))
    shapes = {key: tuple(each.shape[1:]) for key, each in features.items()}
    sides = zip(("0", "1", "2", "3", "pool"), (4, 8, 16, 32, 64), strict=True)
    assert shapes == {key: (16, 128 // step, 192 // step) for key, step in sides}


def test_a_map_of_the_stem_and_few_maps() -> None:
    detector = tiny(reductions=(2, 4, 8), anchor_sizes=(4, 8, 16, 32))
    assert [name for name, _ in detector.backbone.body.named_parameters() if "layer3" in name] == []
    images, targets = batch()
    loss = torch.stack(list(detector(images, targets).values())).sum()
    loss.backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert detector.eval().backbone(torch.rand(1, 3, 64, 64))["0"].shape == (1, 16, 32, 32)


def test_every_grid_is_served_by_one_table() -> None:
    detector = tiny(options={**BODY, "scope": "global", "image_size": 64}, box_score_thresh=0.0).eval()
    for size in ((1024, 1024), (300, 500)):
        [found] = detector(pictures(size))
        assert len(found["boxes"]) == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "lambda_resnet_min"}, "there is no model named 'lambda_resnet_min'; did you mean"),
        ({"name": "vit_tiny_patch16_224", "options": {}}, r"has no feature map of 4, but of 16"),
        ({"name": "swin_tiny_patch4_window7_224", "options": {}}, "cannot take images of any size"),
        (
            {"name": "lambda_resnet_digits", "options": {}},
            "lambda_resnet_digits has no feature map of 4, but of 1, 2",
        ),
        ({"options": {**BODY, "output_stride": 16}}, "has no feature map of 32, but of 2, 4, 8, 16"),
        ({"options": {"scop": 7}}, "no option 'scop'; did you mean scope"),
    ],
)
def test_networks_that_cannot_be_a_backbone(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_detector(tiny_config(**changes), num_classes=2, masks=True)


def test_more_frozen_stages_than_there_are(classifier: Path) -> None:
    with pytest.raises(
        ValueError, match="at most 5, the stem and the other stages of lambda_resnet_mini; got 6"
    ):
        tiny_from(classifier, frozen_stages=6)


def test_no_norms_to_freeze(tmp_path: Path) -> None:
    weights = saved(create_model("convnext_atto"), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="has no effect: convnext_atto has no batch norms"):
        tiny_from(weights, name="convnext_atto", options={}, norms="frozen")
