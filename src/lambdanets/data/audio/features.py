"""Features of a recording, and their augmentation in whole batches of different lengths."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..randomness import BAND_MASK, CUT, PITCH, SHIFT, SPEED, TIME_MASK, uniform
from .config import AudioDataConfig

FLOOR_DB = 80.0  # log-mel values further below the loudest of a recording are raised to this
QUIET = 1e-10  # power that counts as silence
LOW_HZ = 20.0  # lower edge of the mel bands


class Features:
    """Computes the features of recordings; a function of the configuration alone.

    Args:
        config: the configuration, with a sample rate.
    """

    def __init__(self, config: AudioDataConfig):
        if config.sample_rate is None:
            raise ValueError("features need a sample rate: use the resolved configuration")
        self.config, self.rate = config, config.sample_rate

    @cached_property
    def hop(self) -> int:
        """Samples between two elements of the features."""
        return max(1, round(self.config.hop * self.rate)) if self.config.features == "log-mel" else 1

    @property
    def window(self) -> int:
        """Samples of a window of the spectrogram."""
        return max(2, round(self.config.window * self.rate))

    @property
    def n_fft(self) -> int:
        """Samples of the Fourier transform, a power of 2."""
        # With fewer than 8 bins for each band, the lowest bands would be narrower than a bin, and empty.
        return 1 << (max(self.window, 8 * self.config.bands) - 1).bit_length()

    @cached_property
    def _mel(self) -> Any:
        from torchaudio.transforms import MelSpectrogram

        return MelSpectrogram(
            self.rate,
            n_fft=self.n_fft,
            win_length=self.window,
            hop_length=self.hop,
            f_min=lowest_frequency(self.rate),
            n_mels=self.config.bands,
            pad_mode="constant",
        )

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the normalised features of one recording.

        Args:
            samples: float32 of shape [n].

        Returns:
            float32 of shape [c, n']: mel bands and windows, or one channel of samples. All zeros for silence.
        """
        if self.config.features == "raw":
            return normalised(samples[None])
        power = self._mel(samples).clamp(min=QUIET)
        decibels = 10 * power.log10()
        return normalised(decibels.clamp(min=decibels.max() - FLOOR_DB))


def lowest_frequency(rate: int) -> float:
    """Return the lower edge of the mel bands in Hz."""
    return min(LOW_HZ, rate / 8)


def normalised(features: Tensor) -> Tensor:
    """Return features with mean 0 and standard deviation 1 over all their elements; zeros for silence."""
    # In float64: the mean of constant features differs from them by rounding, which a division would enlarge.
    exact = features.double()
    centred = exact - exact.mean()
    deviation = centred.square().mean().sqrt()
    if deviation < 1e-6 * (1 + exact.abs().max()):
        return torch.zeros_like(features)
    return (centred / deviation).to(features.dtype)


def middle(features: Tensor, length: int | None) -> Tensor:
    """Return the middle part [c, length] of features [c, n] that are longer."""
    if length is None or features.shape[1] <= length:
        return features
    start = (features.shape[1] - length) // 2
    return features[:, start : start + length]


def pad(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return features [c, n_i] as one batch.

    Returns:
        float32 of shape [b, c, n], padded with zeros at the end, and a mask of shape [b, n], True for the
        elements of a recording.
    """
    lengths = torch.tensor([each.shape[1] for each in features])
    batch = features[0].new_zeros(len(features), features[0].shape[0], int(lengths.max()))
    for row, each in zip(batch, features, strict=True):
        row[:, : each.shape[1]] = each
    return batch, torch.arange(batch.shape[2]) < lengths[:, None]


class Augmentation:
    """Augments batches of training features: a function of the keys of the samples.

    Args:
        config: the configuration, with a sample rate.
    """

    def __init__(self, config: AudioDataConfig):
        self.augment = config.augment
        features = Features(config)
        per_second = features.rate / features.hop
        self.length = part_length(config)
        self.shift = self.augment.shift * per_second
        self.in_bands = config.features == "log-mel"

    def __call__(self, features: list[Tensor], keys: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return an augmented batch and its mask, as `pad` does.

        Args:
            features: float32 of shape [c, n_i] each.
            keys: key of each sample, from `randomness.keys`, of shape [b].
        """
        batch, mask = pad(features)
        own = mask.sum(1)
        speed = self._draw(keys, SPEED, self.augment.speed) + 1
        length = (own / speed).round().long().clamp(min=1)
        start = torch.zeros_like(length)
        if self.length is not None:
            spare = (length - self.length).clamp(min=0)
            start = (torch.from_numpy(uniform(keys, CUT)) * (spare + 1)).long()
            length = length.clamp(max=self.length)
        shift = self._draw(keys, SHIFT, self.shift).round()
        time = torch.arange(int(length.max()))
        if self.length is not None or self.augment.speed or self.shift:
            places = (time + start[:, None] - shift[:, None]) * speed[:, None]
            places = places.clamp(min=0).minimum((own - 1)[:, None].double())
            batch = interpolate(batch, places)
        if self.in_bands and self.augment.pitch:
            bands = torch.arange(batch.shape[1]) + self._draw(keys, PITCH, self.augment.pitch)[:, None]
            batch = interpolate(batch.mT, bands.clamp(0, batch.shape[1] - 1)).mT
        mask = time < length[:, None]
        for number in range(self.augment.masks):
            hidden = self._hidden(keys, TIME_MASK, number, length, time, self.augment.mask_time)
            batch = batch.masked_fill(hidden[:, None], 0)
            if self.in_bands:
                bands = torch.arange(batch.shape[1])
                whole = torch.full_like(length, batch.shape[1])
                hidden = self._hidden(keys, BAND_MASK, number, whole, bands, self.augment.mask_bands)
                batch = batch.masked_fill(hidden[:, :, None], 0)
        return batch.masked_fill(~mask[:, None], 0).contiguous(), mask

    def _draw(self, keys: np.ndarray, stream: int, largest: float) -> Tensor:
        """Return a float64 from -largest to largest for each key, of shape [b]."""
        return torch.from_numpy((2 * uniform(keys, stream) - 1) * largest)

    def _hidden(
        self, keys: np.ndarray, stream: int, number: int, sizes: Tensor, places: Tensor, part: float
    ) -> Tensor:
        """Return a random interval for each sample, up to a part of its size long, as a mask [b, places]."""
        # Streams of further masks are 16 apart, those of width and begin 8.
        width, begin = (uniform(keys, stream + 16 * number + offset) for offset in (16, 24))
        widths = torch.from_numpy(width) * (part * sizes + 1)
        widths = widths.floor()
        begins = (torch.from_numpy(begin) * (sizes - widths + 1)).floor()
        return (places >= begins[:, None]) & (places < (begins + widths)[:, None])


def interpolate(features: Tensor, places: Tensor) -> Tensor:
    """Return features at fractional places of their last axis, by linear interpolation.

    Args:
        features: shape [b, c, n].
        places: float64 of shape [b, m], from 0 to n - 1.

    Returns:
        Shape [b, c, m].
    """
    low = places.floor().long()
    high = (low + 1).clamp(max=features.shape[2] - 1)
    weight = (places - low).to(features.dtype)[:, None]
    shape = (-1, features.shape[1], -1)
    left, right = (features.gather(2, index[:, None].expand(*shape)) for index in (low, high))
    return left + weight * (right - left)


def part_length(config: AudioDataConfig) -> int | None:
    """Return the elements of the longest part of a recording that is used; None without a limit."""
    if config.seconds is None:
        return None
    features = Features(config)
    return max(1, round(config.seconds * features.rate / features.hop))
