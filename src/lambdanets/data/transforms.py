"""From an image to the input tensor of a model: resizing, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import v2

from .config import DataConfig
from .images import as_mode, upright
from .randomness import COLOR, ERASE, FLIP, PAD_LEFT, PAD_TOP, RANDOM_CROP, preserved, reseed, uniform

# Aspect ratio of the middle part of a very long image, which alone is resized: the cropped square, with a
# margin for the filter of the resizing.
MIDDLE_ASPECT = 4
Step = Callable[[Image.Image], Any]  # returns an image; the annotations of the libraries are broader
CHUNK_ELEMENTS = 2**18  # elements normalised at a time, so that they stay in the CPU's cache


class Pipeline:
    """The transforms of one split; the augmentation of a sample is drawn from its own key.

    Args:
        config: sizes, normalisation and augmentation.
        train: augment the images; else only resize, crop the middle and normalise.

    Attributes:
        random_crop: random resized crop, the first step; None if images are resized and centre-cropped.
        color_steps: RandAugment and colour jitter.
        erase: random erasing of normalised images, or None.
        flip: probability of a left-right flip.
        pad: pixels added to each edge before a random crop; 0 without one.
        mean, std: of each channel, on a scale from 0 to 255, of shape [channels, 1, 1].
    """

    def __init__(self, config: DataConfig, *, train: bool):
        config = config.resolved()
        augment = config.augment
        self.in_chans, self.max_pixels = config.in_chans, config.max_pixels
        self.image_size = config.image_size
        self.flip = augment.flip if train else 0.0
        self.pad = augment.pad if train and augment.crop == "pad" else 0
        self.mean = torch.tensor(config.mean).mul_(255).view(-1, 1, 1)
        self.std = torch.tensor(config.std).mul_(255).view(-1, 1, 1)
        self.random_crop: Step | None = None
        self.color_steps: list[Step] = []
        self.erase: RandomErasing | None = None
        self._geometry: Step | None = None
        self._target_size: tuple[int, int] | None = None
        if train:
            self._add_random_steps(config)
        if self.random_crop is None:
            side = int(config.image_size / (1.0 if self.pad else config.crop_pct))
            mode = str_to_interp_mode(config.interpolation)
            self._geometry = v2.Compose([v2.Resize(side, mode), v2.CenterCrop(config.image_size)])
            self._target_size = (side, side) if side == config.image_size else None

    def _add_random_steps(self, config: DataConfig) -> None:
        """Create the random transforms that the configuration asks for."""
        augment = config.augment
        if augment.crop == "random_resized":
            self.random_crop = RandomResizedCropAndInterpolation(
                config.image_size, augment.scale, augment.ratio, config.interpolation
            )
        if augment.rand_augment is not None:
            fill = tuple(round(255 * value) for value in config.mean or ())
            options = {
                "translate_const": int(config.image_size * 0.45),
                "img_mean": fill if config.in_chans == 3 else fill[0],
                "interpolation": str_to_pil_interp(config.interpolation),
            }
            self.color_steps.append(rand_augment_transform(augment.rand_augment, options))
        if augment.color_jitter:
            self.color_steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
        if augment.random_erasing:
            self.erase = RandomErasing(augment.random_erasing, device="cpu")

    @property
    def uniform(self) -> bool:
        """Whether all prepared images have the same size."""
        return self.random_crop is None

    @property
    def light(self) -> bool:
        """Whether `finish` needs no transform of PIL or timm and takes microseconds for an image."""
        return self.random_crop is None and not self.color_steps and self.erase is None

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Apply the steps that are the same in every epoch, so that their result can be cached.

        Returns:
            uint8 of shape [height, width, channels]: a square of `image_size`, or the whole image if a random
            resized crop is the first step.
        """
        image = as_mode(image, self.in_chans)
        if self._geometry is not None and image.size != self._target_size:
            image = self._geometry(_middle(image))
        return np.asarray(image).reshape(image.height, image.width, self.in_chans)

    def finish(self, prepared: Sequence[np.ndarray] | np.ndarray, sample_keys: np.ndarray) -> Tensor:
        """Augment and normalise prepared images.

        Args:
            prepared: b arrays from `prepare`.
            sample_keys: the result of `keys`, uint64 of shape [b]: one for each (seed, epoch, index).

        Returns:
            float32 of shape [b, channels, image_size, image_size].
        """
        if self.light:
            return self._normalise(self._cropped_and_flipped(prepared, sample_keys))
        with preserved():
            if self.random_crop is not None:
                prepared = [
                    self._transformed(array, [self.random_crop], key, RANDOM_CROP)
                    for array, key in zip(prepared, sample_keys, strict=True)
                ]
            cropped = self._cropped_and_flipped(prepared, sample_keys)
            if self.color_steps:
                for index, key in enumerate(sample_keys):
                    cropped[index] = self._transformed(cropped[index], self.color_steps, key, COLOR)
            batch = self._normalise(cropped)
            if self.erase is not None:
                for index, key in enumerate(sample_keys):
                    reseed(key, ERASE)
                    self.erase(batch[index])
            return batch

    def _transformed(
        self,
        array: np.ndarray,
        steps: Sequence[Step],
        key: np.uint64,
        stream: int,
    ) -> np.ndarray:
        """Apply steps to an image [height, width, channels] with the generators seeded by key and stream."""
        reseed(key, stream)
        image = Image.fromarray(array if self.in_chans == 3 else array[..., 0])
        for step in steps:
            image = step(image)
        return np.asarray(image).reshape(image.height, image.width, self.in_chans)

    def _cropped_and_flipped(
        self, prepared: Sequence[np.ndarray] | np.ndarray, sample_keys: np.ndarray
    ) -> np.ndarray:
        """Pad, crop and flip each image by its own draws; return uint8 [b, image_size, image_size, channels].

        A loop over slices is faster here than one indexed gather.
        """
        pad, side = self.pad, self.image_size
        top, left = (
            (uniform(sample_keys, stream) * (2 * pad + 1)).astype(int) for stream in (PAD_TOP, PAD_LEFT)
        )
        flipped = uniform(sample_keys, FLIP) < self.flip
        cropped = np.empty((len(prepared), side, side, self.in_chans), np.uint8)
        padded = np.zeros((side + 2 * pad, side + 2 * pad, self.in_chans), np.uint8)
        for index, array in enumerate(prepared):
            if pad:
                padded[pad : pad + side, pad : pad + side] = array
                rows, columns = (slice(start, start + side) for start in (top[index], left[index]))
                array = padded[rows, columns]
            cropped[index] = array[:, ::-1] if flipped[index] else array
        return cropped

    def _normalise(self, prepared: np.ndarray) -> Tensor:
        """Return uint8 [b, height, width, channels] as normalised float32 [b, channels, height, width]."""
        number, height, width, channels = prepared.shape
        images = torch.empty(number, channels, height, width)
        step = max(1, CHUNK_ELEMENTS // (height * width * channels))
        for start in range(0, number, step):
            part = images[start : start + step]
            part.copy_(torch.from_numpy(prepared[start : start + step]).permute(0, 3, 1, 2))
            part.sub_(self.mean).div_(self.std)
        return images


def _middle(image: Image.Image) -> Image.Image:
    """Crop the ends of a very long image: resized as a whole, a narrow strip would fill the memory."""
    short, long = sorted(image.size)
    if long <= 2 * MIDDLE_ASPECT * short:
        return image
    # Of the same parity as the image, so that the centre stays the same.
    kept = MIDDLE_ASPECT * short + long % 2
    start = (long - kept) // 2
    if image.width > image.height:
        return image.crop((start, 0, start + kept, short))
    return image.crop((0, start, short, start + kept))


def eval_transform(config: DataConfig) -> Callable[[Image.Image], Tensor]:
    """Return the transform of evaluation, from any PIL image to the input of a model.

    The shorter side is resized to `image_size / crop_pct` unless it has that size already, the middle is
    cropped, and the channels are normalised.

    Returns:
        A function from an image to float32 of shape [channels, image_size, image_size].
    """
    pipeline = Pipeline(config, train=False)
    unused_key = np.zeros(1, np.uint64)  # nothing is random without augmentation

    def transform(image: Image.Image) -> Tensor:
        return pipeline.finish(pipeline.prepare(upright(image))[None], unused_key)[0]

    return transform
