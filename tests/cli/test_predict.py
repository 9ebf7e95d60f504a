"""`lambdanets eval` and `lambdanets predict` on a run, with files as people have them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.data.sources.digits import read_digits

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of digits in many file formats."""
    folder = tmp_path_factory.mktemp("photos")
    pixels, labels = read_digits()
    for index in range(40):
        ink = np.round(pixels[index] * (255 / 16)).astype(np.uint8)
        image, options = Image.fromarray(ink), {}
        suffix = "png"
        match index % 5:
            case 1:
                image = image.convert("RGBA")
            case 2:
                image = Image.fromarray(ink.astype(np.uint16) * 257)
            case 3:
                suffix, options = "jpg", {"quality": 95}
            case 4:
                image = image.convert("P")
        path = folder / str(labels[index]) / f"{index}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
    return folder


def value(shown: str, measure: str) -> str:
    found = re.search(rf"^\W*{measure}\W+([\d.,]+%?)", shown, re.MULTILINE)
    assert found is not None, shown
    return found[1]


def test_eval_measures_the_accuracy_of_training(command: Command, trained: Path) -> None:
    done = command("eval", trained)
    assert done.returncode == 0, done.stderr
    best = re.search(r"best\s+([\d.]+) %", (trained / "summary.txt").read_text())
    assert best is not None
    assert value(done.stdout, "accuracy") == f"{best[1]}%"
    assert value(done.stdout, "images") == "90"


@pytest.fixture(scope="module")
def of_photos(command: Command, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two classes of a folder that is named from the directory around it."""
    home = tmp_path_factory.mktemp("of_photos")
    for name in ("3", "7"):
        shutil.copytree(photos / name, home / "flat" / name)
    settings = ["engine.epochs=1", "engine.threads=1", "data.batch_size=2", "schedule.warmup_epochs=0"]
    changes = [word for setting in settings for word in ("--set", setting)]
    done = command("train", "digits", "--data", "folder:flat", *changes, "--out", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "run"


def test_the_own_folder_is_never_measured_whole(
    inside: Command, of_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flat = of_photos.parent / "flat"
    config = json.loads((of_photos / "config.json").read_text())
    assert config["data"]["source"] == f"folder:{flat}"
    (tmp_path / "link").symlink_to(flat)
    plain = inside("eval", of_photos)
    assert plain.returncode == 0, plain.stderr
    held_out = int(value(plain.stdout, "images"))
    assert held_out < len(list(flat.rglob("*.*")))
    for path in (flat, f"{flat}/", f"{of_photos}/../flat", "link"):
        done = inside("eval", of_photos, "--data", f"folder:{path}")
        assert done.returncode == 0, done.stderr
        assert int(value(done.stdout, "images")) == held_out
    shutil.copytree(flat, tmp_path / "copy")
    whole = inside("eval", of_photos, "--data", "folder:copy")
    assert int(value(whole.stdout, "images")) == len(list(flat.rglob("*.*")))


def test_top_5_of_a_few_classes_is_not_printed(inside: Command, of_photos: Path, trained: Path) -> None:
    assert "top-5" not in inside("eval", of_photos).stdout
    assert "top-5" in inside("eval", trained).stdout


def test_eval_and_predict_agree_on_a_folder(
    inside: Command, trained: Path, photos: Path, tmp_path: Path
) -> None:
    done = inside("eval", trained, "--data", f"folder:{photos}", "--weights", "last")
    assert done.returncode == 0, done.stderr
    predicted = inside("predict", trained, photos, "--json", tmp_path / "p.json", "--weights", "last")
    assert predicted.returncode == 0, predicted.stderr
    entries = json.loads((tmp_path / "p.json").read_text())
    assert len(entries) == 40
    right = sum(entry["labels"][0] == Path(entry["path"]).parent.name for entry in entries)
    assert value(done.stdout, "images") == "40"
    assert value(done.stdout, "accuracy") == f"{right / 40:.2%}"


def test_predict_prints_draws_and_skips(
    command: Command, trained: Path, photos: Path, tmp_path: Path
) -> None:
    whole = (photos / "0" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "fake.jpg").write_text("no image")
    words = [photos / "0" / "0.png", tmp_path, "gone.png", photos / "1"]
    done = command(
        "predict", trained, *words, "--json", "out/p.json", "--out", "out/sheet.png", "--top", 3, cwd=tmp_path
    )
    assert done.returncode == 0
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == 3
    for name in ("cut.png", "fake.jpg", "gone.png"):
        assert sum(name in line for line in skipped) == 1
    assert re.search(r"0\.png.*\d\d?\.\d%.*\d\d?\.\d%.*\d\d?\.\d%", done.stdout)
    entries = json.loads((tmp_path / "out" / "p.json").read_text())
    assert len(entries) == 4 + len(list((photos / "1").iterdir()))
    for entry in entries:
        if "error" in entry:
            assert "labels" not in entry
        else:
            assert len(entry["labels"]) == len(entry["probabilities"]) == 3
            assert entry["probabilities"] == sorted(entry["probabilities"], reverse=True)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 500


def test_strict_fails_for_one_bad_image(inside: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    sheet = tmp_path / "sheet.png"
    done = inside("predict", trained, bad, photos / "0" / "0.png", "--strict", "--out", sheet)
    assert done.returncode == 1
    assert "1 of 2 images could not be read" in done.stderr
    assert sheet.exists()


def test_no_readable_image_is_a_failure(inside: Command, trained: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = inside("predict", trained, tmp_path, "--out", sheet)
    assert done.returncode == 1
    assert "there are no images in this folder" in done.stderr
    assert not sheet.exists()


def test_samples_show_the_truth(inside: Command, trained: Path) -> None:
    done = inside("predict", trained, "--samples", 20)
    assert done.returncode == 0, done.stderr
    right = re.search(r"(\d+) of 20 correct", done.stdout)
    assert right is not None
    rows = re.findall(r"digits#\d{4}\W+(\d)\W+(\d) \d", done.stdout)
    assert len(rows) == 20
    assert sum(truth == guess for truth, guess in rows) == int(right[1])
    assert (trained / "predictions.png").exists()


def test_names_of_any_kind_lose_no_result(
    inside: Command, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"[bold]:cat: caf\xe9\x1b[2J.png")
    photo = tmp_path / ("long" * 40) / name
    photo.parent.mkdir()
    shutil.copy(next(photos.rglob("*.png")), photo)
    monkeypatch.setenv("COLUMNS", "80")
    written = tmp_path / "found.json"
    done = inside("predict", trained, photo, "--json", written, "--out", tmp_path / "sheet.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{photo.parent}/[bold]:cat: caf\\udce9\\x1b[2J.png" in done.stdout
    assert "\x1b" not in done.stdout
    (entry,) = json.loads(written.read_text(encoding="utf-8"))
    assert entry["path"] == str(photo)
    assert entry["labels"]
