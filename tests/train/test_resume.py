"""A run that is stopped in any way and resumed ends with the same bits as one that was never stopped."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lambdanets.data import Splits
from lambdanets.train import (
    CheckpointError,
    RunConfig,
    RunError,
    RunResult,
    TrainingInterrupted,
    override,
    to_json,
)
from lambdanets.train.checkpoint import RunState, load_checkpoint
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import Wording
from lambdanets.train.engine import train
from lambdanets.train.resume import ResumePoint, check_data, find_resume_point
from lambdanets.train.run import RunFiles
from lambdanets.utils.processes import STOP_SIGNALS, InUseError, locked
from launching import TRAIN, environment, finish, start
from preloaded import Preloaded
from runs import assert_same_end, interrupt


def kill_and_resume(config: RunConfig, folder: Path, *points: str) -> str:
    stored = folder.parent / "wanted.json"
    stored.write_text(to_json(config))
    script = Path(__file__).with_name("killed_runs.py")
    ((code, said, errors),) = finish(start(script, stored, folder, *points))
    assert code == 0, said + errors
    return said


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_killed_anywhere(tiny: RunConfig, finished: RunResult, folder: Path) -> None:
    points = ("batch 0", "batch 2", "write", "validation", "best", "batch 6", "rename", "time 0.7")
    said = kill_and_resume(tiny, folder, *points)
    assert "no checkpoint yet" in said  # after batch 0
    assert "from last.ckpt: epoch 1, batch 3" in said  # after batch 2
    assert "from previous.ckpt" in said  # after rename
    assert_same_end(finished.directory, folder)
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_killed_while_accumulating_with_workers(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(
        tiny, "engine.accumulate=2", "engine.clip_grad=0.5", "engine.max_batches=5", "engine.epochs=2",
        "optimizer.name=adamw", "optimizer.lr=1e-3", "data.augment.rand_augment=rand-m3-n1", "data.workers=2",
        "data.batch_size=8",
    )  # fmt: skip
    whole = train(config, run_dir=tmp_path / "whole")
    said = kill_and_resume(config, tmp_path / "killed", "batch 3", "batch 4", "batch 7")
    assert "epoch 1, batch 3" in said
    assert "epoch 1, batch 5" in said
    assert_same_end(whole.directory, tmp_path / "killed")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_cleanly_at_the_current_step(
    tiny: RunConfig,
    finished: RunResult,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    interrupt(monkeypatch, number, batch=5)
    with pytest.raises(TrainingInterrupted) as caught:
        train(override(tiny, "engine.save_steps=None"), run_dir=folder)
    assert caught.value.exit_code == 128 + number
    assert f"stopped by {signal.Signals(number).name}: saved at the current step. " in str(caught.value)
    assert f"Continue with: lambdanets train --resume {folder}" in str(caught.value)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 6
    if number == signal.SIGTERM:  # all signals save the same checkpoint
        train(run_dir=folder, resume=True)
        assert_same_end(finished.directory, folder)


def test_a_signal_during_validation_finishes_the_epoch(
    tiny: RunConfig, finished: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, signal.SIGINT, batch=4, hook="on_validation_epoch_start")
    with pytest.raises(TrainingInterrupted):
        train(tiny, run_dir=folder)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    moved = folder.with_name("elsewhere")
    folder.rename(moved)
    train(run_dir=moved, resume=True)
    assert_same_end(finished.directory, moved)


def test_a_second_signal_stops_at_once(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(self: Classifier) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Classifier, "on_validation_epoch_start", twice)
    with pytest.raises(TrainingInterrupted, match="the newest checkpoint, if any, is intact"):
        train(tiny, run_dir=folder)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 3


@pytest.mark.parametrize(("number", "launcher"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_that_is_passed_on_is_no_second_one(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, launcher: bool
) -> None:
    """A batch system signals all processes, and torchrun or a shell its own once more."""

    def twice(self: Classifier) -> None:
        os.kill(os.getpid(), number)
        monkeypatch.setattr(TorchElasticEnvironment, "detect", lambda: launcher)
        os.kill(os.getpid(), number)
        monkeypatch.setattr(TorchElasticEnvironment, "detect", lambda: False)

    monkeypatch.setattr(Classifier, "on_validation_epoch_start", twice)
    with pytest.raises(TrainingInterrupted, match="saved at the current step"):
        train(tiny, run_dir=folder)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["batches_done"] == 4


def test_a_folder_in_use_is_refused(
    tiny: RunConfig, finished: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new run is about to begin, while it trains, and when it is resumed elsewhere."""
    lock, says = (
        RunFiles(folder).lock,
        rf"^the run in {folder} is in use by another process \(process \d+ on ",
    )
    with locked(lock, "it"), pytest.raises(InUseError, match=says):
        train(tiny, run_dir=folder)
    assert list(folder.iterdir()) == []
    tried = []

    def try_twice(self: Classifier) -> None:
        monkeypatch.undo()
        before = content(folder)
        with pytest.raises(InUseError, match=says):
            train(run_dir=folder, resume=True)
        tried.append(content(folder) == before)

    monkeypatch.setattr(Classifier, "on_validation_epoch_start", try_twice)
    train(tiny, run_dir=folder)
    assert tried == [True]
    assert not lock.exists()
    assert_same_end(finished.directory, folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_processes_that_read_images_are_signalled_with_the_run_or_killed(tmp_path: Path) -> None:
    """SIGTERM to the group of one run; another loses such a process, as when memory runs out."""
    settings = ["engine.epochs=200", "engine.save_steps=1", "engine.threads=1", "data.workers=2",
                "data.cache=false", "data.augment.rand_augment=rand-m3-n1"]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    folders = [tmp_path / "group", tmp_path / "killed"]
    runs = [
        Preloaded(*TRAIN, "digits", "--out", folder, *words, env=environment(), new_session=True)
        for folder in folders
    ]
    try:
        for run, folder in zip(runs, folders, strict=True):
            until = time.monotonic() + 300
            while not (folder / "checkpoints/last.ckpt").exists() and time.monotonic() < until:
                time.sleep(0.02)
            if run is runs[0]:
                os.killpg(run.pid, signal.SIGTERM)
            else:
                os.kill(children(run.pid)[-1], signal.SIGKILL)
        said = [run.communicate(timeout=300)[1].splitlines() for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [143, 1], said
    assert said[0][-1].startswith("lambdanets: stopped by SIGTERM: saved at the current step. ")
    (line,) = said[1]
    # A process that is killed while it hands over a batch breaks the connection first.
    assert line.replace("its connection broke off", "Killed") == (
        "lambdanets: a process that reads images was lost (Killed), probably because memory or shared memory "
        "(/dev/shm) ran out. The newest checkpoint is intact. Continue with fewer of them (there were 2): "
        f"lambdanets train --resume {folders[1]} --set data.workers=1"
    )


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    if not tasks.exists():
        pytest.skip("this system does not list a process's children")
    return [int(word) for task in tasks.iterdir() for word in (task / "children").read_text().split()]


def stop_after(tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    interrupt(monkeypatch, signal.SIGINT, batch=batch)
    with pytest.raises(TrainingInterrupted):
        train(tiny, run_dir=folder)


def test_a_damaged_last_checkpoint_falls_back_to_the_previous(
    tiny: RunConfig, finished: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    stop_after(tiny, folder, monkeypatch, 6)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of some weight
    last.write_bytes(content)
    train(run_dir=folder, resume=True)
    said = capsys.readouterr().out
    assert "last.ckpt is damaged" in said
    assert "continues from previous.ckpt" in said
    assert (folder / "checkpoints" / "last.ckpt.damaged").exists()
    assert_same_end(finished.directory, folder)


@pytest.mark.parametrize("change", ["groups", "options", "parts", "shape", "state", "loops"])
def test_a_checkpoint_of_which_a_part_is_another_s_is_not_resumed(
    finished: RunResult, folder: Path, change: str
) -> None:
    shutil.copytree(finished.directory, folder)
    (folder / "summary.txt").unlink()
    for path in (folder / "checkpoints").iterdir():
        content = load_checkpoint(path)
        [states] = content["optimizer_states"]
        if change == "groups":
            states["param_groups"][0]["params"].pop()
            states["state"].clear()
            states["param_groups"] = [{**group, "momentum": 0} for group in states["param_groups"]]
        elif change == "options":
            del states["param_groups"][1]["nesterov"]
        elif change == "parts":
            states["state"][0]["momentum_buffer"] = [1.0]
        elif change == "shape":
            states["state"][0]["momentum_buffer"] = torch.zeros(7)
        elif change == "state":
            states["state"].clear()
        else:
            content["loops"] = None
        torch.save(content, path)
    reasons = {
        "groups": r"\.ckpt has the state of another optimiser than the run's: its groups have \[\d+, \d+\]",
        "options": r"the run's: nesterov of group 1 is missing or of another type; bring",
        "parts": r"the state of parameter \d+ has other entries than that of others of its shape; bring",
        "shape": r"momentum_buffer of parameter 0 has the shape \(7,\), the parameter \(32,\); bring",
        "state": r"no checkpoint is intact: .*optimizer_states.state is empty",
        "loops": r"no checkpoint is intact: .*loops is a NoneType",
    }
    with pytest.raises((RunError, CheckpointError), match=reasons[change]):
        train(run_dir=folder, resume=True)


def test_when_nothing_is_intact_nothing_is_trained(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(tiny, folder, monkeypatch, 2)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    before = set((folder / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        train(run_dir=folder, resume=True)
    assert set((folder / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("left", ["metrics.csv", "weights.safetensors", "checkpoints/last.ckpt.damaged"])
def test_what_was_trained_is_not_overwritten_from_the_beginning(
    tiny: RunConfig, folder: Path, left: str
) -> None:
    files = RunFiles(folder)
    files.last.parent.mkdir(parents=True)
    assert find_resume_point(files, tiny) is None
    (folder / left).write_bytes(b"")
    with pytest.raises(RunError, match=f"it holds {Path(left).name}, which"):
        find_resume_point(files, tiny)


def test_other_images_are_not_resumed_on(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    start = ResumePoint(files.last, {"run_state": RunState(fingerprint="these").to_dict()})
    for seen, now in (("these", "these"), ("", "those")):
        known = ResumePoint(files.last, {"run_state": RunState(fingerprint=seen).to_dict()})
        check_data(files, Splits(None, None, ("a",), now), known, Wording())
    with pytest.raises(RunError, match="images were added, removed, renamed or moved"):
        check_data(files, Splits(None, None, ("a",), "those"), start, Wording())
    for seen, now, began in (
        ("these+l", "these+m", "other"),
        ("these+l", "these", "other"),
        ("these", "these+m", "no"),
        ("", "+m", "no"),
    ):
        known = ResumePoint(files.last, {"run_state": RunState(fingerprint=seen).to_dict()})
        with pytest.raises(RunError, match=f"began with {began} pseudo-labels; go on with the same"):
            check_data(files, Splits(None, None, ("a",), now), known, Wording())


def test_a_hint_to_continue_can_be_pasted() -> None:
    said = str(TrainingInterrupted(signal.SIGINT, Path("my runs/one"), saved=True))
    assert said.endswith("Continue with: lambdanets train --resume 'my runs/one'")


def test_a_complete_run_says_so(finished: RunResult, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(finished.directory, tmp_path / "copy")
    config = (copy / "config.json").read_text().replace('"digits"', '"folder:/gone"')
    (copy / "config.json").write_text(config)  # its images are no longer there
    weights = (copy / "checkpoints" / "last.ckpt").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    result = train(run_dir=copy, resume=True)
    assert result.already_complete
    assert result.history == finished.history
    assert result.summary == finished.summary.replace(str(finished.directory), str(copy))
    assert "complete: 3 epochs, nothing to resume" in capsys.readouterr().out
    assert (copy / "checkpoints" / "last.ckpt").read_bytes() == weights
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == times


def test_what_cannot_be_resumed_is_refused(tiny: RunConfig, finished: RunResult, folder: Path) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        train(run_dir=folder, resume=True)
    with pytest.raises(RunError, match="needs a config"):
        train(run_dir=folder)
    with pytest.raises(RunError, match="holds a run already"):
        train(tiny, run_dir=finished.directory)
    changed = override(tiny, "optimizer.lr=0.3", "data.workers=1")
    with pytest.raises(RunError, match=r"optimizer\.lr \(was 0\.05, now 0\.3\)") as caught:
        train(changed, run_dir=finished.directory, resume=True)
    assert "workers" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_told(
    tiny: RunConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(tiny, folder, monkeypatch, 2)
    other = tmp_path / "other"
    stop_after(override(tiny, "model.name=resnet_digits_conv"), other, monkeypatch, 2)
    last = folder / "checkpoints" / "last.ckpt"
    shutil.copy(other / "checkpoints" / "last.ckpt", last)
    with pytest.raises(RunError) as caught:
        train(run_dir=folder, resume=True)
    assert str(caught.value).startswith(
        f"{last} is a checkpoint of another model than lambda_resnet_digits: they differ in "
    )
    assert str(caught.value).count("\n") == 0


def test_a_checkpoint_of_another_version_is_told(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(tiny, folder, monkeypatch, 2)
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["run_state"]["best_top1"] = 0.5
    torch.save(content, last)
    with pytest.raises(RunError, match="another version of lambdanets"):
        train(run_dir=folder, resume=True)


def test_a_run_is_resumed_with_as_many_images(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(override(tiny, "engine.max_batches=None", "data.batch_size=400"), folder, monkeypatch, 1)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"val_fraction": 0.2', '"val_fraction": 0.5'))
    with pytest.raises(RunError, match="had 3 batches in an epoch and has 2 now"):
        train(run_dir=folder, resume=True)
