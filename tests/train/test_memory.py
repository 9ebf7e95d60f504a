"""Less memory: activations that are computed again, and what a person is told who has too little."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy

from lambdanets.train import NoMemoryError, RunConfig, RunError, override
from lambdanets.train.classifier import Classifier
from lambdanets.train.diagnosis import explain_error, out_of_memory_advice
from lambdanets.train.engine import (
    CLASSIFICATION,
    build_learner,
    enable_activation_checkpointing,
    train,
)
from lambdanets.train.run import RunFiles
from lambdanets.train.trainer import accumulation_steps, check_devices
from runs import assert_same_end


def test_activations_that_are_computed_again_change_no_bit_of_a_run(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped paths come again as they were, and batch norms count every batch once."""
    config = override(tiny, "engine.epochs=2", "engine.ema=0.9", "model.options.drop_rate=0.1")
    train(config, run_dir=tmp_path / "usual")
    passes: list[bool] = []
    module = build_learner(CLASSIFICATION, override(config, "engine.checkpointing=true"), [*"0123456789"])
    inner: Any = module.network.get_submodule("layer2")[0]
    inner.register_forward_pre_hook(lambda *_: passes.append(True))
    module.network(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert len(passes) == 2  # forward, and again in the backward pass
    train(override(config, "engine.checkpointing=true"), run_dir=tmp_path / "again")
    assert_same_end(tmp_path / "usual", tmp_path / "again")


def test_a_network_that_cannot_is_named(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdanets.train.RunConfig.network", lambda *args, **options: torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"engine\.checkpointing: lambda_resnet_digits does not support"):
        train(override(tiny, "engine.checkpointing=true"), run_dir=folder)
    assert not folder.exists()
    with torch.device("meta"):
        timms = timm.create_model("dla34")
    with pytest.raises(RunError, match="dla34 does not support recomputing"):
        enable_activation_checkpointing(timms, "dla34")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
        ),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(Classifier, "forward", full)
    with pytest.raises(
        NoMemoryError, match=r"out of memory with data\.batch_size=16 images of 8x8 on each"
    ) as caught:
        train(tiny, run_dir=folder)
    said = str(caught.value)
    means = ["data.batch_size=8 with engine.accumulate=2", "engine.precision=bf16-mixed"]
    means += ["engine.checkpointing=true"]
    assert [said.index(means) for means in means] == sorted(said.index(means) for means in means)
    assert "fsdp" not in said
    assert "In a run that is resumed engine.checkpointing may change, but not the batch" in said


@pytest.mark.parametrize(
    ("batch", "world", "settings", "size", "step"),
    [
        (16, 1, [], 8, 16),
        (16, 2, ["engine.accumulate=3"], 8, 96),
        (64, 8, ["engine.global_batch=4096"], 32, 4096),
        (15, 1, [], 5, 15),
        (7, 3, ["engine.accumulate=2"], 2, 42),  # 14 images on each device: by 2, not by 3
        (2, 1, [], 1, 2),
    ],
)
def test_the_smaller_batch_keeps_the_step(
    tiny: RunConfig, batch: int, world: int, settings: list[str], size: int, step: int
) -> None:
    config = override(tiny, f"data.batch_size={batch}", *settings)
    said = out_of_memory_advice(config, world, "cpu")
    advice = re.findall(r"(?:data\.batch_size|engine\.accumulate|engine\.global_batch)=\d+", said)[1:]
    assert advice[0] == f"data.batch_size={size}"
    assert f"keeps the step of {step} images" in said
    changed = override(config, *advice)
    assert size * world * accumulation_steps(changed, world) == step


def test_a_resumed_run_may_do_what_is_said(tiny: RunConfig, folder: Path) -> None:
    train(override(tiny, "engine.epochs=1"), run_dir=folder)
    stored = override(tiny, "engine.epochs=1")
    for change in ("data.batch_size=8", "engine.precision=bf16-mixed", "engine.strategy=fsdp"):
        with pytest.raises(
            RunError, match=f"a resumed run keeps its configuration, .* {change.split('=')[0]}"
        ):
            train(override(stored, change), run_dir=folder, resume=True)
    train(override(stored, "engine.checkpointing=true"), run_dir=folder, resume=True)


def test_advice_leaves_out_what_is_done_already(tiny: RunConfig, folder: Path) -> None:
    done = override(tiny, "engine.precision=bf16-mixed", "engine.checkpointing=true", "engine.strategy=fsdp")
    none = ". In a run that is resumed none of this may change"
    step = "data.batch_size=8 with engine.accumulate=2, which keeps the step of 32 images"
    assert out_of_memory_advice(done, 2, "cuda").endswith(f"in this order: {step}{none}")
    alone = override(done, "data.batch_size=1")
    assert out_of_memory_advice(alone, 2, "cuda").endswith(
        f"in this order: smaller images or a smaller model{none}"
    )
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert explain_error(RuntimeError("mat1 and mat2"), tiny, trainer, RunFiles(folder)) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ema", ["None", "0.9"])
def test_dividing_the_weights_is_advised_where_it_is_accepted(tiny: RunConfig, device: str, ema: str) -> None:
    config = override(tiny, f"engine.ema={ema}")
    devices = [torch.device(device, number) for number in range(2)]
    sharded = FSDPStrategy(parallel_devices=devices, cluster_environment=LightningEnvironment())
    try:
        check_devices(config.engine, cast(pl.Trainer, SimpleNamespace(strategy=sharded, world_size=2)))
        accepted = True
    except RunError:
        accepted = False
    assert accepted == (device == "cuda" and ema == "None")
    assert ("engine.strategy=fsdp" in out_of_memory_advice(config, 2, device)) == accepted
    assert "fsdp" not in out_of_memory_advice(config, 1, device)


@pytest.mark.parametrize("model", ["resnet_digits_conv", "lambda_resnet_digits"])
def test_a_batch_of_one_value_per_channel_names_the_settings(
    tiny: RunConfig, folder: Path, model: str
) -> None:
    one = override(tiny, f"model.name={model}", "data.batch_size=1", "data.image_size=1")
    with pytest.raises(
        ValueError,
        match=r"more than one value per channel, but data\.batch_size=1 and data\.image_size=1 give",
    ):
        train(one, run_dir=folder)
