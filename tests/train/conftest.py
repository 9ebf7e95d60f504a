"""Runs of a few seconds on the digits."""

from dataclasses import replace
from pathlib import Path

import pytest

from lambdanets.recipes import digits, miniature
from lambdanets.train import ModelConfig, RunConfig, RunResult, override
from lambdanets.train.engine import train


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """Three epochs of four batches with drop path and random crops: nothing in it may depend on luck."""
    config = replace(
        digits(), model=ModelConfig(name="lambda_resnet_digits", options={"drop_path_rate": 0.2})
    )
    return override(
        miniature(config),
        "engine.epochs=3",
        "engine.max_batches=4",
        "engine.save_steps=1",
        "data.batch_size=16",
        "optimizer.lr=0.05",
    )


@pytest.fixture(scope="session")
def finished(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The tiny run, never interrupted."""
    return train(tiny, run_dir=tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"
