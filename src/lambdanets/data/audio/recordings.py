"""Reading of recordings: any rate, number of channels and sample format that libsndfile reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import FileKind, open_regular

RECORDINGS = FileKind("recording", (".wav", ".flac", ".ogg"))
PACKAGES = ("soundfile", "torchaudio")


def require_packages() -> None:
    """Check that the packages of the extra `audio` are installed.

    Raises:
        DataError: one is missing; the message has the command that installs it.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise DataError(f"recordings need {' and '.join(missing)}: pip install 'lambdanets[audio]'")


def read_recording(path: str | os.PathLike[str], rate: int, *, max_seconds: float = 3600.0) -> Tensor:
    """Decode a recording, average its channels, and resample it.

    Args:
        path: a .wav, .flac or .ogg file.
        rate: samples per second of the result.
        max_seconds: longest recording to decode.

    Returns:
        float32 samples of shape [n], from -1 to 1 for files of integers.

    Raises:
        DataError: the file cannot be decoded, is cut short, holds no sample, NaN or infinity, or is too long.
    """
    with _opened(path) as file:
        samples = _decode(file, path, max_seconds)
        own_rate = file.samplerate
    mono = torch.from_numpy(np.ascontiguousarray(samples.mean(1)))
    return resample(mono, own_rate, rate)


def resample(samples: Tensor, own_rate: int, rate: int) -> Tensor:
    """Return samples [n] at another rate, by torchaudio's windowed sinc interpolation."""
    if own_rate == rate:
        return samples
    from torchaudio.functional import resample as sinc_resample

    common = gcd(own_rate, rate)
    return sinc_resample(samples, own_rate // common, rate // common)


def sample_rate(path: str | os.PathLike[str]) -> int:
    """Return the samples per second of a file, from its header.

    Raises:
        DataError: the file cannot be opened as a recording.
    """
    with _opened(path) as file:
        return file.samplerate


def duration(path: str | os.PathLike[str]) -> float:
    """Return the length of a recording in seconds, from its header.

    Raises:
        DataError: the file cannot be opened as a recording.
    """
    with _opened(path) as file:
        return file.frames / file.samplerate


def _decode(file: Any, path: str | os.PathLike[str], max_seconds: float) -> np.ndarray:
    """Return the samples of an open file, float32 of shape [n, channels]."""
    frames, rate = file.frames, file.samplerate
    if frames > max_seconds * rate:
        raise DataError(
            f"cannot read {path}: it has {frames / rate:,.0f} seconds, more than data.max_seconds, "
            f"{max_seconds:,.0f}."
        )
    samples = file.read(dtype="float32", always_2d=True)
    if len(samples) < frames:
        raise DataError(f"cannot read {path}: it is cut short, after {len(samples):,} of {frames:,} samples.")
    _check_length(path, file)
    if not len(samples):
        raise DataError(f"cannot read {path}: it has no samples.")
    if not np.isfinite(samples).all():
        raise DataError(f"cannot read {path}: it holds NaN or infinity.")
    return samples


def _check_length(path: str | os.PathLike[str], file: Any) -> None:
    """Refuse a .wav file that is shorter than its header says: libsndfile returns what is there."""
    if file.format not in ("WAV", "WAVEX"):
        return
    with open_regular(path) as content:
        size = os.fstat(content.fileno()).st_size
        content.seek(12)
        while len(header := content.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                held = size - content.tell()
                # Programs that write to a pipe do not know the length and leave its largest value.
                if held < length < 0xFFFFFF00 and length:
                    raise DataError(
                        f"cannot read {path}: it is cut short, after {held:,} of {length:,} bytes of samples."
                    )
                return
            content.seek(length + length % 2, os.SEEK_CUR)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a recording; errors of libsndfile become a DataError that names the file."""
    require_packages()
    import soundfile

    try:
        with open_regular(path) as content:
            if not os.fstat(content.fileno()).st_size:
                raise DataError(f"cannot read {path}: the file is empty.")
            with soundfile.SoundFile(content) as file:  # pyright: ignore[reportArgumentType]
                yield file
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).strip().rstrip(".")
        kind = Path(path).suffix.lower() or "audio"
        raise DataError(f"cannot read {path}: it is no {kind} file that can be read ({reason}).") from error
