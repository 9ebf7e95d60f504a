"""`lambdanets eval` and `lambdanets predict` on a run, with files as people have them."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from lambdanets.cli.predictions import write_predictions
from lambdanets.data.sources.digits import read_digits
from lambdanets.viz.contact_sheet import Prediction
from photo_sets import NAME, draw, logits_of, teach

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


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_per_file(inside: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad,name.png").write_text("no image")
    words = ("predict", trained, photos / "0", tmp_path / "bad,name.png", "--out", tmp_path / "sheet.png")
    done = inside(*words, "--top", 2, "--csv", tmp_path / "new" / "p.csv", "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert f"table: {tmp_path / 'new' / 'p.csv'}" in done.stdout
    text = (tmp_path / "new" / "p.csv").read_text()
    assert text.splitlines()[0] == "file,label,probability,label_2,probability_2,error"
    rows, entries = read(text), json.loads((tmp_path / "p.json").read_text())
    assert [row["file"] for row in rows] == [entry["path"] for entry in entries]
    for row, entry in zip(rows[:-1], entries, strict=False):
        assert [row["label"], row["label_2"]] == entry["labels"]
        numbers = [float(row["probability"]), float(row["probability_2"])]
        assert numbers == pytest.approx(entry["probabilities"], abs=1e-5)
    assert (rows[-1]["label"], rows[-1]["error"]) == ("", entries[-1]["error"])
    assert done.stderr.splitlines()[-1] == f"lambdanets: 1 of {len(rows)} images could not be read."
    # In place of the table, with the notes elsewhere.
    for name in ("-", "/dev/stdout"):
        done = inside(*words, "--top", 2, "--csv", name)
        assert (done.returncode, done.stdout) == (0, text)
        assert "contact sheet" in done.stderr


def test_samples_in_a_csv_have_their_truth(inside: Command, trained: Path, tmp_path: Path) -> None:
    sheet = ("--out", tmp_path / "sheet.png")
    done = inside("predict", trained, "--samples", 9, "--top", 1, "--csv", "-", *sheet, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = read(done.stdout)
    right = sum(row["truth"] == row["label"] for row in rows)
    assert f"{right} of 9 correct" in done.stderr


def test_a_path_is_never_wrapped_and_guesses_fit_the_terminal(
    inside: Command, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90) / "0.png"
    long.parent.mkdir()
    shutil.copy(photos / "0" / "0.png", long)
    monkeypatch.chdir(photos)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    done = inside("predict", trained, "0/0.png", "1", "--out", tmp_path / "sheet.png")
    shown = re.sub("\x1b[^m]*m", "", done.stdout)
    assert "(4 of 5 guesses fit this terminal)" in shown
    table = [line for line in shown.splitlines() if ".png   " in line or "guess" in line]
    assert len({line.index("%") for line in table[2:]}) == 1
    assert max(map(len, table[1:])) <= 50
    done = inside("predict", trained, long, "0/0.png", "--out", tmp_path / "sheet.png")
    shown = re.sub("\x1b[^m]*m", "", done.stdout).splitlines()
    assert any(line.startswith(f" {long}   ") and line.endswith("%") for line in shown)
    assert max(len(line) for line in shown if "─" in line) <= 50


def test_rows_are_printed_and_forgotten_while_more_are_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alive: list[weakref.ref[Prediction]] = []
    most_alive, printed = 0, 0

    def made() -> Iterator[Prediction]:
        nonlocal most_alive, printed
        for number in range(1000):
            each = Prediction(path=f"{number:03d}.png", labels=("cat",), probabilities=(0.5,))
            alive.append(weakref.ref(each))
            most_alive = max(most_alive, sum(one() is not None for one in alive))
            if number == 100:
                printed = capsys.readouterr().out.count(".png")
            yield each

    drawn = []
    code = write_predictions(
        made(), title="title", ranks=1, truths=False, csv=None, json=tmp_path / "p.json",
        draw=lambda some, summary: drawn.append((len(some), summary)) or [], most=7, strict=False, part=10,
    )  # fmt: skip
    assert code == 0
    assert printed == 100
    assert most_alive <= 7 + 2 * 10 + 1
    assert drawn == [(7, "1,000 images  ·  the first 7 drawn")]
    assert "1,000 images, the first 7 drawn" in capsys.readouterr().out
    text = (tmp_path / "p.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1) + "\n"
    assert len(json.loads(text)) == 1000


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and weights of a model of ImageNet that knows them."""
    root = tmp_path_factory.mktemp("taught")
    answers = {draw(root / f"{place}.png", place): [place, 500] for place in (0, 1)}
    teach(root / "model.safetensors", answers)
    return root


def test_a_model_predicts_as_timm_does(
    inside: Command, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures, weights = [taught / "0.png", taught / "1.png"], taught / "model.safetensors"
    done = inside("predict", NAME, *pictures, "--checkpoint", weights, "--top", 2, "--csv", "-")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions.png").exists()
    form = timm.data.resolve_model_data_config(timm.create_model(NAME), use_test_size=True)
    size, crop = form["input_size"][-1], form["crop_pct"]
    expected = logits_of(weights, pictures, size=size, crop=crop).softmax(-1).topk(2)
    words, rows = ImageNetInfo(), read(done.stdout)
    for row, indices, numbers in zip(rows, expected.indices.tolist(), expected.values.tolist(), strict=True):
        assert [row["label"], row["label_2"]] == [words.index_to_description(index) for index in indices]
        assert [float(row["probability"]), float(row["probability_2"])] == pytest.approx(numbers, rel=1e-3)
    done = inside("predict", NAME, *pictures, "--checkpoint", weights, "--device", "cpu")
    assert done.stdout.startswith(f"{NAME}, weights of {weights}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("lambda_resnet50", "a.png"), "no trained weights of lambda_resnet50 are published; give your own"),
        ((NAME, "--samples", "3"), f"{NAME} is a model and has no validation set: name images or folders"),
        ((NAME, "a.png", "--weights", "last"), "--weights chooses among those of a run; a model takes --che"),
        (("RUN", "a.png", "--checkpoint", "w.pth"), "--checkpoint goes with the name of a model; RUN is no"),
        (("RUN", "a.png", "--device", "cuda:99"), "there is no "),
        (("RUN", "a.png", "--csv", "."), "--csv is a file, and . is a folder"),
        (("RUN", "a.png", "--out", "s.jpg"), "--out is a PNG image, whose name ends in .png"),
    ],
)
def test_what_is_refused(inside: Command, trained: Path, words: tuple[str, ...], sentence: str) -> None:
    done = inside("predict", *(str(trained) if word == "RUN" else word for word in words))
    assert done.returncode != 0
    assert sentence.replace("RUN", str(trained)) in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
