"""The configuration of recordings: their source, the features of a model's input, and augmentation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from ..config import GROUP, HoldOut, _check, _is_fraction, is_group

FORM = "audio:PATH"
MAX_RATE = 768_000  # samples per second, the highest rate of audio hardware


@dataclass(frozen=True, kw_only=True)
class AudioAugmentConfig:
    """The augmentation of training recordings; all of it is off by default.

    It acts on features, which are computed once, and in this order: speed, crop (`data.seconds`), shift,
    pitch, masks. There is no random gain: features are normalised by recording, so it would have no effect.

    Args:
        speed: largest change of the speed: 0.1 plays a recording at 0.9 to 1.1 times its speed. Of log-mel
            features the pitch is kept.
        shift: longest shift to an earlier or a later time, in seconds; the first or the last element fills
            the gap.
        pitch: largest shift of the mel bands, in bands, which resembles another voice; for log-mel features.
        masks: number of masks in time, and of masks in frequency for log-mel features, as in SpecAugment.
        mask_time: longest mask in time, as a part of the recording.
        mask_bands: widest mask in frequency, as a part of the bands.
    """

    speed: float = 0.0
    shift: float = 0.0
    pitch: float = 0.0
    masks: int = 0
    mask_time: float = 0.2
    mask_bands: float = 0.2

    def __post_init__(self) -> None:
        valid = _is_fraction(self.speed) and self.speed <= 0.5
        _check(valid, "augment.speed", "a part from 0 to 0.5", self.speed)
        for name in ("shift", "pitch"):
            value = getattr(self, name)
            _check(0 <= value < float("inf"), f"augment.{name}", "0 or more", value)
        _check(
            isinstance(self.masks, int) and 0 <= self.masks <= 100, "augment.masks", "0 to 100", self.masks
        )
        for name in ("mask_time", "mask_bands"):
            value = getattr(self, name)
            _check(_is_fraction(value), f"augment.{name}", "a part from 0 to 1", value)

    @property
    def active(self) -> bool:
        """Whether any augmentation is on."""
        return bool(self.speed or self.shift or self.pitch or self.masks)


@dataclass(frozen=True, kw_only=True)
class AudioDataConfig:
    """The source of labelled recordings, and their form as the input of a model.

    Channels of a recording are averaged, and it is resampled to `sample_rate`. Its features are normalised by
    its own mean and standard deviation, over time and bands, so a recording gives the same input wherever it
    is read; its gain has no effect. Batches are padded with zeros to the longest recording.

    Args:
        source: "audio:PATH": train/ and val/ (or validation/, valid/, test/) with one folder per class, or
            one folder of class folders, which is split; or "audio:FILE.csv", a table of files with the
            columns path and label, and perhaps split and group. Files are .wav, .flac or .ogg.
        features: "log-mel" (the logarithm of a mel spectrogram) or "raw" (samples).
        sample_rate: samples per second of the model's input; None takes the rate of most files.
        bands: number of mel bands.
        window: length of a window of the spectrogram, in seconds.
        hop: distance between two windows, in seconds.
        seconds: longest part of a recording that is used: a random part in training, the middle in
            evaluation. None uses whole recordings.
        batch_size: recordings in a step of one process.
        workers: processes that read recordings; 0 reads in the training process.
        augment: augmentation of the training recordings.
        val_fraction: fraction that is held out of a folder that is not split; 1.0 holds out everything, to
            evaluate.
        hold_out: method of splitting: "exact" holds out `val_fraction` of each class, "stable" assigns each
            file by the hash of its name, so that it keeps its side when others are added.
        group: keep all recordings of a group, such as a speaker, on one side, as in `DataConfig`.
        sampling: recordings of an epoch, "uniform" or "balanced" as in `DataConfig`.
        group_by_length: make training batches of recordings of similar length, which need less padding.
        on_bad_recording: "refuse" to start when a file cannot be used, or "skip" it with a warning.
        max_seconds: longest recording that is read; a longer one is refused before it is decoded.
        check: decode every recording before training starts. Without it (for very many recordings) a bad one
            ends the run when it is read.
        cache: keep the features in memory; "auto" does so if they need less than 1 GiB.
    """

    multi_label: ClassVar[bool] = False  # each recording has one label

    source: str
    features: Literal["log-mel", "raw"] = "log-mel"
    sample_rate: int | None = None
    bands: int = 40
    window: float = 0.025
    hop: float = 0.01
    seconds: float | None = None
    batch_size: int = 64
    workers: int = 0
    augment: AudioAugmentConfig = field(default_factory=AudioAugmentConfig)
    val_fraction: float = 0.1
    hold_out: HoldOut = "exact"
    group: str | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    group_by_length: bool = True
    on_bad_recording: Literal["refuse", "skip"] = "refuse"
    max_seconds: float = 3600.0
    check: bool = True
    cache: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        kind, _, root = str(self.source).partition(":")
        _check(kind == "audio" and bool(root), "data.source", FORM, self.source)
        for name, least in (("bands", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= least, f"data.{name}", f"{least} or more", value)
        rate = self.sample_rate
        _check(rate is None or 1 <= rate <= MAX_RATE, "data.sample_rate", f"1 to {MAX_RATE:,}, or None", rate)
        for name in ("window", "hop", "seconds", "max_seconds"):
            value = getattr(self, name)
            valid = (name == "seconds" and value is None) or (value is not None and 0 < value < float("inf"))
            _check(valid, f"data.{name}", "seconds, more than 0", value)
        _check(self.window >= self.hop, "data.window", f"at least data.hop, {self.hop}", self.window)
        valid = _is_fraction(self.val_fraction) and self.val_fraction > 0
        _check(valid, "data.val_fraction", "above 0 and at most 1", self.val_fraction)
        _check(is_group(self.group), "data.group", GROUP, self.group)
        choices = {
            "features": ("log-mel", "raw"),
            "hold_out": ("exact", "stable"),
            "sampling": ("uniform", "balanced"),
            "on_bad_recording": ("refuse", "skip"),
            "cache": (True, False, "auto"),
        }
        for name, allowed in choices.items():
            expected = f"one of {', '.join(map(str, allowed))}"
            _check(getattr(self, name) in allowed, f"data.{name}", expected, getattr(self, name))

    @property
    def channels(self) -> int:
        """Channels of a model's input: mel bands, or one of samples."""
        return self.bands if self.features == "log-mel" else 1

    @property
    def root(self) -> str:
        """The folder of the source."""
        return self.source.removeprefix("audio:")

    def resolved(self) -> AudioDataConfig:
        """Return the same configuration with an absolute path and an explicit sample rate.

        A run stores this form: other recordings are then resampled to the rate of its own.

        Raises:
            DataError: the rate is not given, and no file of the source can be read.
        """
        source = f"audio:{os.path.abspath(os.path.expanduser(self.root))}"
        if self.sample_rate is not None:
            return replace(self, source=source)
        from .splits import most_frequent_rate

        return replace(self, source=source, sample_rate=most_frequent_rate(self))

    def without_paths(self) -> AudioDataConfig:
        """Return the same configuration without the path of the recordings."""
        return replace(self, source="audio:.")
