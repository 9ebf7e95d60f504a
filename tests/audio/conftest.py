"""A small run of classification of recordings, trained once."""

from pathlib import Path

import pytest

from lambdanets.audio import AudioConfig, train
from lambdanets.data import AudioAugmentConfig, AudioDataConfig
from lambdanets.train import EngineConfig, ModelConfig, OptimizerConfig, RunResult, ScheduleConfig
from sound_sets import write_tones


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"), train=12, val=4)


@pytest.fixture(scope="session")
def tiny(tones: Path) -> AudioConfig:
    return AudioConfig(
        recipe="audio",
        model=ModelConfig(
            name="lambda_audio", options={"widths": [8, 16], "depths": [1, 1], "strides": [1, 2]}
        ),
        data=AudioDataConfig(
            source=f"audio:{tones}",
            bands=20,
            batch_size=8,
            augment=AudioAugmentConfig(speed=0.1, shift=0.02, masks=1),
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=1),
        engine=EngineConfig(epochs=4, threads=1),
    )


@pytest.fixture(scope="session")
def finished(tiny: AudioConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(tiny, run_dir=tmp_path_factory.mktemp("audio") / "run")
