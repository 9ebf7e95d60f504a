"""Runs on sets as they are: uneven classes, mixed images, binary loss; exact when stopped and continued."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.data import DataConfig
from lambdanets.train import RunConfig, RunError, TrainingInterrupted, override
from lambdanets.train.classifier import Classifier
from lambdanets.train.engine import train
from runs import assert_same_end, interrupt


@pytest.fixture
def uneven(tiny: RunConfig, write_shades: Callable[..., Path]) -> RunConfig:
    """A tiny run on 36 dark, 6 grey and 6 bright images, with everything that this page is about."""
    root = write_shades({"dark": 36, "grey": 6, "white": 6})
    data = DataConfig(
        source=f"folder:{root}", image_size=8, in_chans=1, mean=(0.5,), std=(0.5,), batch_size=5, workers=0,
        val_fraction=0.34, sampling="balanced",
    )  # fmt: skip
    return override(
        replace(tiny, data=data), "engine.epochs=2", "engine.max_val_batches=None", "loss.name=binary",
        "loss.class_weights=balanced", "loss.label_smoothing=0.1", "data.augment.mixup=0.4",
        "data.augment.cutmix=1.0", "data.augment.mix_prob=0.7",
    )  # fmt: skip


@pytest.fixture
def write_shades(tmp_path: Path) -> Callable[..., Path]:
    def write(counts: dict[str, int]) -> Path:
        rng = np.random.default_rng(0)
        for level, (name, count) in enumerate(counts.items()):
            (tmp_path / "shades" / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(80 * level, 80 * level + 90, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "shades" / name / f"{number}.png")
        return tmp_path / "shades"

    return write


def test_a_run_continues_exactly_inside_an_epoch(
    uneven: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[torch.Tensor] = []
    original = Classifier.step

    def watched(self: Classifier, batch: tuple[torch.Tensor, torch.Tensor]) -> object:
        seen.append(batch[1])
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "step", watched)
        whole = train(uneven, run_dir=tmp_path / "whole")
    assert all(targets.shape == (5, 3) for targets in seen)
    mixed = [bool(((targets > 0) & (targets < 1)).any()) for targets in seen]
    assert 0 < sum(mixed) < len(mixed) + 1
    assert len({tuple(targets.max(1).values.tolist()) for targets in seen}) > 3
    assert "% (mixed)  val" in capsys.readouterr().out
    assert "% balanced, epoch" in whole.summary
    interrupt(monkeypatch, signal.SIGTERM, batch=2)
    with pytest.raises(TrainingInterrupted):
        train(uneven, run_dir=tmp_path / "parts")
    train(run_dir=tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_last_epochs_are_not_mixed(
    uneven: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []
    original = Classifier.step

    def watched(self: Classifier, batch: tuple[torch.Tensor, torch.Tensor]) -> object:
        shapes.append(batch[1].ndim)
        return original(self, batch)

    monkeypatch.setattr(Classifier, "step", watched)
    train(override(uneven, "data.augment.mix_off_epochs=1"), run_dir=tmp_path / "run")
    assert shapes == [2] * (len(shapes) // 2) + [1] * (len(shapes) // 2)


def test_weights_for_other_classes_leave_no_folder(uneven: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"class_weights has 2 numbers, and there are 3 classes"):
        train(override(uneven, "loss.class_weights=(1.0,2.0)"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
