import io
from pathlib import Path

import pytest
from rich.console import Console

from lambdanets.train import RunConfig, override
from lambdanets.train.progress import LiveProgress, clock, epoch_line


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
    assert line.startswith("epoch  3/20  loss 1.234  accuracy  50.0 %")
    assert "validation loss 1.500  accuracy 62.34 %" in line
    assert line.endswith("1,234 images/s")


def test_a_terminal_sees_the_run_live(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lambdanets.train import engine

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(engine, "LiveProgress", lambda module: LiveProgress(module, console))
    monkeypatch.setattr("lambdanets.train.progress.REFRESH", 0.0)
    engine.train(override(tiny, "engine.epochs=1", "engine.max_batches=8"), run_dir=tmp_path / "run")
    text = screen.getvalue()
    for part in ("epoch 1/1", "loss", "accuracy", "images/s", "left", "validation"):
        assert part in text
