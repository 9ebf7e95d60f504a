import errno
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lambdanets.models import create_model
from lambdanets.train import CheckpointError, TrainingInterrupted
from lambdanets.train.checkpoint import (
    AtomicCheckpointIO,
    RunState,
    load_checkpoint,
    newest_intact,
    remove_temporary_files,
    replacing,
    save_weights,
    write_text,
)
from lambdanets.train.errors import DamagedCheckpointError


def content(x: torch.Tensor) -> dict[str, Any]:
    """The least that a checkpoint of a run holds, of a network with one parameter, after one step."""
    counts = {"ready": 1, "completed": 1}
    progress = {"total": counts, "current": counts}
    loops = {
        "epoch_progress": progress,
        "epoch_loop.batch_progress": progress,
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": progress}},
        "epoch_loop.manual_optimization.optim_step_progress": progress,
        "epoch_loop.scheduler_progress": progress,
        "epoch_loop.val_loop.batch_progress": progress,
        "epoch_loop.state_dict": {"_batches_that_stepped": 1},
        "state_dict": {},
    }
    groups = [{"params": [0], "momentum": 0.9}]
    return {
        "epoch": 0,
        "global_step": 1,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {"x": x},
        "loops": {"fit_loop": loops},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": x}}, "param_groups": groups}],
        "lr_schedulers": [],
        "run_state": RunState().to_dict(),
    }


def value(path: Path) -> torch.Tensor:
    return load_checkpoint(path)["state_dict"]["x"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(torch.arange(1000.0)), path)
    return path


def test_a_checkpoint_comes_back_and_leaves_no_trace(saved: Path) -> None:
    assert torch.equal(value(saved), torch.arange(1000.0))
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_the_replaced_checkpoint_is_kept(saved: Path) -> None:
    previous = saved.with_name("previous.ckpt")
    AtomicCheckpointIO().save_checkpoint(content(torch.zeros(1)), saved, {"previous": previous})
    assert torch.equal(value(saved), torch.zeros(1))
    assert torch.equal(value(previous), torch.arange(1000.0))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_the_old_file_stands(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr(Path, "open", lambda self, mode: Full(self))
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(
        CheckpointError, match=r"the disk is full: .* the previous one is untouched"
    ) as caught:
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(5000)}, saved)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert torch.equal(value(saved), torch.arange(1000.0))
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


class Full:
    """A file on a disk with room for a thousand bytes."""

    def __init__(self, path: Path) -> None:
        self.file, self.room = io.FileIO(path, "w"), 1000

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(
        CheckpointError, match=r"could not be saved .*Permission denied.*there was no table.csv before"
    ):
        write_text(tmp_path / "table.csv", "a,b\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """As /dev/null, whose place a process of root could take."""
    pipe = tmp_path / "table.csv"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=r"table\.csv could not be saved \(it is no regular file\)"):
        write_text(pipe, "a,b\n")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_error_inside_the_block_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "file"):
        raise KeyError("ours")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "猫" * 85])
def test_names_may_be_as_long_as_a_file_system_takes(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "whole")]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text", "foreign", "list", "zip"])
def test_damage_is_found(saved: Path, damage: str) -> None:
    whole = bytearray(saved.read_bytes())
    if damage == "bit":
        whole[len(whole) // 2] ^= 4
    wrong = {"bit": whole, "cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 100}
    if damage == "foreign":
        torch.save({"state_dict": {}}, saved)
    elif damage == "list":
        torch.save([1, 2], saved)
    elif damage == "zip":
        with zipfile.ZipFile(saved, "w") as archive:
            archive.writestr("photo.jpg", b"x")
    else:
        saved.write_bytes(wrong[damage])
    with pytest.raises(DamagedCheckpointError, match="damaged") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_asks_for_code_is_refused_by_its_name(saved: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    older = saved.with_name("previous.ckpt")
    older.write_bytes(saved.read_bytes())
    torch.save(content(torch.zeros(2)) | {"more": Harmful()}, saved)
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt holds more than tensors.*\(posix\.mkdir\)"
    ) as caught:
        newest_intact([saved, older])
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "last.ckpt", "previous.ckpt"}


def optimizer(state: Any, group: dict[str, Any]) -> dict[str, Any]:
    return {"optimizer_states": [{"state": state, "param_groups": [group]}]}


MISFITS: list[tuple[str, dict[str, Any]]] = [
    ("loops is a NoneType", {"loops": None}),
    ("loops.fit_loop lacks epoch_progress", {"loops": {"fit_loop": {}}}),
    ("loops and global_step count different numbers", {"global_step": 7}),
    ("optimizer_states is a dict", {"optimizer_states": {}}),
    ("optimizer_states is empty", {"optimizer_states": []}),
    ("optimizer_states.param_groups lacks params", optimizer({}, {})),
    ("optimizer_states.state is empty", optimizer({}, {"params": [0], "momentum": 0.9})),
    ("optimizer_states.state has other parameters", optimizer({1: {}}, {"params": [0]})),
    ("optimizer_states.state does not have one mapping", optimizer({0: 1}, {"params": [0]})),
    ("state_dict is a list", {"state_dict": [1]}),
    ("state_dict holds other things", {"state_dict": {"x": 1}}),
    ("epoch is a str", {"epoch": "1"}),
    ("run_state is a bool", {"run_state": True}),
    (r"run_state.history\[0\].epoch is of type float; got 'x'", {"run_state": {"history": [{"epoch": "x"}]}}),
    ("run_state.best_confusion is of type", {"run_state": {"best_confusion": "x"}}),
]


@pytest.mark.parametrize(("reason", "changes"), MISFITS, ids=[reason for reason, _ in MISFITS])
def test_parts_of_other_types_are_named(saved: Path, reason: str, changes: dict[str, Any]) -> None:
    torch.save(content(torch.zeros(2)) | changes, saved)
    with pytest.raises(
        DamagedCheckpointError, match=f"last.ckpt is damaged, or no checkpoint of a run: .*{reason}"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "part",
    [
        "epoch_loop.manual_optimization.optim_step_progress",
        "epoch_loop.scheduler_progress",
        "epoch_loop.val_loop.batch_progress",
        "epoch_loop.state_dict",
        "state_dict",
    ],
)
def test_parts_of_a_loop_of_other_types_are_named(saved: Path, part: str) -> None:
    wrong = content(torch.zeros(2))
    wrong["loops"]["fit_loop"][part] = None
    torch.save(wrong, saved)
    with pytest.raises(DamagedCheckpointError, match=rf"loops\.fit_loop\.{part} is a NoneType"):
        load_checkpoint(saved)


def test_an_optimiser_that_has_left_out_all_steps_so_far_is_no_damage(saved: Path) -> None:
    """As in the first steps in float16, until the scale of the loss is small enough."""
    skipped = content(torch.zeros(2)) | optimizer({}, {"params": [0], "momentum": 0.9})
    torch.save(skipped | {"MixedPrecision": {"scale": 2.0**15}}, saved)
    assert load_checkpoint(saved)["global_step"] == 1


class Unreadable(io.FileIO):
    """A file on a disk that fails."""

    def read(self, *args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("failure", ["permission", "disk", "memory"])
def test_what_cannot_be_read_now_is_not_called_damaged(
    saved: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    older = saved.with_name("previous.ckpt")
    older.write_bytes(saved.read_bytes())

    def refused(*args: Any, **kwargs: Any) -> Any:
        if failure == "permission":
            raise PermissionError(errno.EACCES, "Permission denied")
        if failure == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return Unreadable(saved, "r")

    if failure == "memory":
        monkeypatch.setattr(torch, "load", refused)
    else:
        monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CheckpointError, match="cannot be read now") as caught:
        newest_intact([saved, older])
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert {path.name for path in saved.parent.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_nothing_is_set_aside_when_nothing_is_intact(saved: Path) -> None:
    saved.write_bytes(b"half")
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        newest_intact([saved])
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("covered", [False, True])
def test_a_wish_to_stop_while_a_file_is_written_is_no_failed_write(tmp_path: Path, covered: bool) -> None:
    stop = TrainingInterrupted(2, tmp_path, saved=False)

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        try:
            raise stop
        finally:
            if covered:  # as torch does when it closes a file that is half written
                raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(TrainingInterrupted) as caught, replacing(tmp_path / "file") as temporary:
        write(temporary)
    assert caught.value is stop
    assert list(tmp_path.iterdir()) == []


def test_weights_are_as_open_to_others_as_any_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o644


def test_the_newest_intact_checkpoint_is_found(saved: Path) -> None:
    good, bad = saved, saved.with_name("newer.ckpt")
    bad.write_bytes(b"PK\x03\x04 half a file")
    found = newest_intact([saved.with_name("missing.ckpt"), bad, good])
    assert found is not None
    path, loaded, complaints = found
    assert path == good
    assert torch.equal(loaded["state_dict"]["x"], torch.arange(1000.0))
    assert len(complaints) == 1
    assert "newer.ckpt is damaged" in complaints[0]
    assert not bad.exists()
    assert newest_intact([bad]) is None


def test_a_checkpoint_that_was_read_is_not_read_again(saved: Path) -> None:
    loaded = {"x": 1}
    plugin = AtomicCheckpointIO((saved, loaded))
    assert plugin.load_checkpoint(saved) is loaded
    assert plugin.load_checkpoint(saved) is not loaded


def test_sweeping_removes_leftovers_alone(saved: Path) -> None:
    saved.with_name(".last.ckpt.123.tmp").write_bytes(b"half")
    remove_temporary_files(saved.parent)
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_weights_keep_their_values_whatever_their_memory_format(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_weights(network.state_dict(), tmp_path / "w.safetensors", {"model": "conv"})
    assert torch.equal(load_file(tmp_path / "w.safetensors")["weight"], network.weight)


def test_weights_that_layers_share_are_saved_under_each_name(tmp_path: Path) -> None:
    network = create_model("lambda_resnet_cifar", num_classes=3, shared_positions=True)
    save_weights(network.state_dict(), tmp_path / "w.safetensors", {})
    saved = load_file(tmp_path / "w.safetensors")
    assert saved.keys() == network.state_dict().keys()
    again = create_model("lambda_resnet_cifar", num_classes=3, shared_positions=True)
    again.load_state_dict(saved)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)
