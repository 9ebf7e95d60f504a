"""A compiled network trains what others do, stops and goes on, and may spare its activations."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lambdanets.models.resnet import ResNet
from lambdanets.models.zoo import CONFIGS
from lambdanets.train import RunConfig, TrainingInterrupted, override
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.engine import train
from runs import interrupt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here"),
]


def test_a_compiled_network(tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_block = replace(
        CONFIGS["lambda_resnet_digits"],
        depths=(1,), widths=(16,), operator_blocks=("all",), squeeze_excite=(False,),
    )  # fmt: skip
    monkeypatch.setattr(RunConfig, "network", lambda *_, **__: ResNet(one_block, num_classes=10, in_chans=1))
    config = override(
        # Without drop path, whose numbers are others when compiled; with a small rate, as rounding grows.
        tiny, "engine.compile=true", "engine.epochs=2", "engine.max_batches=3", "engine.max_val_batches=1",
        "engine.ema=0.9", "model.options.drop_path_rate=0.0", "optimizer.lr=0.002",
    )  # fmt: skip
    interrupt(monkeypatch, signal.SIGINT, batch=1)
    with pytest.raises(TrainingInterrupted):
        train(config, run_dir=tmp_path / "stopped")
    torch.compiler.reset()  # as in a process of its own
    resumed = train(run_dir=tmp_path / "stopped", resume=True)
    plain = train(override(config, "engine.compile=false"), run_dir=tmp_path / "plain")
    sparing = train(override(config, "engine.checkpointing=true"), run_dir=tmp_path / "sparing")
    wanted, *others = (
        load_checkpoint(run.directory / "checkpoints" / "last.ckpt")["state_dict"]
        for run in (plain, resumed, sparing)
    )
    for name, value in wanted.items():
        for other in others:
            # To rounding: what is compiled first decides which sizes are compiled as variable later.
            assert (other[name] - value).double().norm() <= 1e-4 * value.double().norm() + 1e-7, name
