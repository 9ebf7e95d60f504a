"""Detectors in a file of each format, run elsewhere and held against the detector itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops

from detectors import pictures, tiny, tiny_config
from elsewhere import run_elsewhere
from lambdanets.data import CocoConfig
from lambdanets.detection import DetectionConfig, export
from lambdanets.detection.mask_rcnn import RegionPool
from lambdanets.exporting import ExportError
from lambdanets.exporting.detector import CompareObjects, batched_nms
from lambdanets.train import Run
from object_sets import write_objects

SIDE = 80


def untrained(folder: Path, **changes: Any) -> Run[DetectionConfig]:
    """A run of a detector that has learnt nothing, and so finds as much as it may, everywhere."""
    changes = {"box_score_thresh": 0.0, **changes}
    write_objects(folder / "photos", train=1, val=2)
    save_file(tiny(**changes).state_dict(), folder / "weights.safetensors")
    data = CocoConfig(source=f"coco:{folder / 'photos'}", image_size=SIDE)
    config = DetectionConfig(recipe="coco", model=tiny_config(**changes), data=data)
    return Run(config, ("disc", "bar"), folder)


def test_a_program_of_torch_finds_what_the_detector_finds(tmp_path: Path) -> None:
    run, file = untrained(tmp_path), tmp_path / "d.pt2"
    made = export(run, file, format="torch")
    assert made.images == "validation"
    assert made.objects == 36  # of three images, as many as may be found
    assert made.difference < 1e-4
    detector: Any = run.model()
    [image] = pictures((SIDE, SIDE))
    found = run_elsewhere(file, image=image.numpy())
    with torch.no_grad():
        [truth] = detector.regions([image])
    assert len(truth["scores"]) == 12
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-3)
    facts = {name[6:]: json.loads(str(value)) for name, value in found.items() if name.startswith("facts/")}
    assert facts == {
        "model": "lambda_resnet_mini",
        "classes": ["disc", "bar"],
        "image_size": SIDE,
        "resize": True,
        "fill": [124, 116, 104],
        "score_threshold": 0.0,
    }


def test_nothing_is_found_and_the_runs_images_are_gone(tmp_path: Path) -> None:
    run, file = untrained(tmp_path, box_score_thresh=0.9), tmp_path / "d.onnx"
    shutil.rmtree(tmp_path / "photos")
    made = export(run, file, format="onnx", size=70)
    assert (made.images, made.objects, made.difference) == ("random", 0, 0)
    found = run_elsewhere(file, image=pictures((70, 70))[0].numpy())
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 1, 28, 28)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    run = untrained(tmp_path)
    with pytest.raises(ExportError, match="size must be at least 1, got 0"):
        export(run, tmp_path / "d.pt2", format="torch", size=0)
    with pytest.raises(ExportError, match=r"ends in \.onnx"):
        export(run, tmp_path / "d.pt2", format="onnx")
    assert list(tmp_path.glob("*d.*")) == []


def objects(**changes: list[Any]) -> list[Tensor]:
    """Boxes, labels and scores of three objects."""
    usual = {
        "boxes": [[0, 0, 10, 10], [5, 5, 50, 60], [20, 0, 40, 90]],
        "labels": [1, 2, 1],
        "scores": [0.9, 0.6, 0.0505],
    }
    return [torch.tensor(value) for value in (usual | changes).values()]


def test_objects_are_compared_one_by_one() -> None:
    def compare(found: list[Tensor], most: int = 100) -> tuple[float, float]:
        return CompareObjects(0.05, most, 100)(("boxes", "labels", "scores"), found, objects())

    assert compare(objects()) == (0.0, 1.0)
    assert compare([value.flip(0) for value in objects()]) == (0.0, 1.0)
    assert compare([value[:2] for value in objects()]) == (0.0, 1.0)  # the third is at the threshold
    moved = compare(objects(boxes=[[0, 0, 10, 10.05], [5, 5, 50, 60], [20, 0, 40, 90]]))
    assert moved[0] == pytest.approx(0.0005, rel=1e-3)
    for wrong in (
        objects(boxes=[[0, 0, 10, 10.2], [5, 5, 50, 60], [20, 0, 40, 90]]),
        objects(labels=[1, 1, 1]),
        objects(scores=[0.9, 0.65, 0.0505]),
        [value[:1] for value in objects()],
        [value[:0] for value in objects()],
    ):
        with pytest.raises(ExportError, match="objects of the detector are not found by the file"):
            compare(wrong)
    for wrong in (objects(scores=[0.9, torch.nan, 0.0505]), objects(boxes=[[torch.nan] * 4] * 3)):
        with pytest.raises(ExportError, match="that are not finite"):
            compare(wrong)
    more = [torch.cat([value, value[:1]]) for value in objects()]
    more[0][3] += 7
    with pytest.raises(ExportError, match="1 of the 4 objects of the file are not found by the detector"):
        compare(more)
    more[2][3] = 0.0505
    assert compare(more, most=4) == (0.0, 1.0)  # as good as the last of those that are kept


def test_traceable_nms_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 90 * torch.rand(2000, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(2000, 2, generator=generator)], 1)
    scores, labels = torch.rand(2000, generator=generator), torch.randint(0, 4, (2000,), generator=generator)
    for count in (0, 1, 50, 2000):
        words = boxes[:count], scores[:count], labels[:count], 0.5
        assert torch.equal(batched_nms(*words), box_ops.batched_nms(*words))


def test_pooled_regions_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {
        str(level): torch.randn(2, 3, 64 >> level, 96 >> level, generator=generator) for level in range(4)
    }
    maps["pool"] = torch.zeros(2, 3, 4, 6)
    corners = 150 * torch.rand(30, 2, generator=generator)
    sides = torch.logspace(0, 2.3, 30)[:, None] * (0.5 + torch.rand(30, 2, generator=generator))
    boxes = torch.cat([corners, corners + sides], 1)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    for split in ([boxes[:21], boxes[21:]], [boxes[:0], boxes], [boxes[:0], boxes[:0]]):
        ours = RegionPool((4, 8, 16, 32), 7)(maps, split, [(256, 384)] * 2)
        assert torch.equal(ours, theirs(maps, split, [(256, 384)] * 2))
