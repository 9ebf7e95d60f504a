import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lambdanets.train import CheckpointError
from lambdanets.train.checkpoint import (
    AtomicCheckpointIO,
    load_checkpoint,
    newest_intact,
    replacing,
    save_weights,
    sweep,
    write_text,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(1000.0)}, path)
    return path


def test_a_checkpoint_comes_back_and_leaves_no_trace(saved: Path) -> None:
    assert torch.equal(load_checkpoint(saved)["x"], torch.arange(1000.0))
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_the_replaced_checkpoint_is_kept(saved: Path) -> None:
    previous = saved.with_name("previous.ckpt")
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(1)}, saved, {"previous": previous})
    assert torch.equal(load_checkpoint(saved)["x"], torch.zeros(1))
    assert torch.equal(load_checkpoint(previous)["x"], torch.arange(1000.0))


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
    assert torch.equal(load_checkpoint(saved)["x"], torch.arange(1000.0))
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
    with pytest.raises(CheckpointError, match=r"could not be saved .*Permission denied.*nothing was written"):
        write_text(tmp_path / "table.csv", "a,b\n")
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_the_block_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "file"):
        raise KeyError("ours")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text", "pickle"])
def test_damage_is_found(saved: Path, damage: str) -> None:
    content = bytearray(saved.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 4
    wrong = {"bit": content, "cut": content[: len(content) // 2], "empty": b"", "text": b"hello" * 100}
    if damage == "pickle":
        torch.save({"x": nn.Linear(2, 2)}, saved)  # a whole module: code, not data
    else:
        saved.write_bytes(wrong[damage])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


def test_the_newest_intact_checkpoint_is_found(saved: Path) -> None:
    good, bad = saved, saved.with_name("newer.ckpt")
    bad.write_bytes(b"PK\x03\x04 half a file")
    found = newest_intact([saved.with_name("missing.ckpt"), bad, good])
    assert found is not None
    path, content, complaints = found
    assert path == good
    assert torch.equal(content["x"], torch.arange(1000.0))
    assert len(complaints) == 1
    assert "newer.ckpt is damaged" in complaints[0]
    assert not bad.exists()
    assert newest_intact([bad]) is None


def test_a_checkpoint_that_was_read_is_not_read_again(saved: Path) -> None:
    content = {"x": 1}
    plugin = AtomicCheckpointIO((saved, content))
    assert plugin.load_checkpoint(saved) is content
    assert plugin.load_checkpoint(saved) is not content


def test_sweeping_removes_leftovers_alone(saved: Path) -> None:
    saved.with_name(".last.ckpt.123.tmp").write_bytes(b"half")
    sweep(saved.parent)
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_weights_keep_their_values_whatever_their_memory_format(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_weights(network, tmp_path / "w.safetensors", {"model": "conv"})
    assert torch.equal(load_file(tmp_path / "w.safetensors")["weight"], network.weight)
