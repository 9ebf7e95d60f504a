"""Two processes of torchrun and of SLURM train as one run, stop as one, and say what is wrong once."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lambdanets.train import load_run
from lambdanets.train.checkpoint import load_checkpoint
from launching import TORCHRUN, TRAIN, by_hand, by_slurm, finish, free_port, start, terminate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch has no torch.distributed here"),
]

HERE = ["--set", "engine.accelerator=cpu", "--set", "engine.threads=1", "--set", "engine.strategy=ddp"]
SMALL = [
    *HERE, "--batch-size", "2", "--epochs", "2", "--model", "lambda_resnet_digits",
    "--set", "data.image_size=8", "--set", "data.in_chans=1", "--set", "data.augment.crop=none",
    "--set", "data.check=false", "--set", "data.cache=false", "--set", "data.workers=0",
]  # fmt: skip


def test_a_run_is_stopped_and_continued_under_torchrun_and_slurm(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    words = ["digits", *HERE, "--batch-size", "16", "--epochs", "6", "--out", folder,
             "--set", "engine.max_batches=15", "--set", "engine.save_steps=5"]  # fmt: skip
    torchrun = [*TORCHRUN, "--master-port", free_port(), *TRAIN]
    ((_, _, said),) = terminate([start(*torchrun, *words)], last)
    assert said.count("lambdanets: stopped by SIGTERM: saved at the current step.") == 1, said
    assert "(process 1)" not in said
    done = load_checkpoint(last)["run_state"]["batches_done"]
    assert done < 90
    ends = terminate(by_slurm("--resume", folder), last)
    assert [code for code, _, _ in ends] == [143, 143], ends
    assert [said.count("stopped by SIGTERM") for _, _, said in ends] == [1, 0]
    assert "resuming" in ends[0][1]
    assert load_checkpoint(last)["run_state"]["batches_done"] > done
    # Lightning's own way under SLURM leaves a checkpoint of another kind and queues the job again.
    assert {path.name for path in last.parent.iterdir()} <= {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert not list(folder.glob("*.ckpt"))
    ends = finish(*by_slurm("--resume", folder))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert ends[0][1].count("epoch 6/6") == 1
    assert ends[1][1] == ""
    assert [row["epoch"] for row in load_run(folder).history()] == list(range(1, 7))
    assert load_checkpoint(last)["global_step"] == 90


def test_a_rate_that_diverges_on_two_processes_is_told_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--set", "optimizer.lr=1e25", "--set", "schedule.warmup_epochs=0", "--out", folder]
    ends = finish(*by_slurm("digits", *HERE, "--batch-size", "16", *options))
    assert [code for code, _, _ in ends] == [1, 1], ends
    (line,) = said_by(ends)
    assert "the training loss became" in line
    assert f"the report on this step is in {folder / 'nonfinite'}" in line
    report = json.loads((folder / "nonfinite" / "report.json").read_text())
    assert report["first_nonfinite_output"]
    assert (folder / "nonfinite" / "batch.safetensors").exists()


def test_what_is_wrong_with_the_images_of_one_process_is_told_once(tmp_path: Path) -> None:
    """Other images where the second process looks; then one that only the second process reads."""
    for place, count in (("here", 8), ("there", 9)):
        photos(tmp_path / place / "photos", count)
    words = ["folder", "--data", "folder:photos", *SMALL, "--out", tmp_path / "other"]
    ends = finish(*by_hand(*words, folders=[tmp_path / "here", tmp_path / "there"]))
    assert [code for code, _, _ in ends] == [1, 1]
    assert said_by(ends) == ["lambdanets: process 1 of the run has other images than process 0"]
    (tmp_path / "here" / "photos" / "train" / "dog" / "3.png").write_bytes(b"no image")
    command = [*TRAIN, "folder", "--data", f"folder:{tmp_path / 'here' / 'photos'}", *SMALL, "--devices", "2"]
    ends = finish(start(*command, "--out", tmp_path / "damaged"))
    lines = said_by(ends)
    assert ends[0][0] != 0
    assert len([line for line in lines if "dog/3.png" in line]) == 1
    assert len([line for line in lines if "another process of this run ended" in line]) <= 1
    assert all(line.startswith("lambdanets") for line in lines), lines


def test_fewer_images_than_processes_are_told_once(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 1)
    words = ["folder", "--data", f"folder:{tmp_path / 'photos'}", *SMALL, "--out", tmp_path / "run"]
    ends = finish(*by_slurm(*words, tasks=3))
    assert [code for code, _, _ in ends] == [1, 1, 1], ends
    assert said_by(ends) == [
        "lambdanets: 2 validation images for 3 processes, each of which needs one: hold out more images, or "
        "use fewer devices."
    ]


def test_what_all_processes_find_wrong_with_the_images_is_told_once(tmp_path: Path) -> None:
    """A class without images, under SLURM and as the agent of torchrun starts the processes."""
    photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "train" / "mouse").mkdir()
    words = ["folder", "--data", f"folder:{tmp_path / 'photos'}", *SMALL, "--out", tmp_path / "run"]
    ends = finish(*by_slurm(*words))
    assert [code for code, _, _ in ends] == [1, 1], ends
    (line,) = said_by(ends)
    mouse = tmp_path / "photos" / "train" / "mouse"
    assert line.startswith(f"lambdanets: class folder {mouse} holds no images; it is empty")
    ends = finish(*by_hand(*words, folders=[tmp_path, tmp_path]))
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert said_by(ends) == [line]
    assert not (tmp_path / "run").exists()


def test_what_one_process_finds_wrong_stops_the_others(tmp_path: Path) -> None:
    """A folder that is missing on one machine; a run folder that is taken, which the first looks at alone."""
    photos(tmp_path / "here" / "photos", 2)
    (tmp_path / "there").mkdir()
    words = ["folder", "--data", "folder:photos", *SMALL, "--out", tmp_path / "run"]
    ends = finish(*by_hand(*words, folders=[tmp_path / "here", tmp_path / "there"]))
    assert [code for code, _, _ in ends] == [1, 1], ends
    (line,) = said_by(ends)
    assert line.startswith("lambdanets: process 1 of the run: ")
    assert "photos" in line
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n1\n")
    words[2] = f"folder:{tmp_path / 'here' / 'photos'}"
    ends = finish(*by_slurm(*words))
    assert [code for code, _, _ in ends] == [1, 1], ends
    (line,) = said_by(ends)
    assert line.startswith(f"lambdanets: {tmp_path / 'run'} holds a run already")


def photos(root: Path, count: int, *, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for split in ("train", "val"):
        for shade, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("L", (8, 8), 90 * shade + number).save(root / split / name / f"{number}.png")


def said_by(ends: list[tuple[int, str, str]]) -> list[str]:
    return [line for _, _, said in ends for line in said.splitlines() if line]
