"""A detector is trained as any network: exact resume, several processes, and all that a person finds."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from hub_cache import NAME, place_on_hub
from lambdanets.data import DataError, DataWarning
from lambdanets.data.coco.masks import Masks
from lambdanets.detection import DetectionConfig, evaluate, load_run, predict, predict_samples, train
from lambdanets.detection.mask_rcnn import create_detector
from lambdanets.detection.training import DETECTION, DetectionModule
from lambdanets.models import WeightsError
from lambdanets.recipes import coco, miniature
from lambdanets.train import NonFiniteLossError, RunError, RunResult, override
from lambdanets.train.checkpoint import RunState, load_checkpoint
from lambdanets.train.engine import build_learner
from lambdanets.train.initial_weights import start_from
from launching import by_slurm, finish
from object_sets import write_objects
from runs import assert_same_end, raised_in_batch


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("objects") / "set", empty=2)


@pytest.fixture(scope="module")
def tiny(objects: Path) -> DetectionConfig:
    """The paper's recipe in miniature, with an average, on all eight images in each of two epochs."""
    config = miniature(coco())
    return override(
        config,
        f"data.source=coco:{objects}",
        "engine.max_batches=None",
        "engine.max_val_batches=None",
        "engine.precision=32",
        "engine.save_steps=1",
        "engine.ema=0.5",
    )


@pytest.fixture(scope="module")
def finished(tiny: DetectionConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(tiny, run_dir=tmp_path_factory.mktemp("runs") / "finished")


def test_a_folder_with_all_that_there_is_to_see(finished: RunResult, objects: Path) -> None:
    folder = finished.directory
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "classes.json", "metrics.csv", "curves.png", "sheet.png", "precision_recall.png",
        "results", "classes.csv", "summary.txt", "weights.safetensors", "checkpoints",
    }  # fmt: skip
    assert json.loads((folder / "classes.json").read_text()) == ["disc", "bar"]
    assert "8 training and 4 validation images, 2 classes" in finished.summary
    rows = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    parts = ("objectness", "proposals", "classes", "boxes", "masks")
    for row in rows:
        assert float(row["train_loss"]) == pytest.approx(
            sum(float(row[f"train_{p}"]) for p in parts), rel=1e-4
        )
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert finished.best["val_mask_ap"] == max(float(row["val_mask_ap"]) for row in rows)
    for name in ("curves.png", "sheet.png", "precision_recall.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300


FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def test_the_table_holds_what_pycocotools_says_of_the_results(finished: RunResult, objects: Path) -> None:
    truth = COCO(str(objects / "annotations" / "instances_val.json"))
    for kind, name, file in (("bbox", "box", "boxes"), ("segm", "mask", "masks")):
        results = truth.loadRes(str(finished.directory / "results" / f"{file}.json"))
        judge = COCOeval(truth, results, kind)  # pyright: ignore[reportArgumentType]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for place, figure in enumerate(FIGURES):
            # What is undefined is -1 there and missing here.
            assert finished.best.get(f"val_{name}_{figure}", -1.0) == judge.stats[place]


def test_the_table_has_the_recall_of_as_many_as_count(tiny: DetectionConfig) -> None:
    config = override(tiny, "validation.max_detections=300")
    module = DetectionModule(config.network(2), config, classes=("disc", "bar"), state=RunState())
    assert {name for name in module.columns if "_ar" in name} == {"val_mask_ar300", "val_box_ar300"}


def test_evaluation_gives_what_training_measured(finished: RunResult) -> None:
    found = evaluate(load_run(finished.directory))
    figures = found.scores.figures()
    for name in ("box_ap", "mask_ap", "mask_ar100"):
        assert figures[name] == pytest.approx(finished.best[f"val_{name}"], abs=1e-6)
    same(found.results, json.loads((finished.directory / "results" / "boxes.json").read_text()))
    more = evaluate(load_run(finished.directory), max_detections=120)
    assert max(Counter(entry["image_id"] for entry in found.results).values()) == 20
    assert max(Counter(entry["image_id"] for entry in more.results).values()) > 20


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_killed_anywhere_it_goes_on_as_if_nothing_had_happened(
    tiny: DetectionConfig, finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    with raised_in_batch(monkeypatch, DetectionModule, batch):
        train(tiny, run_dir=tmp_path / "run")
    train(run_dir=tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "run", finished.directory)


def test_the_backbone_waits_for_the_heads(
    tiny: DetectionConfig, finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch body and statistics stay, pyramid and heads are trained; then all but the stem."""
    parts = ["model.head_epochs=1", "model.frozen_stages=1", "engine.ema=None"]
    config = override(tiny, f"model.weights={finished.directory}", *parts)
    # The stop is in the second batch of the first epoch, so its checkpoint is of the frozen body.
    with raised_in_batch(monkeypatch, DetectionModule, 1):
        train(config, run_dir=tmp_path / "run")
    before = load_run(finished.directory).model().state_dict()
    first = load_run(tmp_path / "run").model("last").state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, first[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone", "rpn", "roi_heads"}
    assert {name.split(".")[1] for name in changed if name.startswith("backbone.")} == {"fpn"}
    train(run_dir=tmp_path / "run", resume=True)
    train(config, run_dir=tmp_path / "straight")
    assert_same_end(tmp_path / "run", tmp_path / "straight")
    last = load_run(tmp_path / "run").model("last").state_dict()
    moved = {name.split(".")[2] for name in last if not torch.equal(last[name], before[name])}
    assert not moved & {"conv1", "bn1"}
    assert moved >= {"layer1", "layer4"}


def test_batches_of_no_objects_at_all_are_trained_on(tiny: DetectionConfig, tmp_path: Path) -> None:
    source = write_objects(tmp_path / "set", train=2, val=1)
    for side, images in (("train", {1}), ("val", set())):
        file = source / "annotations" / f"instances_{side}.json"
        content = json.loads(file.read_text())
        kept = [each for each in content["annotations"] if each["image_id"] in images]
        file.write_text(json.dumps(content | {"annotations": kept}))
    config = override(tiny, f"data.source=coco:{source}", "engine.epochs=1", "data.batch_size=1")
    with pytest.warns(DataWarning, match=r"the 1 validation images of .* have no objects"):
        result = train(config, run_dir=tmp_path / "run")
    assert 0 < result.history[0]["train_boxes"] < math.inf
    assert result.best["val_mask_ap"] == 0


def test_a_set_without_objects_is_not_trained_on(tiny: DetectionConfig, tmp_path: Path) -> None:
    source = write_objects(tmp_path / "set", train=2, val=1)
    file = source / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(DataError, match=r"the 2 training images of .* have no objects: they have no annot"):
        train(override(tiny, f"data.source=coco:{source}"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rate_that_diverges_leaves_what_led_to_it(tiny: DetectionConfig, tmp_path: Path) -> None:
    wild = ["optimizer.lr=1e25", "optimizer.lr_batch=None", "schedule.warmup_epochs=0", "engine.ema=None"]
    with pytest.raises(NonFiniteLossError, match="became nan at step 1 "):
        train(override(tiny, *wild, "engine.save_steps=None"), run_dir=tmp_path / "run")
    kept = tmp_path / "run" / "nonfinite"
    batch = load_file(kept / "batch.safetensors")
    assert batch["0.image"].dtype == torch.uint8
    assert {name.split(".")[1] for name in batch} >= {"image", "boxes", "labels", "masks"}
    report = json.loads((kept / "report.json").read_text())
    assert report["first_nonfinite_output"].startswith("backbone")


def test_boxes_alone(tiny: DetectionConfig, tmp_path: Path) -> None:
    config = override(tiny, "data.masks=false", "engine.epochs=1", "engine.ema=None")
    result = train(config, run_dir=tmp_path / "run")
    assert "val_box_ap" in result.best
    assert not any("mask" in name for name in result.best)
    assert [path.name for path in (tmp_path / "run" / "results").iterdir()] == ["boxes.json"]


def test_validation_now_and_then_and_at_the_end(tiny: DetectionConfig, tmp_path: Path) -> None:
    config = override(tiny, "engine.epochs=3", "engine.validate_every=2", "engine.max_batches=1")
    result = train(config, run_dir=tmp_path / "run")
    assert ["val_mask_ap" in row for row in result.history] == [False, True, True]
    assert result.best_epoch in (2, 3)
    columns = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open(newline="")))
    assert columns[0]["val_mask_ap"] == ""


def test_the_backbone_starts_from_a_classifier(tiny: DetectionConfig, tmp_path: Path) -> None:
    from lambdanets.models import create_model

    torch.manual_seed(5)
    classifier = create_model(tiny.model.name, num_classes=7, **tiny.model.options)
    torch.save(classifier.state_dict(), tmp_path / "w.pt")
    frozen = ["model.frozen_stages=2", "model.norms=frozen", "engine.epochs=1", "engine.ema=None"]
    config = override(tiny, f"model.weights={tmp_path / 'w.pt'}", *frozen)
    train(config, run_dir=tmp_path / "run")
    body = load_run(tmp_path / "run").model("last").backbone.body.state_dict()  # pyright: ignore
    own = classifier.state_dict()
    assert torch.equal(body["layer1.0.conv1.weight"], own["layer1.0.conv1.weight"])
    assert torch.equal(body["layer3.0.bn1.running_mean"], own["layer3.0.bn1.running_mean"])
    assert not torch.equal(body["layer3.0.conv1.weight"], own["layer3.0.conv1.weight"])


def test_photos_and_samples(finished: RunResult, objects: Path, tmp_path: Path) -> None:
    run = load_run(finished.directory)
    (tmp_path / "text.png").write_text("no image")
    wide = tmp_path / "wide.png"
    Image.new("L", (150, 40)).save(wide)
    seen = list(predict(run, [objects / "val", wide, tmp_path / "text.png"], threshold=0.0))
    assert [each.error is None for each in seen] == [True] * 5 + [False]
    assert seen[4].found["masks"].shape[1:] == (1, 40, 150)
    for each in seen[:5]:
        assert each.image is not None
        right, bottom = each.found["boxes"][:, 2:].amax(0) if len(each.found["boxes"]) else (0, 0)
        assert right <= each.image.width
        assert bottom <= each.image.height
    assert isinstance(seen[4].objects["masks"], Masks)
    pairs = list(predict_samples(run, 3))
    assert [pair.name for pair in pairs] == ["001.png", "002.png", "003.png"]
    assert len(pairs[0].truth["boxes"]) > 0


def test_large_images_are_looked_at_in_tiles(finished: RunResult, objects: Path, tmp_path: Path) -> None:
    run = load_run(finished.directory)
    stored = json.loads((finished.directory / "image_sizes.json").read_text())
    with Image.open(objects / "train" / "001.png") as image:
        assert stored == {"median": max(image.size), "large": max(image.size)}
    side = stored["median"]
    large = tmp_path / "large.png"
    Image.new("RGB", (20 * side, 2 * side)).save(large)
    [auto] = predict(run, [large])
    [whole] = predict(run, [large], tile="off")
    [pieces] = predict(run, [large], tile=10 * side)
    assert whole.tiles == 1
    assert auto.tiles >= 40
    assert 2 <= pieces.tiles <= 3
    for wrong in ("sometimes", 0, -3):
        with pytest.raises(ValueError, match="tile is auto, off, or the side of a tile in pixels"):
            predict(run, [large], tile=wrong)  # pyright: ignore[reportArgumentType]
    whole, halves = evaluate(run), evaluate(run, tile=side // 2)
    assert (whole.tiled, halves.tiled) == (0, 4)
    assert halves.scores.images == 4
    assert {entry["image_id"] for entry in halves.results} <= {entry["image_id"] for entry in whole.results}


def test_what_a_run_of_another_kind_is_told(finished: RunResult, tmp_path: Path) -> None:
    from lambdanets.train import load_run as load_classifier

    with pytest.raises(RunError, match="of a run of detection, not of classification"):
        load_classifier(finished.directory)


@pytest.mark.slow
def test_two_processes_validate_every_image_once_and_train_alike(
    tiny: DetectionConfig, objects: Path, tmp_path: Path
) -> None:
    """Three validation images on two processes: none counts twice, and the results are one process's."""
    odd = write_objects(tmp_path / "set", train=4, val=3)
    config = override(tiny, f"data.source=coco:{odd}", "engine.epochs=1", "engine.ema=None",
                      "engine.accelerator=cpu", "engine.strategy=ddp", "engine.save_steps=None")  # fmt: skip
    folder = tmp_path / "two"
    changes = [f"{name}={value!r}" for name, value in changed(config)]
    ends = finish(*by_slurm("coco", "--out", folder, *(w for c in changes for w in ("--set", c))))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [out.count("epoch 1/1") for _, out, _ in ends] == [1, 0]
    run = load_run(folder)
    again = evaluate(run, weights="last")
    same(again.results, json.loads((folder / "results" / "boxes.json").read_text()))
    assert again.scores.images == 3
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 1


def same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """The same objects, to rounding: their order may differ where scores do by the last digit."""
    key = ("image_id", "category_id")
    assert Counter(tuple(e[k] for k in key) for e in some) == Counter(
        tuple(e[k] for k in key) for e in others
    )
    scores = [sorted(entry["score"] for entry in entries) for entries in (some, others)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def changed(config: DetectionConfig) -> Iterator[tuple[str, object]]:
    """What differs from the recipe, as `--set` takes it."""
    from lambdanets.train.serialization import flatten

    usual = flatten(coco())
    yield from ((name, value) for name, value in flatten(config).items() if usual[name] != value)


def test_a_detector_starts_from_a_detector(finished: RunResult, tmp_path: Path) -> None:
    """Pyramid, proposals and heads too; only layers for another number of classes begin at random."""
    weights = load_file(finished.directory / "weights.safetensors")
    (tmp_path / "file.safetensors").write_bytes((finished.directory / "weights.safetensors").read_bytes())
    config, _ = start_from(override(coco(), "data.masks=True"), str(finished.directory))
    learner = build_learner(DETECTION, config, ["disc", "bar"])
    for name, value in learner.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    network = config.network(3)
    assert config.pretrained_part(network) is network
    said = config.load_initial_weights(network)
    assert "roi_heads.box_predictor.cls_score.weight" in said
    assert "keep random weights: other classes" in said
    for name, value in network.state_dict().items():
        same = value.shape == weights[name].shape and torch.equal(value, weights[name])
        assert same != ("_predictor." in name and "conv5" not in name), name
    # The library function loads a detector's file as well.
    model = override(config, f"model.weights={tmp_path / 'file.safetensors'}").model
    assert torch.equal(
        create_detector(model, num_classes=2, masks=True).state_dict()["rpn.head.cls_logits.weight"],
        weights["rpn.head.cls_logits.weight"],
    )
    boxes = override(config, "data.masks=False")
    with pytest.raises(WeightsError, match=r"not those of a detector on lambda_resnet101: \d+ are unknown"):
        boxes.load_initial_weights(boxes.network(2))


def test_a_detector_on_the_hub(
    finished: RunResult, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(finished.directory)
    folder = run.save_for_hub(place_on_hub(monkeypatch, tmp_path / "hub"))
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card
    assert f"| mask_ap | {finished.best['val_mask_ap']:.4f} |" in card
    assert "validation images, 2 classes. The figures" in card
    assert str(objects) not in card + (folder / "config.json").read_text()
    # The downloaded folder is a run.
    copy = load_run(folder)
    assert copy.classes == run.classes
    for one, other in zip(*(predict(each, [objects / "val"]) for each in (run, copy)), strict=True):
        assert torch.equal(one.found["boxes"], other.found["boxes"])
    # The name gives its weights.
    config, _ = start_from(coco(), NAME)
    assert isinstance(config, DetectionConfig)
    assert config.model == replace(run.config.model, weights=NAME)
    learner = build_learner(DETECTION, config, copy.classes)
    torch.testing.assert_close(learner.network.state_dict(), run.model().state_dict(), rtol=0, atol=0)
