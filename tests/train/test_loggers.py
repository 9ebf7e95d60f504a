"""Loggers by name, callbacks of the user, and messages through `logging`."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger

from lambdanets.train import EngineConfig, RunConfig, RunError, override
from lambdanets.train import loggers as module
from lambdanets.train.engine import train
from lambdanets.train.run import RunFiles


class Counter(Callback):
    """Counts epochs, and remembers their accuracies as callbacks see them."""

    def __init__(self) -> None:
        self.epochs, self.seen = 0, []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        self.seen.append(float(trainer.callback_metrics["val_top1"]))

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def test_callbacks_see_the_metrics_and_keep_their_state(tiny: RunConfig, folder: Path) -> None:
    counter = Counter()
    stopping = EarlyStopping("val_loss", stopping_threshold=1e9, mode="min")  # stops after the first epoch
    first = train(tiny, run_dir=folder, callbacks=[counter, stopping])
    assert counter.epochs == len(first.history) == 1
    assert counter.seen == pytest.approx([first.history[0]["val_top1"]])
    again = Counter()
    result = train(run_dir=folder, resume=True, callbacks=[again])
    assert len(result.history) == again.epochs == tiny.engine.epochs


def test_a_run_logs_to_the_named_loggers(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = []

    class Remote(CSVLogger):
        logged: ClassVar[list[dict[str, Any]]] = []

        @property
        def version(self) -> str:
            return "run-7"

        def log_hyperparams(self, params: Any = None) -> None:
            self.logged.append(dict(params))

    def create(files: RunFiles, identity: str | None) -> Logger:
        identities.append(identity)
        return Remote(files.directory, name="remote")

    monkeypatch.setattr(module, "WandbLogger", Remote)
    monkeypatch.setitem(module.REMOTE, "wandb", create)  # pyright: ignore[reportArgumentType]
    train(override(tiny, "engine.loggers=wandb", "engine.epochs=1"), run_dir=folder)
    assert not (folder / "tensorboard").exists()
    assert json.loads((folder / "loggers.json").read_text()) == {"wandb": "run-7"}
    [table] = (folder / "remote").rglob("metrics.csv")
    assert "val_top1" in table.read_text().splitlines()[0]
    assert Remote.logged[0]["optimizer.lr"] == tiny.optimizer.lr
    (folder / "summary.txt").unlink()  # as after a kill before the end
    module.create_loggers(override(tiny, "engine.loggers=wandb"), RunFiles(folder), 0)
    assert identities == [None, "run-7"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(
    tiny: RunConfig, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(files: RunFiles, identity: str | None) -> Logger:
        raise ModuleNotFoundError(name)

    monkeypatch.setitem(module.REMOTE, name, missing)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunError, match=f"{name}, which is not installed: pip install {name}"):
        train(override(tiny, f"engine.loggers={name}"), run_dir=folder)
    assert not folder.exists()


def test_wandb_and_mlflow_get_the_run(tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: make test-integrations")
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: make test-integrations")
    for variable, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file:{folder.parent}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    config = override(tiny, "engine.loggers=wandb,mlflow", "engine.epochs=1")
    train(config, run_dir=folder)
    result = train(override(config, "engine.epochs=2"), run_dir=folder, resume=True)
    identities = json.loads((folder / "loggers.json").read_text())
    client = mlflow.MlflowClient(f"file:{folder.parent}/mlruns")
    stored = client.get_run(identities["mlflow"])
    logged = [each.value for each in client.get_metric_history(identities["mlflow"], "val_top1")]
    assert logged == pytest.approx([row["val_top1"] for row in result.history])
    assert stored.data.params["recipe"] == tiny.recipe
    assert list((folder / "wandb").glob(f"offline-run-*-{identities['wandb']}"))


def test_names_of_loggers_are_checked() -> None:
    assert EngineConfig(loggers="none").logger_names() == []
    assert EngineConfig(loggers="mlflow, tensorboard,mlflow").logger_names() == ["mlflow", "tensorboard"]
    with pytest.raises(ValueError, match=r"engine.loggers names 'wandbb', which is none of .*mean wandb\?"):
        EngineConfig(loggers="wandbb")


def test_messages_go_to_a_handler_of_the_program(
    tiny: RunConfig, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logging.getLogger("lambdanets"), "handlers", [handler])
    train(override(tiny, "engine.epochs=1"), run_dir=folder)
    assert {record.levelname for record in records} == {"INFO"}
    assert records[0].getMessage().startswith("recipe ")
    assert records[-1].getMessage().startswith("epoch 1/1")
    assert capsys.readouterr().out == ""
