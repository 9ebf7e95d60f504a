import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TaskID

from lambdanets.train import RunConfig, override
from lambdanets.train.progress import LiveProgress, clock, epoch_line, say


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384.4, "2:03:04")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_epoch_is_one_line() -> None:
    row = {
        "epoch": 3, "train_loss": 1.2345, "train_top1": 0.5, "val_loss": 1.5, "val_top1": 0.62345,
        "images_per_second": 1234.5,
    }  # fmt: skip
    line = epoch_line(row, 20)
    assert line.startswith("epoch  3/20  train 1.234  50.0 %")
    assert "val 1.500 62.34 %" in line
    assert line.endswith("1,234 images/s")
    assert len(line + "  0:12 left") <= 80


def test_a_terminal_sees_the_run_live(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lambdanets.train import engine

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(engine, "LiveProgress", lambda module: LiveProgress(module, console))
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


def test_a_reader_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        for sentence in ("epoch 1", "epoch 2"):
            say(sentence)
        print("and at the end")
        monkeypatch.undo()
