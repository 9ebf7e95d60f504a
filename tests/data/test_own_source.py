"""A source is one class and one entry of the registry: it is then listed, trained on and evaluated."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.cli import main
from lambdanets.data import DataConfig, DataError, StreamSet, open_split, open_splits
from lambdanets.data.image_source import ArrayImages
from lambdanets.data.images import NamedFile
from lambdanets.data.sources import SOURCES
from lambdanets.data.sources.protocol import ImageSplits, IndexedSource, Source, StreamedSource
from lambdanets.data.transforms import Pipeline

CLASSES = ("rows", "columns")


def stripes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of 8 x 8 pixels with bright rows or columns, and their classes."""
    arrays = np.random.default_rng(0).integers(0, 100, (number, 8, 8), dtype=np.uint8)
    targets = np.arange(number) % 2
    arrays[targets == 0, ::2] += 150
    arrays[targets == 1, :, ::2] += 150
    return arrays, targets


class Stripes(IndexedSource):
    form = "stripes:NUMBER"
    help = "grey stripes, made as they are read"

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        arrays, targets = stripes(int(self.require_root()))
        names = [f"stripes#{index}" for index in range(len(arrays))]
        images = ArrayImages(arrays, targets, names, config.in_chans)
        half = len(arrays) // 2
        train, val = (images.subset(rows) for rows in np.split(np.arange(len(arrays)), [half]))
        return ImageSplits(train, val, CLASSES)


class StripeFiles:
    """Two files of samples."""

    def __init__(self, number: int):
        self.arrays, self.targets = stripes(number)
        self.names, self.lengths = ("a", "b"), np.array([number // 2] * 2)

    def read(self, number: int, rows: np.ndarray) -> Iterator[tuple[NamedFile, int]]:
        for index in (number * self.lengths[0] + rows).tolist():
            file = io.BytesIO()
            Image.fromarray(self.arrays[index]).save(file, "PNG")
            yield NamedFile(file.getvalue(), f"stripes#{index}"), int(self.targets[index])


class StreamedStripes(StreamedSource):
    form = "stripes:NUMBER"
    help = "grey stripes, one after the other"

    def open(self, config: DataConfig, split: str, *, train: bool) -> StreamSet:
        files = StripeFiles(int(self.require_root()))
        return StreamSet(files, Pipeline(config, train=train), self.classes(config, CLASSES), train=train)


@pytest.mark.parametrize("source", [Stripes, StreamedStripes])
@pytest.mark.filterwarnings("ignore:.*both trained on and validated on:lambdanets.data.DataWarning")
def test_a_registered_source_is_listed_trained_on_and_evaluated(
    source: type[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "stripes:", source)
    assert main(["list", "stripes*"]) == 0
    assert source.help in " ".join(capsys.readouterr().out.split())

    run = tmp_path / "run"
    options = ["--batch-size", "16", "--epochs", "1", "--set", "data.workers=0", "--set", "engine.devices=1"]
    assert main(["train", "digits", "--data", "stripes:128", "--out", str(run), *options]) == 0
    assert json.loads((run / "config.json").read_text())["data"]["source"] == "stripes:128"
    assert json.loads((run / "classes.json").read_text()) == list(CLASSES)
    assert main(["eval", str(run), "--data", "stripes:64"]) == 0
    assert "accuracy" in capsys.readouterr().out

    with pytest.raises(DataError, match="lacks a path: write stripes:NUMBER"):
        open_split(DataConfig(source="stripes:"))
    with pytest.raises(DataError, match=r"data\.source must be .* or 'stripes:NUMBER'; got 'strips:5'"):
        open_splits(DataConfig(source="strips:5"))


def test_a_run_on_a_removed_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "tfds/", Stripes)
    run = str(tmp_path / "run")
    options = ["--epochs", "1", "--set", "data.workers=0", "--set", "engine.devices=1"]
    assert main(["train", "digits", "--data", "tfds/x:64", "--out", run, *options]) == 0
    monkeypatch.delitem(SOURCES, "tfds/")
    assert main(["eval", run]) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "data.source is 'tfds/x:64', and TensorFlow Datasets are not read any more: use the same" in error
    assert "Traceback" not in error


def test_every_source_has_what_the_list_shows() -> None:
    for kind, source in SOURCES.items():
        assert source.form.startswith(kind)
        assert source.help
        assert issubclass(source, IndexedSource | StreamedSource)
