"""Batch norms over all devices: the wiring, on a CPU; the numbers need two GPUs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.train import RunConfig, RunError, override
from lambdanets.train.engine import CLASSIFICATION, build_learner, train
from lambdanets.train.launch import SyncBatchNorms

OPTIONS = ("engine.sync_batchnorm=true", "engine.devices=2", "engine.strategy=ddp", "engine.accelerator=cpu")


def test_cpus_are_refused_before_anything_starts(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lambdanets.train import trainer

    trainers: list[Any] = []
    make = trainer.make_trainer

    def recorded(**settings: Any) -> Any:
        trainers.append(make(**settings))
        return trainers[-1]

    monkeypatch.setattr(trainer, "make_trainer", recorded)
    with pytest.raises(RunError, match=r"engine\.sync_batchnorm needs GPUs"):
        train(override(tiny, *OPTIONS), run_dir=folder)
    assert not folder.exists()
    assert isinstance(trainers[0].strategy._layer_sync, SyncBatchNorms)
    # One device has all the images there are.
    train(
        override(tiny, "engine.sync_batchnorm=true", "engine.epochs=1", "engine.max_batches=1"),
        run_dir=folder,
    )


def test_every_norm_is_converted_and_keeps_its_name_its_momentum_and_what_it_computes(
    tiny: RunConfig,
) -> None:
    config = override(tiny, *OPTIONS, "model.bn_momentum=0.003", "engine.ema=0.9")
    module = build_learner(CLASSIFICATION, config, [*"0123456789"])
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    wake(module)
    images = torch.randn(3, 1, 8, 8)
    names, tensors = zip(*module.state_dict(keep_vars=True).items(), strict=True)
    before = [logits(module.network, images, joined=joined) for joined in (True, False)]
    assert SyncBatchNorms().apply(module) is module
    converted = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    assert list(converted) == list(norms)
    for part in ("norm_queries", "norm_values"):
        assert any(name.startswith("network.") and name.endswith(part) for name in converted)
    assert {type(norm) for norm in converted.values()} == {nn.SyncBatchNorm}
    assert {norm.momentum for name, norm in converted.items() if name.startswith("network.")} == {0.003}
    again, kept = zip(*module.state_dict(keep_vars=True).items(), strict=True)
    assert again == names
    assert all(one is other for one, other in zip(kept, tensors, strict=True))
    # In evaluation they need no other device: joined with the projections before them, or on their own.
    for joined, expected in zip((True, False), before, strict=True):
        torch.testing.assert_close(logits(module.network, images, joined=joined), expected)


def test_norms_of_timms_keep_their_activation() -> None:
    network = timm.create_model("test_efficientnet", num_classes=5)
    wake(network)
    images = torch.randn(2, 3, 32, 32)
    before = logits(network, images, joined=False)
    torch.testing.assert_close(logits(SyncBatchNorms().apply(network), images, joined=False), before)


def wake(module: nn.Module) -> None:
    """Norms that change something."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)


def logits(network: nn.Module, images: torch.Tensor, *, joined: bool) -> torch.Tensor:
    with torch.set_grad_enabled(not joined):
        return network.eval()(images).detach()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs")
def test_two_gpus_have_the_statistics_of_one_with_all_images(tmp_path: Path) -> None:
    from lambdanets.train.checkpoint import load_checkpoint

    options = ["--epochs", "1", "--set", "data.augment.crop=none", "--set", "optimizer.lr_batch=64",
               "--set", "engine.max_batches=4"]  # fmt: skip
    ways = {
        "one": ["--devices", "1", "--batch-size", "64"],
        "two": ["--devices", "2", "--batch-size", "32", "--set", "engine.sync_batchnorm=true"],
    }
    for name, way in ways.items():
        command = [sys.executable, "-m", "lambdanets", "train", "digits", "--out", str(tmp_path / name)]
        subprocess.run([*command, *options, *way], check=True, timeout=600)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ways)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
