"""Less memory: activations that are computed again, and what a person is told who has too little."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lambdanets.train import NoMemoryError, RunConfig, RunError, override
from lambdanets.train.engine import build_module, spare_activations, train
from lambdanets.train.layout import RunFiles
from lambdanets.train.module import Classifier
from lambdanets.train.trouble import spare_memory, tell
from runs import assert_same_end


def test_activations_that_are_computed_again_change_no_bit_of_a_run(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped paths come again as they were, and batch norms count every batch once."""
    config = override(tiny, "engine.epochs=2", "engine.ema=0.9", "model.options.drop_rate=0.1")
    train(config, run_dir=tmp_path / "usual")
    passes: list[bool] = []
    module = build_module(override(config, "engine.checkpointing=true"), 10)
    inner: Any = module.network.get_submodule("layer2")[0]
    inner.register_forward_pre_hook(lambda *_: passes.append(True))
    module.network(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert len(passes) == 2  # forward, and again in the backward pass
    train(override(config, "engine.checkpointing=true"), run_dir=tmp_path / "again")
    assert_same_end(tmp_path / "usual", tmp_path / "again")


def test_a_network_that_cannot_is_named(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lambdanets.train.engine.build_network", lambda *args, **options: torch.nn.Linear(2, 2)
    )
    with pytest.raises(RunError, match=r"engine\.checkpointing: lambda_resnet_digits cannot compute"):
        train(override(tiny, "engine.checkpointing=true"), run_dir=folder)
    assert not folder.exists()
    with torch.device("meta"):
        timms = timm.create_model("dla34")
    with pytest.raises(RunError, match="dla34 cannot compute"):
        spare_activations(timms, "dla34")


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
    means = ["data.batch_size=8 with engine.global_batch=16", "engine.precision=bf16-mixed"]
    means += ["engine.checkpointing=true"]
    assert [said.index(means) for means in means] == sorted(said.index(means) for means in means)
    assert "fsdp" not in said


def test_advice_leaves_out_what_is_done_already(tiny: RunConfig, folder: Path) -> None:
    assert "engine.strategy=fsdp" in spare_memory(tiny, 2)
    assert "data.batch_size=8 with engine.global_batch=64, which" in spare_memory(
        override(tiny, "engine.global_batch=64"), 2
    )
    done = override(tiny, "engine.precision=bf16-mixed", "engine.checkpointing=true", "engine.strategy=fsdp")
    step = "data.batch_size=8 with engine.global_batch=32, which accumulates to the same step"
    assert spare_memory(done, 2).endswith(f"in this order: {step}")
    assert spare_memory(override(done, "data.batch_size=1"), 2).endswith("smaller images or a smaller model")
    assert spare_memory(override(done, "data.batch_size=15"), 1).endswith(
        "try, in this order: data.batch_size=7"
    )
    assert tell(RuntimeError("mat1 and mat2"), tiny, 2, RunFiles(folder)) is None
