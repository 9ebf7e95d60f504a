"""Two processes on a CPU, through gloo: the same parameters as one, and no hang when one of them is gone."""

import json
import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lambdanets.data import DataConfig, DataError, write_shards
from lambdanets.train import RunConfig, override, to_json
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.diagnosis import explain_error, lost_peer_reason
from lambdanets.train.engine import train
from lambdanets.train.launch import check_same_on_all_ranks
from lambdanets.train.run import RunFiles
from launching import RANK_TIMEOUT, TRAIN, by_slurm, finish, start
from runs import assert_same_end

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch has no torch.distributed here"),
]

OPTIONS = [
    "digits", "--batch-size", "32", "--set", "engine.accelerator=cpu", "--set", "engine.threads=1",
    "--set", "data.augment.crop=none", "--set", "optimizer.lr_batch=64", "--set", "engine.ema=0.9",
    "--set", "engine.strategy=ddp", "--set", "engine.max_val_batches=1",
]  # fmt: skip


def train_on_two(*words: object) -> list[tuple[int, str, str]]:
    """Train on two processes; return exit code, output and errors of each."""
    ends = finish(*by_slurm(*OPTIONS, *words))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [said.count("epoch 2/") for _, said, _ in ends] == [1, 0]
    return ends


@pytest.mark.parametrize("source", ["digits", "tar"])
def test_two_processes_train_what_one_does_that_accumulates(tmp_path: Path, source: str) -> None:
    few = ["--epochs", "2"]
    if source == "tar":
        write_shards(DataConfig(source="digits"), tmp_path / "shards", images=50)
        few += ["--data", f"tar:{tmp_path / 'shards'}", "--set", "data.order=shards"]
    train_on_two(*few, "--set", "engine.max_batches=4", "--out", tmp_path / "two")
    words = [
        *few,
        "--set",
        "engine.max_batches=8",
        "--set",
        "engine.global_batch=64",
        "--out",
        tmp_path / "one",
    ]
    ((code, _, errors),) = finish(start(*TRAIN, *OPTIONS, "--devices", "1", *words))
    assert code == 0, errors
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("two", "one")]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 8
    for name, value in ends[0]["state_dict"].items():
        # A process's batch norms see its own batches: statistics differ, what is trained does not.
        if not any(part in name for part in ("running_", "num_batches_tracked")):
            torch.testing.assert_close(value, ends[1]["state_dict"][name], rtol=1e-4, atol=1e-5)
    for name in ("train_loss", "train_top1", "lr"):
        histories = [end["run_state"]["history"] for end in ends]
        assert [row[name] for row in histories[0]] == pytest.approx(
            [row[name] for row in histories[1]], rel=1e-4
        )


@pytest.mark.parametrize("source", ["wds", "hfids"])
def test_files_are_streamed_to_two_processes(tmp_path: Path, source: str) -> None:
    write_shards(DataConfig(source="digits", val_fraction=0.6), tmp_path / "shards", images=200)
    words = ["--epochs", "2", "--set", "data.workers=1"]
    if source == "wds":
        words += ["--data", f"wds/digits:{tmp_path / 'shards'}"]
    else:
        pytest.importorskip("datasets", reason="the package datasets is not installed")
        write_parquet(tmp_path / "shards", tmp_path / "set")
        words += ["--data", f"hfids/{tmp_path / 'set'}:{tmp_path / 'cache'}", "--set", "data.num_classes=10"]
    train_on_two(*words, "--out", tmp_path / "run")
    end = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    images = json.loads((tmp_path / "shards" / "_info.json").read_text())["splits"]["train"]["num_samples"]
    assert end["global_step"] == 2 * (images // 64)
    history = end["run_state"]["history"]
    assert history[1]["train_loss"] < history[0]["train_loss"]


def write_parquet(shards: Path, out: Path) -> None:
    """Copy the samples of each archive into a parquet file."""
    import pyarrow
    from pyarrow.parquet import write_table

    (out / "data").mkdir(parents=True)
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore
        keys = [name.removesuffix(".cls") for name in files if name.endswith(".cls")]
        table = pyarrow.table({
            "image": [{"bytes": files[f"{key}.png"]} for key in keys],
            "label": [int(files[f"{key}.cls"]) for key in keys],
        })  # fmt: skip
        write_table(table, out / "data" / path.with_suffix(".parquet").name, row_group_size=100)


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="this system does not tell a process's children"
)
def test_a_killed_process_ends_the_run_which_resumes(tmp_path: Path) -> None:
    few = ["--epochs", "2", "--set", "engine.save_steps=2", "--set", "engine.max_batches=16"]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    # Lightning starts the second process, in a new interpreter.
    started = start(*TRAIN, *OPTIONS, "--devices", "2", *few, "--out", folder)
    try:
        last = folder / "checkpoints" / "last.ckpt"
        until = time.monotonic() + RANK_TIMEOUT
        while not last.exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(child_of(started.pid), signal.SIGKILL)
        _, said = started.communicate(timeout=RANK_TIMEOUT)
    finally:
        started.kill()
    # Every five seconds Lightning kills a run that has lost a process; on a busy machine before its report.
    if started.returncode != -signal.SIGKILL:
        assert started.returncode == 1
        assert said.count("lambdanets: another process of this run ended (") == 1
        assert f"lambdanets train --resume {folder}" in said
    assert "Traceback" not in said
    ((code, _, errors),) = finish(start(*TRAIN, "--resume", folder))
    assert code == 0, errors
    train_on_two(*few, "--out", whole)
    assert_same_end(whole, folder)


def child_of(process: int) -> int:
    """The process that Lightning started for the second device."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rsplit(")", 1)[1].split()
        command = (status.parent / "cmdline").read_bytes()
        if int(fields[1]) == process and b"train" in command:
            return int(status.parent.name)
    raise AssertionError(f"process {process} has no child that trains")


def test_processes_that_differ_are_told_by_the_first(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every process would have gathered."""
    mine: list[dict[str, str]] = []

    def gather(everyone: list[object], own: dict[str, str]) -> None:
        mine.append(own)
        everyone[:] = [own, others[0](own)]

    others = [lambda own: own]
    for name, result in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda result=result: result)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    check_same_on_all_ranks(tiny, "abc")
    elsewhere = replace(tiny, data=replace(tiny.data, source="folder:/elsewhere"))
    check_same_on_all_ranks(elsewhere, "abc")
    assert mine[0] == mine[1]  # the same images may lie elsewhere
    check_same_on_all_ranks(override(tiny, "optimizer.lr=0.7"), "abc")
    assert mine[0]["configuration"] != mine[2]["configuration"]
    others[0] = lambda own: own | {"images": "abd", "versions": "another"}
    sentence = "process 1 of the run has other images and versions than process 0"
    with pytest.raises(ValueError, match=sentence) as caught:
        check_same_on_all_ranks(tiny, "abc")
    assert getattr(caught.value, "on_all_ranks", False)  # the first process tells it for all
    assert "abc" not in to_json(tiny)


def test_fewer_validation_images_than_processes(tiny: RunConfig, tmp_path: Path) -> None:
    config = override(tiny, "data.val_fraction=0.001", "engine.devices=11", "engine.strategy=ddp")
    says = "^10 validation images for 11 processes, each of which needs one: hold out more images, or use few"
    with pytest.raises(DataError, match=says) as caught:
        train(config, run_dir=tmp_path / "run")
    assert getattr(caught.value, "on_all_ranks", False)
    assert not (tmp_path / "run").exists()


def test_a_lost_process_leaves_a_way_on(tiny: RunConfig, tmp_path: Path) -> None:
    files, two = RunFiles(tmp_path), SimpleNamespace(world_size=2)
    lost = RuntimeError("Connection reset by peer")
    assert "There is no checkpoint yet. Begin again with: lamb" in str(explain_error(lost, tiny, two, files))
    files.last.parent.mkdir()
    files.last.touch()
    assert "The newest checkpoint is intact. Continue with: lamb" in str(
        explain_error(lost, tiny, two, files)
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "[pair.cc:545] Read error [127.0.0.1]:12699: Connection reset by peer. This is",
            "ended (Connection reset by peer); its last log lines give the reason",
        ),
        ("[gloo] broken", "ended ([gloo] broken); its last log lines give the reason"),
        (
            "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 90000ms for recv operation",
            "did not answer for 90 s (engine.timeout_minutes); its host may be down, cut off or stopped",
        ),
        (
            "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.h:311] Connect timeout [none]",
            "could not be reached; GLOO_SOCKET_IFNAME=DEVICE names the network device between the hosts",
        ),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_a_lost_process_looks_like(said: str, reason: str | None) -> None:
    assert lost_peer_reason(RuntimeError(said)) == reason
