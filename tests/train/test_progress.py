import io
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import nn

from lambdanets.data import DataConfig
from lambdanets.train import ModelConfig, RunConfig, override
from lambdanets.train.checkpoint import RunState
from lambdanets.train.classifier import Classifier
from lambdanets.train.progress import (
    LiveProgress,
    epoch_line,
    format_data_wait,
    format_duration,
    log_once,
    slow_data_advice,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384.4, "2:03:04")]
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def learner(*changes: str, data: DataConfig | None = None) -> Classifier:
    config = RunConfig(recipe="tiny", model=ModelConfig(name="none"), data=data or DataConfig())
    return Classifier(nn.Identity(), override(config, *changes), classes=["a", "b"], state=RunState())


def test_an_epoch_is_one_line() -> None:
    row = {
        "epoch": 3, "train_loss": 1.2345, "train_top1": 0.5, "val_loss": 1.5, "val_top1": 0.62345,
        "images_per_second": 1234.5,
    }  # fmt: skip
    line = epoch_line(learner("engine.epochs=20"), row)
    assert line.startswith("epoch  3/20  train 1.234  50.0 %")
    assert "val 1.500 62.34 %" in line
    assert line.endswith("1,234 images/s")
    assert len(line + "  0:12 left") <= 80


def test_a_terminal_sees_the_run_live(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lambdanets.train import engine, trainer

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(trainer, "LiveProgress", lambda module: LiveProgress(module, console))
    monkeypatch.setattr("lambdanets.train.progress.REFRESH", 0.0)
    update, shown = Progress.update, []

    def recorded(self: Progress, task: TaskID, **fields: Any) -> None:
        shown.extend([fields["description"], fields["detail"]])
        update(self, task, **fields)

    monkeypatch.setattr(Progress, "update", recorded)  # the screen itself is refreshed four times a second
    engine.train(override(tiny, "engine.epochs=1", "engine.max_batches=8"), run_dir=tmp_path / "run")
    assert "epoch 1/1  train" in screen.getvalue()
    text = " ".join(shown)
    for part in ("epoch 1/1", "loss", "accuracy", "images/s", "left", "validation"):
        assert part in text
    assert "epoch 2/1" not in text  # after the last batch of an epoch it is still that epoch


def test_the_share_of_waiting_is_shown_where_it_matters() -> None:
    assert format_data_wait(0.049) == ""
    assert format_data_wait(0.123) == "  data 12 %"


def test_slow_images_are_told_once_a_run_with_what_to_do(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lambdanets.data.image_set import ImageSet
    from lambdanets.train.engine import train

    quick = ImageSet.batch

    def slow(self: ImageSet, *args: Any) -> Any:
        time.sleep(0.1)
        return quick(self, *args)

    monkeypatch.setattr(ImageSet, "batch", slow)
    monkeypatch.setattr("lambdanets.train.progress.WORTH_SECONDS", 0.1)
    train(override(tiny, "engine.max_batches=2", "engine.max_val_batches=1"), run_dir=tmp_path / "run")
    _, lines = capsys.readouterr().out.split("\n\n")
    lines = lines.splitlines()
    assert [line[:9] for line in lines] == ["epoch 1/3", "training ", "epoch 2/3", "epoch 3/3"]
    assert all(re.search(r"images/s.*  data \d\d %$", line) for line in lines if line.startswith("epoch"))
    assert re.match(r"training waited for images \d\d % of its time; try ", lines[1])


@pytest.mark.parametrize(
    ("data", "workers", "cores", "means"),
    [
        (
            DataConfig(workers=2), 2, 8,
            ["more data.workers (2 now, with 8 cores for each process)", "data.cache=true", "pixels", "tar:"],
        ),
        (DataConfig(workers=8, cache=True), 8, 8, ["images stored at", "tar: shards"]),
        (DataConfig(workers=0), 0, 2, ["(0 now, with 2 cores", "data.cache=true", "pixels", "tar:"]),
        (DataConfig(workers=2), 0, 8, ["fewer changes in data.augment"]),
    ],
)  # fmt: skip
def test_advice_on_slow_images(data: DataConfig, workers: int, cores: int, means: list[str]) -> None:
    said = slow_data_advice(0.314, learner(data=data), workers=workers, cores=cores)
    start, *listed = said.split("; try ")
    assert start == "training waited for images 31 % of its time"
    # No part of a means holds ", " but the first's brackets.
    parts = re.split(r", (?![^(]*\))", listed[0])
    assert len(parts) == len(means)
    assert all(mean in part for mean, part in zip(means, parts, strict=True))


def test_a_reader_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        for sentence in ("epoch 1", "epoch 2"):
            log_once(sentence)
        print("and at the end")
        monkeypatch.undo()
