"""What a detector's configuration refuses, and how it travels."""

from pathlib import Path

import pytest

from detectors import tiny_config
from lambdanets.detection import DetectorConfig
from lambdanets.detection.mask_rcnn import create_detector
from lambdanets.train.serialization import from_json, override, to_json


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": ""}, "model.weights is a file, a folder or hf-hub"),
        ({"weights": "a", "options": {"pretrained": True}}, "both give initial weights; keep one"),
        ({"options": {"num_classes": 3}}, "model.options.num_classes is set by the detector"),
        ({"options": {"features_only": True}}, "model.options.features_only is set by the detector"),
        ({"frozen_stages": -1, "weights": "a"}, "model.frozen_stages is 0 or more; got -1"),
        ({"head_epochs": -1}, "model.head_epochs is 0 or more; got -1"),
        ({"norms": "group"}, "model.norms is 'batch' or 'frozen'; got 'group'"),
        ({"head_norm": "group"}, "model.head_norm is 'batch' or None; got 'group'"),
        ({"bn_momentum": 0.0}, "model.bn_momentum is above 0 and at most 1"),
        ({"fpn_channels": 0}, "model.fpn_channels is 1 or more; got 0"),
        ({"box_detections_per_img": 0}, "model.box_detections_per_img is 1 or more; got 0"),
        ({"box_score_thresh": 1.5}, "model.box_score_thresh is from 0 to 1; got 1.5"),
        (
            {"rpn_bg_iou_thresh": 0.8},
            "model.rpn_bg_iou_thresh is at most model.rpn_fg_iou_thresh, 0.7; got 0.8",
        ),
        ({"reductions": ()}, "model.reductions starts with a power of two"),
        ({"reductions": (3, 6)}, "model.reductions starts with a power of two"),
        ({"reductions": (4, 16)}, "model.reductions doubles from map to map"),
        (
            {"anchor_sizes": (32, 64)},
            "model.anchor_sizes has a size for each of the 4 reductions and one for",
        ),
        ({"anchor_sizes": (0, 1, 2, 3, 4)}, "model.anchor_sizes are greater than 0"),
        ({"aspect_ratios": ()}, "model.aspect_ratios are greater than 0"),
        ({"image_mean": (0.5,)}, "model.image_mean is three numbers; got"),
        ({"image_std": (0.5, 0.5, 0.0)}, "model.image_std is three numbers greater than 0; got"),
    ],
)
def test_refusals(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DetectorConfig(**{"name": "lambda_resnet_mini", **changes})


@pytest.mark.parametrize("changes", [{"frozen_stages": 2}, {"head_epochs": 1}, {"norms": "frozen"}])
def test_only_trained_weights_are_kept_as_they_are(changes: dict) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(ValueError, match=f"model.{name}={value} needs trained weights to start from: add --"):
        create_detector(tiny_config(**changes), num_classes=2, masks=True)


def test_what_is_trained_may_be_fixed() -> None:
    DetectorConfig(name="resnet50", options={"pretrained": True}, frozen_stages=2, norms="frozen")
    DetectorConfig(name="resnet50", weights="hf-hub:timm/resnet50.a1_in1k", frozen_stages=2)


def test_it_goes_through_json_and_overrides() -> None:
    config = tiny_config(image_mean=(0.1, 0.2, 0.3))
    assert from_json(DetectorConfig, to_json(config)) == config
    changed = override(config, "anchor_sizes=16,32,64,128,256", "head_norm=None", "options.scope=7")
    assert (changed.anchor_sizes, changed.head_norm) == ((16, 32, 64, 128, 256), None)
    assert changed.options["scope"] == 7


def test_paths_of_weights_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tiny_config(weights="runs/a").resolved().weights == str(tmp_path / "runs" / "a")
    for weights in (None, "hf-hub:timm/resnet50.a1_in1k"):
        config = tiny_config(weights=weights)
        assert config.resolved() == config
