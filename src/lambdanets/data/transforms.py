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

# Length of the kept middle of a very long image, in units of its shorter side: the middle square and the
# pixels around it that resizing reads.
KEPT = 4
Step = Callable[[Image.Image], Any]  # returns an image; the annotations of the libraries are broader
IN_CACHE = 2**18  # elements normalised at a time: they stay in the CPU's cache between the operations


class Pipeline:
    """The transforms of one split; the augmentation of a sample is drawn from its own key.

    Args:
        config: sizes, normalisation and augmentation.
        train: augment the images; else only resize, crop the middle and normalise.

    Attributes:
        cut: random resized crop, the first step; None if images are resized and cropped in the middle.
        recolor: RandAugment and colour jitter.
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
        self.cut: Step | None = None
        self.recolor: list[Step] = []
        self.erase: RandomErasing | None = None
        self._geometry: Step | None = None
        self._unchanged: tuple[int, int] | None = None
        if train:
            self._add_random_steps(config)
        if self.cut is None:
            side = int(config.image_size / (1.0 if self.pad else config.crop_pct))
            mode = str_to_interp_mode(config.interpolation)
            self._geometry = v2.Compose([v2.Resize(side, mode), v2.CenterCrop(config.image_size)])
            self._unchanged = (side, side) if side == config.image_size else None

    def _add_random_steps(self, config: DataConfig) -> None:
        """Create the random transforms that the configuration asks for."""
        augment = config.augment
        if augment.crop == "random_resized":
            self.cut = RandomResizedCropAndInterpolation(
                config.image_size, augment.scale, augment.ratio, config.interpolation
            )
        if augment.rand_augment is not None:
            fill = tuple(round(255 * value) for value in config.mean or ())
            options = {
                "translate_const": int(config.image_size * 0.45),
                "img_mean": fill if config.in_chans == 3 else fill[0],
                "interpolation": str_to_pil_interp(config.interpolation),
            }
            self.recolor.append(rand_augment_transform(augment.rand_augment, options))
        if augment.color_jitter:
            self.recolor.append(v2.ColorJitter(*[augment.color_jitter] * 3))
        if augment.random_erasing:
            self.erase = RandomErasing(augment.random_erasing, device="cpu")

    @property
    def uniform(self) -> bool:
        """Whether all prepared images have the same size."""
        return self.cut is None

    @property
    def light(self) -> bool:
        """Whether `finish` takes only microseconds for an image."""
        return self.cut is None and not self.recolor and self.erase is None

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Apply the steps that are the same in every epoch, so that their result can be cached.

        Returns:
            uint8 of shape [height, width, channels]: a square of `image_size`, or the whole image if a random
            resized crop is the first step.
        """
        image = as_mode(image, self.in_chans)
        if self._geometry is not None and image.size != self._unchanged:
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
            return self._normalise(self._moved(prepared, sample_keys))
        with preserved():
            if self.cut is not None:
                prepared = [
                    self._through(array, [self.cut], key, RANDOM_CROP)
                    for array, key in zip(prepared, sample_keys, strict=True)
                ]
            moved = self._moved(prepared, sample_keys)
            if self.recolor:
                for index, key in enumerate(sample_keys):
                    moved[index] = self._through(moved[index], self.recolor, key, COLOR)
            batch = self._normalise(moved)
            if self.erase is not None:
                for index, key in enumerate(sample_keys):
                    reseed(key, ERASE)
                    self.erase(batch[index])
            return batch

    def _through(
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

    def _moved(self, prepared: Sequence[np.ndarray] | np.ndarray, sample_keys: np.ndarray) -> np.ndarray:
        """Pad, crop and flip each image by its own draws; return uint8 [b, image_size, image_size, channels].

        Slices are faster here than one gather.
        """
        pad, side = self.pad, self.image_size
        top, left = (
            (uniform(sample_keys, stream) * (2 * pad + 1)).astype(int) for stream in (PAD_TOP, PAD_LEFT)
        )
        flipped = uniform(sample_keys, FLIP) < self.flip
        moved = np.empty((len(prepared), side, side, self.in_chans), np.uint8)
        padded = np.zeros((side + 2 * pad, side + 2 * pad, self.in_chans), np.uint8)
        for index, array in enumerate(prepared):
            if pad:
                padded[pad : pad + side, pad : pad + side] = array
                rows, columns = (slice(start, start + side) for start in (top[index], left[index]))
                array = padded[rows, columns]
            moved[index] = array[:, ::-1] if flipped[index] else array
        return moved

    def _normalise(self, prepared: np.ndarray) -> Tensor:
        """Return uint8 [b, height, width, channels] as normalised float32 [b, channels, height, width]."""
        number, height, width, channels = prepared.shape
        images = torch.empty(number, channels, height, width)
        step = max(1, IN_CACHE // (height * width * channels))
        for start in range(0, number, step):
            part = images[start : start + step]
            part.copy_(torch.from_numpy(prepared[start : start + step]).permute(0, 3, 1, 2))
            part.sub_(self.mean).div_(self.std)
        return images


def _middle(image: Image.Image) -> Image.Image:
    """Crop the ends of a very long image: resized as a whole, a narrow strip would fill the memory."""
    short, long = sorted(image.size)
    if long <= 2 * KEPT * short:
        return image
    kept = KEPT * short + long % 2  # of the same parity as the image, so that the centre stays the same
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
    none = np.zeros(1, np.uint64)

    def transform(image: Image.Image) -> Tensor:
        return pipeline.finish(pipeline.prepare(upright(image))[None], none)[0]

    return transform
