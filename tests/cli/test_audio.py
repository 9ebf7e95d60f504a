"""Recordings through the command line: train, eval, predict, export, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sound_sets import write_tones

SMALL = (
    "--set", "model.options.widths=[8, 16]", "--set", "model.options.depths=[1, 1]",
    "--set", "model.options.strides=[1, 2]", "--set", "engine.threads=1", "--set", "optimizer.lr=0.01",
    "--batch-size", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"), train=12, val=4)


@pytest.fixture(scope="module")
def trained(tones: Path, command: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    done = command("train", "audio", "--data", f"audio:{tones}", "--out", run, "--epochs", 4, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "recordings/s" in done.stdout
    assert f"lambdanets predict {run} --samples 20" in done.stdout
    return run


def test_eval(inside: Callable, trained: Path, tones: Path, tmp_path: Path) -> None:
    done = inside(
        "eval", trained, "--per-class", tmp_path / "c.csv", "--json", tmp_path / "f.json", "--batch-size", 5
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["recordings"] == 12
    assert f"{figures['top1']:.2%}" in done.stdout
    heading = (tmp_path / "c.csv").read_text().splitlines()[0]
    assert heading == "class,name,recordings,top1,top5,precision,recall,f1"
    assert figures["classes"][0]["recordings"] == 4
    assert sum(each["recordings"] for each in figures["calibration"]) == 12
    done = inside("eval", trained, "--data", f"audio:{tones}/train")
    assert done.returncode == 0, done.stderr
    assert "36" in done.stdout


def test_errors_of_recordings(inside: Callable, trained: Path, tones: Path, tmp_path: Path) -> None:
    """Some files of a class are in the folder of another one."""
    shutil.copytree(tones / "val", tmp_path / "moved")
    first, second, *_ = sorted((tmp_path / "moved").iterdir())
    for file in list(first.iterdir())[:2]:
        file.rename(second / f"moved-{file.name}")
    files = ("--errors", tmp_path / "e.csv", "--confusion", tmp_path / "m.csv", "--device", "cpu")
    done = inside("eval", trained, "--data", f"audio:{tmp_path / 'moved'}", *files)
    assert done.returncode == 0, done.stderr
    matrix = [line.split(",")[1:] for line in (tmp_path / "m.csv").read_text().splitlines()[1:]]
    wrong = sum(int(n) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j)
    rows = (tmp_path / "e.csv").read_text().splitlines()[1:]
    assert len(rows) == wrong > 0
    assert all(str(tmp_path) in row for row in rows)
    assert Image.open(tmp_path / "e.png").format == "PNG"


def test_predict(inside: Callable, trained: Path, tones: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("nothing")
    file = tones / "val" / "low" / "0.wav"
    done = inside(
        "predict", trained, file, tmp_path / "bad.wav", "--json", tmp_path / "p.json", "--out",
        tmp_path / "s.png", "--top", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"skipped {tmp_path / 'bad.wav'}: it is no .wav file" in done.stderr
    good, bad = json.loads((tmp_path / "p.json").read_text())
    assert good["path"] == str(file)
    assert len(good["labels"]) == len(good["probabilities"]) == 2
    assert "error" in bad
    assert Image.open(tmp_path / "s.png").format == "PNG"
    done = inside("predict", trained, tmp_path / "bad.wav")
    assert done.returncode == 1
    assert "1 of 1 recordings could not be read" in done.stderr
    done = inside("predict", trained, "--samples", 5, "--out", tmp_path / "t.png")
    assert done.returncode == 0
    assert "of 5 correct" in done.stdout


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_export(inside: Callable, trained: Path, tmp_path: Path, format: str) -> None:
    file = tmp_path / {"onnx": "a.onnx", "torch": "a.pt2"}[format]
    done = inside("export", trained, "--format", format, "--out", file)
    assert done.returncode == 0, done.stderr
    assert "features batchx40xlength, mask batchxlength" in done.stdout
    assert "largest difference from the network" in done.stdout
    assert file.is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "RUN", "--crop", "0.9"), "--crop is for runs of a classifier, and RUN is not one"),
        (("eval", "RUN", "--tile", "auto"), "--tile is for runs of a detector, and RUN is not one"),
        (("predict", "RUN", "a.wav", "--max-pixels", "9"), "--max-pixels is for runs of a classifier or"),
        (("predict", "RUN", "a.wav", "--out", "sheet.jpg"), "--out is a PNG image"),
        (("export", "RUN", "--format", "onnx", "--size", "9"), "--size is for runs of a classifier or"),
        (("eval", "RUN", "--data", "folder:x"), "data.source must be audio:PATH"),
        (("train", "audio", "--data", "folder:x"), "data.source must be audio:PATH"),
        (("train", "audio", "--data", "audio:x", "--set", "data.hop=9"), "data.window must be at least"),
        (
            ("train", "audio", "--data", "audio:x", "--set", "model.options.operator=mlp"),
            "operator must be one of lambda",
        ),
        (("train", "digits", "--data", "audio:x"), "holds recordings, not images: train the recipe audio"),
    ],
)
def test_what_is_refused(inside: Callable, trained: Path, words: tuple[str, ...], message: str) -> None:
    done = inside(*(str(trained) if word == "RUN" else word for word in words))
    assert done.returncode in (1, 2)
    assert message.replace("RUN", str(trained)) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("fault", ["one class", "empty file", "missing"])
def test_training_on_a_folder_that_cannot_be_used(fault: str, inside: Callable, tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    if fault != "missing":
        write_tones(root, classes=1 if fault == "one class" else 3)
    if fault == "empty file":
        (root / "train" / "low" / "bad.wav").write_bytes(b"")
    message = {
        "one class": "holds one class",
        "empty file": "bad.wav: the file is empty",
        "missing": f"there is no folder {root}",
    }[fault]
    done = inside("train", "audio", "--data", f"audio:{root}", "--out", run, *SMALL)
    assert done.returncode == 1
    assert message in done.stderr
    assert not run.exists()


def test_list_and_show(inside: Callable) -> None:
    done = inside("list", "*audio*")
    assert "lambda_audio_small" in done.stdout
    assert "audio:PATH" in done.stdout
    done = inside("show", "audio")
    assert done.returncode == 0
    assert "lambdanets train audio --data audio:" in done.stdout
    done = inside("show", "lambda_audio")
    assert done.returncode == 2
    assert "show is for models of images, and lambda_audio takes sequences" in done.stderr


def test_explain(inside: Callable, trained: Path, tones: Path, tmp_path: Path) -> None:
    recording = tones / "val" / "low" / "0.wav"
    for name in ("maps.json", "maps.html", "maps.png"):
        done = inside("explain", trained, recording, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    plain = json.loads((tmp_path / "maps.json").read_text())
    assert plain["error"] <= 1e-5
    assert len(plain["labels"]) == 3
    assert '"seconds":0.' in (tmp_path / "maps.html").read_text()
