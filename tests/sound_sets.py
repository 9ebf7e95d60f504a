"""Folders of short recordings that tests write: tones whose pitch is the class, of several lengths."""

from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip(
    "soundfile", reason="soundfile, which writes the recordings, is not installed"
)
pytest.importorskip("torchaudio", reason="torchaudio, which computes the features, is not installed")

RATE = 4000
PITCHES = {"low": 200.0, "middle": 500.0, "high": 1100.0}


def tone(pitch: float, seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A tone with noise, float64 [n]."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * generator.normal(size=len(time))


def write_tones(folder: Path, *, train: int = 6, val: int = 3, classes: int = 3) -> Path:
    """Write train/ and val/ with a folder per class; recordings last 0.1 to 0.4 seconds."""
    for side, count in (("train", train), ("val", val)):
        for number, (name, pitch) in enumerate(list(PITCHES.items())[:classes]):
            target = folder / side / name
            target.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * number + 10 * index + (side == "val")
                seconds = 0.1 + 0.3 * (seed * 7919 % 97) / 97
                samples = tone(pitch * (1 + 0.02 * index), seconds, seed=seed)
                soundfile.write(target / f"{index}.wav", samples, RATE)
    return folder
