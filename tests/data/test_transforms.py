"""The pipeline against plain NumPy, torchvision and timm; every draw is the sample's own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lambdanets.data import AugmentConfig, DataConfig, eval_transform
from lambdanets.data.randomness import keys
from lambdanets.data.transforms import Pipeline

Picture = Callable[..., Image.Image]
HEAVY = [
    {"crop": "random_resized", "flip": 0.5},
    {"crop": "pad", "pad": 2, "flip": 0.5, "rand_augment": "rand-m9-n3-mstd0.5"},
    {"color_jitter": 0.4, "flip": 0.5},
    {"random_erasing": 0.9},
    {"crop": "random_resized", "rand_augment": "rand-m5-inc1", "color_jitter": 0.2, "random_erasing": 0.5},
]


def config(image_size: int = 12, in_chans: int = 3, **augment: Any) -> DataConfig:
    base = DataConfig(source="folder:x", image_size=image_size, in_chans=in_chans)
    return replace(base, augment=AugmentConfig(**augment))


def plain(pixels: np.ndarray, data: DataConfig) -> torch.Tensor:
    resolved = data.resolved()
    scaled = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(value).double().view(-1, 1, 1) for value in (resolved.mean, resolved.std))
    return ((scaled - mean) / std).float()


@pytest.mark.parametrize("size", [(12, 12), (30, 20), (16, 41), (5, 9)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.75])
def test_evaluation_is_torchvisions(size: tuple[int, int], crop_pct: float, picture: Picture) -> None:
    data = replace(config(), crop_pct=crop_pct)
    resolved = data.resolved()
    oracle = transforms.Compose(
        [
            transforms.Resize(int(12 / crop_pct), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(12),
            transforms.ToTensor(),
            transforms.Normalize(resolved.mean, resolved.std),
        ]
    )
    image = picture(0, size)
    torch.testing.assert_close(eval_transform(data)(image), oracle(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 301), (302, 5), (7, 100), (99, 3)])
def test_the_middle_of_a_long_image_is_that_of_the_whole(size: tuple[int, int]) -> None:
    """On a smooth picture, where half a pixel at most may be lost to rounding."""
    ramp = np.linspace(0, 255, max(size)).round().astype(np.uint8)
    pixels = np.tile(ramp[:, None, None], (1, min(size), 3))
    image = Image.fromarray(pixels if size[1] > size[0] else pixels.transpose(1, 0, 2).copy())
    data = replace(config(), crop_pct=0.75)
    whole = transforms.Compose(
        [transforms.Resize(16, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(12)]
    )(image)
    off = (eval_transform(data)(image) - plain(np.asarray(whole), data)).abs().max()
    assert off < 3 / 255 / 0.22


def test_a_very_long_image_needs_little_memory() -> None:
    image = Image.new("RGB", (4, 30_000), "white")
    pipeline = Pipeline(config(224), train=False)
    sizes = []
    geometry = pipeline._geometry
    pipeline._geometry = lambda image: (sizes.append(image.size), geometry(image))[1]
    assert pipeline.prepare(image).shape == (224, 224, 3)
    assert sizes[0][1] <= 64


def test_images_of_the_right_size_keep_their_pixels(picture: Picture) -> None:
    data = config()
    image = picture(3)
    torch.testing.assert_close(eval_transform(data)(image), plain(np.asarray(image), data))


def test_evaluation_takes_any_mode(picture: Picture) -> None:
    grey, rgb = (eval_transform(config(in_chans=chans)) for chans in (1, 3))
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"):
        image = picture(0).convert("L").convert(mode) if mode != "I;16" else Image.new(mode, (12, 12), 9000)
        assert grey(image).shape == (1, 12, 12)
        assert rgb(image).shape == (3, 12, 12)


def test_pad_crop_and_flip_are_shifts_of_the_picture(picture: Picture) -> None:
    data = config(crop="pad", pad=2, flip=0.5)
    pipeline = Pipeline(data, train=True)
    pixels = pipeline.prepare(picture(1))
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    allowed = {}
    for top in range(5):
        for left in range(5):
            cut = padded[top : top + 12, left : left + 12]
            allowed[plain(cut, data).numpy().tobytes()] = (top, left, False)
            allowed[plain(cut[:, ::-1], data).numpy().tobytes()] = (top, left, True)
    seen = [allowed.get(_nearest(image, allowed)) for image in _many(pipeline, pixels, 1000)]
    counts = {case: seen.count(case) for case in allowed.values()}
    assert sum(counts.values()) == 1000
    assert min(counts.values()) >= 4  # 20 expected of each of 50 cases
    assert max(counts.values()) <= 45


def _many(pipeline: Pipeline, pixels: np.ndarray, number: int) -> torch.Tensor:
    return pipeline.finish([pixels] * number, keys(0, 0, np.arange(number)))


def _nearest(image: torch.Tensor, allowed: dict[bytes, Any]) -> bytes:
    for candidate in allowed:
        if np.allclose(np.frombuffer(candidate, np.float32), image.numpy().ravel(), atol=1e-5):
            return candidate
    return b""


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_flip_probability(flip: float, picture: Picture) -> None:
    pipeline = Pipeline(config(flip=flip), train=True)
    pixels = pipeline.prepare(picture(2))
    images = _many(pipeline, pixels, 400)
    upright = Pipeline(config(), train=True).finish([pixels], keys(0, 0, np.arange(1)))[0]
    flipped = sum(torch.equal(image, upright.flip(-1)) for image in images)
    assert flipped + sum(torch.equal(image, upright) for image in images) == 400
    assert flipped / 400 == pytest.approx(flip, abs=0.08)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("augment", [*HEAVY, {"crop": "pad", "pad": 2, "flip": 0.5}])
def test_a_sample_does_not_depend_on_its_batch(
    augment: dict[str, Any], in_chans: int, picture: Picture
) -> None:
    pipeline = Pipeline(config(in_chans=in_chans, **augment), train=True)
    pictures = [pipeline.prepare(picture(number, (14, 13))) for number in range(12)]
    sample_keys = keys(5, 2, np.arange(12))
    whole = pipeline.finish(pictures, sample_keys)
    assert whole.shape == (12, in_chans, 12, 12)
    assert whole.dtype == torch.float32
    for start, stop in [(0, 1), (3, 8), (11, 12)]:
        assert torch.equal(pipeline.finish(pictures[start:stop], sample_keys[start:stop]), whole[start:stop])
    assert not torch.equal(pipeline.finish(pictures, keys(5, 3, np.arange(12))), whole)
    assert not torch.equal(pipeline.finish(pictures, keys(6, 2, np.arange(12))), whole)


@pytest.mark.parametrize("augment", HEAVY)
def test_global_generators_are_left_alone(augment: dict[str, Any], picture: Picture) -> None:
    pipeline = Pipeline(config(**augment), train=True)
    pictures = [pipeline.prepare(picture(number)) for number in range(3)]
    states = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    pipeline.finish(pictures, keys(0, 0, np.arange(3)))
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.mtrand._rand.get_state()[1], states[1])


def test_random_resized_crops_keep_within_scale() -> None:
    """On a ramp, the range of values in the crop tells how much of the width it spans."""
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    image = Image.fromarray(np.stack([ramp] * 3, -1))
    data = config(32, crop="random_resized", scale=(0.25, 0.25), ratio=(1.0, 1.0))
    pipeline = Pipeline(data, train=True)
    images = _many(pipeline, pipeline.prepare(image), 40) * 0.229
    spans = (images[:, 0].amax((1, 2)) - images[:, 0].amin((1, 2))).numpy()
    np.testing.assert_allclose(spans, 0.5, atol=0.04)
    assert len({round(float(value), 3) for value in images[:, 0].mean((1, 2))}) > 10


def test_random_erasing_sets_a_rectangle_to_the_mean(picture: Picture) -> None:
    pipeline = Pipeline(config(random_erasing=1.0), train=True)
    before = Pipeline(config(), train=True)
    pixels = pipeline.prepare(picture(4))
    for image, original in zip(_many(pipeline, pixels, 20), _many(before, pixels, 20), strict=True):
        erased = (image == 0).all(0)
        rows, columns = erased.any(1).nonzero().ravel(), erased.any(0).nonzero().ravel()
        inside = torch.zeros_like(erased)
        inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert torch.equal(inside, erased)
        assert torch.equal(image[:, ~erased], original[:, ~erased])


def test_rand_augment_and_jitter_change_the_picture(picture: Picture) -> None:
    for augment in ({"rand_augment": "rand-m9-n2-p1.0"}, {"color_jitter": 0.5}):
        pipeline = Pipeline(config(**augment), train=True)
        images = _many(pipeline, pipeline.prepare(picture(5)), 10)
        assert len({image.numpy().tobytes() for image in images}) >= 8


def test_evaluation_ignores_the_augmentation(picture: Picture) -> None:
    data = config(**HEAVY[-1])
    image = picture(6, (20, 15))
    assert torch.equal(eval_transform(data)(image), eval_transform(config())(image))
