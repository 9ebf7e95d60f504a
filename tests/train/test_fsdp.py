"""FSDP trains what DDP does, saves whole files, stops and continues: two processes, through gloo."""

from pathlib import Path

import pytest
import torch

from lambdanets.train import RunConfig, RunError, load_run, override
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.engine import train
from launching import by_slurm, finish, terminate

WORDS = [
    "digits", "--batch-size", "16", "--epochs", "3", "--devices", "2", "--set", "engine.accelerator=cpu",
    "--set", "engine.threads=1", "--set", "engine.max_batches=12", "--set", "engine.save_steps=6",
    "--set", "engine.clip_grad=0.5", "--set", "optimizer.weight_decay=0.05",
    # Small: at ten times this rate rounding errors grow a hundredfold within these steps.
    "--set", "optimizer.lr=0.001",
]  # fmt: skip

SHARDED = [Path(__file__).with_name("fsdp_on_cpus.py"), "train"]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch has no torch.distributed here")
def test_two_processes_train_what_those_of_ddp_do(tmp_path: Path) -> None:
    """Weight decay spares the same parameters, gradients are clipped by the norm of all their parts."""
    whole, parts = tmp_path / "ddp", tmp_path / "fsdp"
    ends = finish(*by_slurm(*WORDS, "--set", "engine.strategy=ddp", "--out", whole))
    assert [code for code, _, _ in ends] == [0, 0], ends
    sharded = by_slurm(*WORDS, "--set", "engine.strategy=fsdp", "--out", parts, program=SHARDED)
    ends = terminate(sharded, parts / "checkpoints" / "last.ckpt")
    assert [code for code, _, _ in ends] == [143, 143], ends
    assert load_checkpoint(parts / "checkpoints" / "last.ckpt")["global_step"] < 36
    ends = finish(*by_slurm("--resume", parts, program=SHARDED))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "resuming" in ends[0][1]
    one, two = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, parts))
    assert one["global_step"] == two["global_step"] == 36
    # The process that writes has its own batch norms' statistics in both.
    same(one["state_dict"], two["state_dict"])
    same(load_run(whole).model().state_dict(), load_run(parts).model().state_dict())


def same(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """To rounding, measured over a whole tensor: of statistics some entries are thousands of times others."""
    assert ones.keys() == others.keys()
    for name, value in ones.items():
        assert (value - others[name]).double().norm() <= 1e-5 * value.double().norm(), name


def test_what_fsdp_cannot_do_is_refused(tiny: RunConfig, folder: Path) -> None:
    options = ("engine.strategy=fsdp", "engine.devices=2", "engine.accelerator=cpu")
    with pytest.raises(RunError, match=r"engine\.strategy=fsdp needs GPUs"):
        train(override(tiny, *options), run_dir=folder)
    with pytest.raises(RunError, match=r"engine\.ema needs whole weights"):
        train(override(tiny, *options, "engine.ema=0.9"), run_dir=folder)
    assert not folder.exists()
