"""Detectors from the command line: photos with a COCO json, one command to train, one to predict."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detectors import pictures
from elsewhere import run_elsewhere
from lambdanets.data import DataWarning, read_image
from lambdanets.detection import load_run
from lambdanets.recipes import coco, miniature
from lambdanets.train.serialization import flatten
from object_sets import write_objects

Command = Callable[..., subprocess.CompletedProcess[str]]


def small() -> list[str]:
    """What makes a miniature of the recipe, as a person would type it."""
    usual, mini = flatten(coco()), flatten(miniature(coco()))
    changes = [f"{name}={mini[name]!r}" for name in mini if mini[name] != usual[name]]
    return [word for change in (*changes, "engine.precision=32") for word in ("--set", change)]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("objects") / "photos", train=4, val=3)


@pytest.fixture(scope="module")
def detector(command: Command, objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, trained by a command in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "detector"
    done = command("train", "coco", "--data", f"coco:{objects}", "--out", folder, *small())
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_train_says_what_it_reached_and_what_to_do_next(detector: Path) -> None:
    shown = (detector / "printed.txt").read_text()
    assert "epoch 1/2  train" in shown
    assert "mask AP" in shown
    assert "4 training and 3 validation images, 2 classes" in shown
    assert "note    3 validation images are few" in shown
    assert re.search(r"^data +coco:.*2 classes, \d+ objects to train on$", shown, re.MULTILINE)
    assert f"lambdanets predict {detector} --samples 20" in shown


def test_eval_writes_results_that_others_can_read(inside: Command, detector: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("found", "figures.json", "classes.csv")]
    words = ["--results", files[0], "--json", files[1], "--per-class", files[2], "--max-detections", 12]
    done = inside("eval", detector, *words)
    assert done.returncode == 0, done.stderr
    assert "AP (IoU 0.50 to 0.95)" in done.stdout
    assert "AR with 12 detections" in done.stdout
    figures = json.loads(files[1].read_text())
    assert figures["images"] == 3
    assert set(figures) >= {"box_ap", "mask_ap50", "mask_ar12", "classes"}
    boxes, masks = (json.loads((files[0] / f"{name}.json").read_text()) for name in ("boxes", "masks"))
    assert len(boxes) == len(masks) > 0
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in boxes)
    assert all(
        entry["category_id"] in (3, 8) and entry["segmentation"]["size"] == [64, 64] for entry in masks
    )
    with files[2].open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert [row["class"] for row in classes] == ["disc", "bar"]
    assert all({"found", "precision_50", "recall_50", "f1_50"} < set(row) for row in classes)
    assert sum(int(row["found"]) for row in classes) == figures["at_threshold"]["found"]


def test_eval_lists_and_draws_errors(inside: Command, detector: Path, tmp_path: Path) -> None:
    words = ["--threshold", 0.0, "--errors", tmp_path / "errors.csv", "--json", tmp_path / "figures.json"]
    done = inside("eval", detector, *words)
    assert done.returncode == 0, done.stderr
    assert "scores from 0" in done.stdout
    assert "F1 (IoU 0.50)" in done.stdout
    assert "the counts of an image differ by" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())["at_threshold"]
    with (tmp_path / "errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [row["kind"] for row in rows]
    hits = figures["annotated"] - kinds.count("missed")
    assert hits == figures["found"] - kinds.count("false")
    assert figures["mask"]["recall_50"] == hits / figures["annotated"]
    assert rows
    assert all(Path(row["file"]).is_file() for row in rows)
    with Image.open(tmp_path / "errors.png") as sheet:
        assert min(sheet.size) > 300
    assert inside("eval", detector, "--threshold", 1.0).returncode == 0  # nothing is found


def test_eval_on_other_images_takes_all_of_a_single_json(
    inside: Command, detector: Path, tmp_path: Path
) -> None:
    other = write_objects(tmp_path / "other", train=5, val=1, seed=9)
    file = other / "annotations" / "instances_train.json"
    done = inside("eval", detector, "--data", f"coco:{file}")
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout


def test_predict_draws_photos_of_a_folder(
    command: Command, detector: Path, objects: Path, tmp_path: Path
) -> None:
    """Two photos of the same name in two folders, one that is turned by its EXIF tag, one that is none."""
    for number, place in enumerate(("a", "b")):
        (tmp_path / place).mkdir()
        photo = read_image(objects / "val" / "001.png").resize((120, 80 + number))
        tags = photo.getexif()
        tags[0x0112] = 6 if number else 1
        photo.save(tmp_path / place / "photo.jpg", exif=tags)
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    out, file = tmp_path / "drawn", tmp_path / "found.json"
    words = ["--threshold", 0.0, "--out", out, "--json", file]
    done = command("predict", detector, tmp_path / "a", tmp_path / "b", *words)
    assert done.returncode == 0, done.stderr
    assert "broken.jpg" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["photo-2.png", "photo.png"]
    with Image.open(out / "photo.png") as wide, Image.open(out / "photo-2.png") as tall:
        assert wide.width > wide.height
        assert tall.height > tall.width
    broken, *seen = json.loads(file.read_text())
    assert "error" in broken
    assert [(each["width"], each["height"]) for each in seen] == [(120, 80), (81, 120)]
    for each in seen:
        for found in each["objects"]:
            assert found["class"] in ("disc", "bar")
            assert found["segmentation"]["size"] == [each["height"], each["width"]]


def test_predict_measures_objects_and_writes_label_images(
    inside: Command, detector: Path, objects: Path, tmp_path: Path
) -> None:
    """The label image, read as masks, has the areas of the table, unless a better object covers a pixel."""
    files = {name: tmp_path / f"{name}.csv" for name in ("csv", "counts")}
    words = ["--csv", files["csv"], "--counts", files["counts"], "--label-images", tmp_path / "labels"]
    words += ["--pixel-size", 0.5, "--threshold", 0.0, "--out", tmp_path / "drawn", "--json", tmp_path / "j"]
    done = inside("predict", detector, objects / "val", *words)
    assert done.returncode == 0, done.stderr
    for label in ("objects: ", "counts: ", "label images: "):
        assert label in done.stdout
    tables = {}
    for name, file in files.items():
        with file.open(newline="") as opened:
            tables[name] = list(csv.DictReader(opened))
    entries = json.loads((tmp_path / "j").read_text())
    assert len(tables["csv"]) == sum(len(each["objects"]) for each in entries) > 0
    counted = {(row["file"], row["class"]): int(row["count"]) for row in tables["counts"]}
    assert len(counted) == 2 * len(entries) == len(tables["counts"])
    for entry in entries:
        own = [row for row in tables["csv"] if row["file"] == entry["path"]]
        with Image.open(tmp_path / "labels" / f"{Path(entry['path']).stem}.tif") as image:
            values = np.asarray(image)
        assert (values.dtype, values.shape) == (np.uint16, (entry["height"], entry["width"]))
        expected = np.zeros_like(values)
        for number, (row, each) in reversed([*enumerate(zip(own, entry["objects"], strict=True), 1)]):
            mask = coco_mask.decode(each["segmentation"])
            expected[mask > 0] = number
            assert (row["object"], row["class"]) == (str(number), each["class"])
            assert float(row["score"]) == pytest.approx(each["score"], abs=1e-4)
            left, top, width, height = each["bbox"]
            box = [float(row[name]) for name in ("x0", "y0", "x1", "y1")]
            assert box == pytest.approx([left, top, left + width, top + height], abs=1e-3)
            assert int(row["area"]) == mask.sum()
            assert float(row["area_um2"]) == mask.sum() / 4
            assert float(row["diameter_um"]) == pytest.approx((mask.sum() / np.pi) ** 0.5, abs=1e-3)
            if mask.any():
                rows, columns = np.nonzero(mask)
                centre = [columns.mean() + 0.5, rows.mean() + 0.5]
                assert [float(row[name]) for name in ("x", "y")] == pytest.approx(centre, abs=1e-3)
        np.testing.assert_array_equal(values, expected)
        for name in ("disc", "bar"):
            assert counted[entry["path"], name] == sum(row["class"] == name for row in own)
    piped = inside("predict", detector, objects / "val", "--csv", "-", *words[4:], "--device", "cpu")
    assert piped.stdout == files["csv"].read_text()
    assert "label images: " in piped.stderr
    again = inside("predict", detector, tmp_path / "labels", "--label-images", tmp_path / "labels")
    assert again.returncode == 2
    assert "--label-images" in again.stderr
    assert "holds images to be processed" in again.stderr


def test_predict_and_eval_say_that_large_images_are_tiled(
    inside: Command, detector: Path, objects: Path, tmp_path: Path
) -> None:
    read_image(objects / "val" / "001.png").resize((2000, 100)).save(tmp_path / "slide.png")
    words = ["predict", detector, tmp_path / "slide.png", "--out", tmp_path / "drawn"]
    told = "1 of 1 images are much larger than those of the training (about"
    assert told in (auto := inside(*words)).stdout
    assert auto.stdout == inside(*words, "--tile", "auto").stdout
    assert told not in (off := inside(*words, "--tile", "off")).stdout
    assert "1 of 1 images were shrunk far more than those of the training" in off.stdout
    done = inside("eval", detector, "--tile", 32)
    assert done.returncode == 0, done.stderr
    assert "they were processed in overlapping tiles of 32 pixels" in done.stdout


def test_a_slide_larger_than_the_memory_is_refused_before_it_is_decoded(
    inside: Command, detector: Path, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (30_000, 9_000)).save(tmp_path / "slide.tif", compression="group4")
    small = objects / "val" / "001.png"
    monkeypatch.setattr("lambdanets.detection.prediction.available_memory", lambda device: 3 * 2**30)
    words = ["predict", detector, tmp_path / "slide.tif", small, "--out", tmp_path / "drawn"]
    done = inside(*words, "--max-pixels", 10**9)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "skipped" in line]
    assert "slide.tif: its 30,000 x 9,000 pixels need about 4.0 GiB of memory, and 3.0 GiB are" in line
    assert "tiles: " in line  # why it cannot be read in parts
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["001.png"]


def test_a_tiled_slide_larger_than_the_memory_is_read_in_parts(
    inside: Command, detector: Path, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")
    photos = [np.asarray(read_image(objects / "val" / f"00{number}.png")) for number in (1, 2, 3)]
    slide = np.concatenate([np.concatenate(photos), np.concatenate(photos[::-1])], axis=1)
    tifffile.imwrite(tmp_path / "slide.tif", slide, photometric="rgb", tile=(32, 48), compression="zlib")
    monkeypatch.setattr("lambdanets.detection.measuring.BLOCK", 64)
    monkeypatch.setattr("lambdanets.detection.prediction.LONGEST_DRAWING", 100)
    words = ["predict", detector, tmp_path / "slide.tif", "--tile", 64, "--threshold", 0.0]
    for name, more in (("whole", []), ("parts", ["--max-pixels", 1000])):
        folder = tmp_path / name
        files = ["--csv", folder / "a.csv", "--counts", folder / "c.csv", "--json", folder / "j.json"]
        done = inside(*words, *more, *files, "--label-images", folder / "labels", "--out", folder / "drawn")
        assert done.returncode == 0, done.stderr
        assert ("1 of 1 images are too large to be decoded as a whole" in done.stdout) == bool(more)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for name in ("a.csv", "c.csv", "j.json"):
        assert (whole / name).read_text() == (parts / name).read_text()
    labels = []
    for folder in (whole, parts):
        with Image.open(folder / "labels" / "slide.tif") as image:
            labels.append(np.asarray(image))
    assert labels[0].shape == slide.shape[:2]
    assert labels[0].any()
    np.testing.assert_array_equal(*labels)
    with Image.open(parts / "drawn" / "slide.png") as drawing:
        assert max(drawing.size) <= 100
    done = inside(*words, "--max-pixels", 1000, "--tile", "off", "--out", tmp_path / "drawn")
    assert done.returncode == 1
    assert "are more than the limit of 1,000" in done.stderr


def test_export_writes_a_file_for_any_image(inside: Command, detector: Path, tmp_path: Path) -> None:
    done = inside("export", detector, "--format", "onnx", "--dynamic-size", "--out", tmp_path / "d.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path / 'd.onnx'}: image 3xheightxwidth"
    assert re.fullmatch(
        r"largest difference from the network: \S+ in \d+ objects \(validation images, .*\)", second
    )
    [image] = pictures((70, 90))
    found = run_elsewhere(tmp_path / "d.onnx", image=image.numpy())
    network: Any = load_run(detector).model()
    with torch.no_grad():
        [truth] = network.regions([image])
    assert len(truth["scores"]) > 0
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-3)
    refused = inside("export", detector, "--format", "torch", "--batch-size", 2)
    assert refused.returncode == 2
    assert "--batch-size is for runs of a classifier" in refused.stderr


def test_drawings_do_not_replace_photos(inside: Command, detector: Path, tmp_path: Path) -> None:
    photos = write_objects(tmp_path / "set", train=1, val=2) / "val"
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    for given in (photos, photos / "001.png", tmp_path / "set"):
        done = inside("predict", detector, given, "--out", photos)
        assert done.returncode == 2
        assert "holds images to be processed" in done.stderr
    done = inside("predict", detector, photos, "--out", photos / "drawn")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (photos / "drawn").iterdir()) == ["001.png", "002.png"]
    assert {path.name: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before
    links = tmp_path / "links"
    links.mkdir()
    (links / "001.png").symlink_to(photos / "001.png")
    assert inside("predict", detector, links, "--out", links).returncode == 2
    assert inside("predict", detector, photos / "001.png", "--out", links).returncode == 0
    assert not (links / "001.png").is_symlink()
    assert (photos / "001.png").read_bytes() == before["001.png"]


def test_eval_of_a_json_whose_images_are_elsewhere(
    inside: Command, detector: Path, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "all.json"
    shutil.copy(objects / "annotations" / "instances_val.json", file)
    alone = inside("eval", detector, "--data", f"coco:{file}")
    assert alone.returncode == 1
    done = inside("eval", detector, "--data", f"coco:{file}", "--images", objects / "val")
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stdout
    link = tmp_path / "link"
    link.symlink_to(objects)  # the run's own, under another name
    done = inside("eval", detector, "--data", f"coco:{link}", "--json", tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text())["images"] == 3
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, str(value))
    done = inside("eval", detector)
    assert (done.returncode, done.stdout) == (2, "")
    assert "start it without torchrun" in done.stderr


def test_predict_shows_samples_beside_the_truth(inside: Command, detector: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = inside("predict", detector, "--samples", 2, "--out", sheet)
    assert done.returncode == 0, done.stderr
    with Image.open(sheet) as image:
        assert min(image.size) > 300


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["predict", "RUN", "--samples", 2, "--top", 3], "--top is for runs of a classifier"),
        (["predict", "RUN", "x.png", "--out", "x.png"], "--out is the folder of the drawings"),
        (["predict", "RUN", "--samples", 2, "--json", "x.json"], "eval --results writes all"),
        (["predict", "RUN", "--samples", 2, "--csv", "x.csv"], "--csv goes with images"),
        (["predict", "RUN", "--samples", 2, "--label-images", "x"], "--label-images goes with images"),
        (
            ["predict", "RUN", "x.png", "--pixel-size", 1],
            "--pixel-size adds micrometres",
        ),
        (
            ["predict", "RUN", "x.png", "--csv", "x.csv", "--pixel-size", 0],
            "--pixel-size is a number of micrometres above 0",
        ),
        (["predict", "RUN", "x.png", "--threshold", 2], "--threshold is from 0 to 1; got 2"),
        (["eval", "RUN", "--real", "timm"], "--real is for runs of a classifier"),
        (["eval", "RUN", "--size", 0], "data.image_size"),
        (["eval", "RUN", "--max-detections", 0], "--max-detections is 11 or more; got 0"),
        (["eval", "RUN", "--images", "photos"], "--images is the folder of the images of --data"),
        (["predict", "RUN", "--samples", 2, "--threshold", 70], "--threshold is from 0 to 1; got 70"),
        (["predict", "RUN", "--samples", 2, "--tile", "all"], "--tile is auto, off, or the side of a tile"),
        (["eval", "RUN", "--threshold", 2], "--threshold is from 0 to 1; got 2"),
        (["eval", "RUN", "--device", "tpu"], "--device takes cpu, cuda or mps, not 'tpu'"),
        (["eval", "RUN", "--tile", 0], "--tile is auto, off, or the side of a tile in pixels, 16 or more"),
        (["pseudo-label", "RUN", "--data", "digits", "--out", "x.csv"], "of a run of detection"),
    ],
)
def test_what_does_not_fit_a_detector_is_one_sentence(
    inside: Command, detector: Path, words: list[object], sentence: str
) -> None:
    done = inside(*(detector if word == "RUN" else word for word in words))
    assert done.returncode != 0
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_does_not_fit_a_classifier_is_one_sentence(inside: Command, trained: Path) -> None:
    for words, option in (
        (["predict", trained, "--samples", 2, "--tile", "off"], "--tile"),
        (["eval", trained, "--results", "x"], "--results"),
    ):
        done = inside(*words)
        assert done.returncode == 2
        assert f"{option} is for runs of a detector" in done.stderr
    done = inside("predict", trained, "--samples", 2, "--threshold", 0.5)
    assert done.returncode == 2
    assert "--threshold is for several labels" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "model.frozen_stages=2"], "needs trained weights to start from"),
        (["--weights", "missing.pt", "--set", "model.norms=frozen"], "missing.pt"),
        (["--model", "vit_tiny_patch16_224"], "vit_tiny_patch16_224"),
        (["--model", "lambda_resnet51"], "lambda_resnet51"),
        (["--set", "model.options.widths=3"], "model.options do not fit"),
        (["--set", "data.scale=2,1"], "data.scale"),
        (["--set", "validation.threshold=2"], "validation.threshold"),
        (["--set", "data.crop_pct=0.9"], "data.crop_pct"),
        (["--data", "folder:photos"], "coco:FOLDER"),
        (["--set", "model.weights=missing.pt"], "missing.pt"),
    ],
)
def test_a_wrong_setting_is_told_before_the_images_are_read(
    inside: Command, words: list[object], sentence: str, tmp_path: Path
) -> None:
    done = inside("train", "coco", "--data", "coco:nowhere", "--out", tmp_path / "run", *small(), *words)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_broken_annotation_is_named(inside: Command, tmp_path: Path) -> None:
    source = write_objects(tmp_path / "set", train=2, val=1)
    file = source / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 1, 0, 5]
    file.write_text(json.dumps(content))
    words = ["train", "coco", "--data", f"coco:{source}", "--out", tmp_path / "run", *small()]
    refused = inside(*words, "--set", "data.on_bad_annotation=refuse")
    assert refused.returncode == 1
    assert "annotation 1 of 001.png: its box [1, 1, 0, 5] has no area" in refused.stderr
    with pytest.warns(DataWarning, match="annotation 1 of 001.png"):
        skipped = inside(*words, "--set", "engine.epochs=1")
    assert skipped.returncode == 0, skipped.stderr
    [line] = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert line.endswith("annotation 1 of 001.png: its box [1, 1, 0, 5] has no area.")


def test_masks_become_a_json_to_train_on(inside: Command, tmp_path: Path) -> None:
    root = tmp_path / "cells"
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True)
    for number in range(4):
        mask = np.zeros((48, 40), np.uint8)
        mask[5:15, 5:20], mask[30:40, 10:30] = 1, 2
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
        Image.fromarray(mask * 100).convert("RGB").save(root / "images" / f"{number}.png")
    done = inside("masks-to-coco", root, "--out", root / "all.json", "--classes", "cell")
    assert done.returncode == 0, done.stderr
    assert "4 images with 8 objects" in done.stdout
    assert "data.images" not in done.stdout
    source = ["--data", f"coco:{root / 'all.json'}", "--set", "data.val_fraction=0.5"]
    trained = inside(
        "train", "coco", *source, "--out", tmp_path / "run", *small(), "--set", "engine.epochs=1"
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["cell"]


def test_list_and_show_know_the_recipe(inside: Command) -> None:
    listed = inside("list", "coco*")
    assert "coco" in listed.stdout
    shown = inside("show", "coco")
    assert "Table 6" in shown.stdout
    assert "data.image_size=1024" not in shown.stdout  # the default
    assert "optimizer.lr=0.32" in shown.stdout


def test_explain_marks_the_objects_that_it_finds(
    inside: Command, detector: Path, objects: Path, tmp_path: Path
) -> None:
    photo, *_ = sorted(objects.rglob("*.jpg")) or sorted(objects.rglob("*.png"))
    for name in ("maps.json", "maps.html"):
        done = inside("explain", detector, photo, "--threshold", 0, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    plain = json.loads((tmp_path / "maps.json").read_text())
    assert plain["error"] <= 1e-5
    assert len(plain["objects"]) > 0
    assert all(each["name"].startswith("backbone.") for each in plain["layers"])
    done = inside("explain", detector, photo, "--threshold", 2, "--out", tmp_path / "other.html")
    assert done.returncode == 2
    assert "--threshold is from 0 to 1" in done.stderr
