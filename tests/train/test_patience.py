"""Early stopping: a run ends when its validation has not improved for some time, and resumes exactly."""

import signal
from pathlib import Path

import pytest

from lambdanets.train import RunConfig, RunResult, TrainingInterrupted, override
from lambdanets.train.checkpoint import RunState
from lambdanets.train.classifier import Classifier
from lambdanets.train.engine import train
from lambdanets.train.optim import lr_factor
from runs import assert_same_end, interrupt


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first epoch have the highest accuracy, whatever was learned."""
    original = Classifier.on_validation_epoch_end

    def lowered(self: Classifier) -> None:
        original(self)
        self.val_metrics["val_top1"] = 1 / (2 + self.trainer.current_epoch)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", lowered)


@pytest.fixture
def patient(tiny: RunConfig) -> RunConfig:
    return override(tiny, "engine.epochs=9", "engine.patience=2", "engine.max_batches=2")


@pytest.mark.usefixtures("falling")
def test_a_run_ends_after_validations_without_a_better_one(
    patient: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(patient, run_dir=tmp_path / "whole")
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.best_epoch == 1
    why = "stopped after epoch 3: 2 validations without a better one"
    assert why in capsys.readouterr().out
    assert why in result.summary
    # The learning rate is that of a run of nine epochs.
    factor = lr_factor(5, patient.schedule, total_steps=18, steps_per_epoch=2)
    assert result.history[-1]["lr"] == patient.optimizer.lr * factor
    # Interrupted in the last of its epochs, it ends as it did before; then it is complete.
    interrupt(monkeypatch, signal.SIGTERM, batch=4)
    with pytest.raises(TrainingInterrupted):
        train(patient, run_dir=tmp_path / "resumed")
    train(run_dir=tmp_path / "resumed", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "resumed")
    assert train(run_dir=tmp_path / "resumed", resume=True).already_complete


@pytest.mark.usefixtures("falling")
def test_epochs_without_validation_do_not_count(patient: RunConfig, tmp_path: Path) -> None:
    config = override(patient, "engine.validate_every=2", "engine.patience=1", "engine.max_batches=1")
    assert len(train(config, run_dir=tmp_path / "run").history) == 4


def test_the_last_validations_decide() -> None:
    rows = [{"epoch": float(epoch), "val_loss": 1.0} for epoch in range(1, 6)]
    state = RunState(history=rows, best_epoch=3)
    assert state.is_stopped(2)
    assert not state.is_stopped(3)
    assert not state.is_stopped(None)


def test_patience_is_a_number_of_validations(tiny: RunConfig, finished: RunResult) -> None:
    with pytest.raises(ValueError, match="patience is 1 or more"):
        override(tiny, "engine.patience=0")
    assert "stopped" not in finished.summary
