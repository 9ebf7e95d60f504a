"""Boxes and masks follow the pixels through scale, crop and flip, and what is lost leaves all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as tool
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from lambdanets.data import CocoConfig, CocoSet, open_coco

WriteCoco = Callable[..., Path]
Entry = Callable[..., dict[str, Any]]
PLACES = [(2, 3, 10, 7), (20, 5, 8, 12), (15, 18, 20, 9)]  # left, top, width, height; apart from one another
SIZE = (40, 32)


@pytest.fixture
def painted(write_coco: WriteCoco, coco_entry: Entry) -> Path:
    """Objects that are painted in a red of their own, (k + 1) * 60, on green; 0 in blue."""
    entries = [coco_entry(k, 1, *place, category=(3, 7, 3)[k]) for k, place in enumerate(PLACES)]
    root = write_coco(train=([SIZE], entries), val=([SIZE], entries))
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[..., 1] = 200
    for k, (left, top, width, height) in enumerate(PLACES):
        pixels[top : top + height, left : left + width, 0] = 60 * (k + 1)
    for side in ("train", "val"):
        Image.fromarray(pixels).save(root / side / "001.png")
    return root


def opened(root: Path, **options: Any) -> tuple[CocoSet, CocoSet]:
    splits = open_coco(CocoConfig(**({"source": f"coco:{root}", "fill": (0, 0, 255)} | options)))
    return splits.train, splits.val


@pytest.mark.parametrize("crop", [True, False])
def test_masks_and_boxes_lie_on_their_objects(painted: Path, crop: bool) -> None:
    train, _ = opened(painted, image_size=40, scale=(1.0, 3.0), crop=crop)
    seen, cut = 0, 0
    for epoch in range(60):
        image, target = train.item(0, epoch)
        if crop:
            assert image.shape == (3, 40, 40)
        assert target["masks"].shape[1:] == image.shape[1:] == target["boxes"].canvas_size
        lengths = {len(target[name]) for name in ("boxes", "labels", "masks", "area", "iscrowd")}
        assert lengths == {len(target["boxes"])}
        for box, mask, label, area in zip(
            *(target[name] for name in ("boxes", "masks", "labels", "area")), strict=True
        ):
            k = [width * height for *_, width, height in PLACES].index(int(area))
            assert label == (1, 2, 1)[k]
            rows, columns = np.nonzero(mask.numpy())
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if min(np.ptp(rows), np.ptp(columns)) >= 8:  # a sliver is all mixed with what is beside it
                assert image[0][mask.bool()].median() == 60 * (k + 1)
            np.testing.assert_allclose(box.numpy(), extent, atol=1)
            seen += 1
            cut += bool(min(extent) == 0 or max(extent) == 40)
    assert seen > 60
    if crop:
        assert 0 < cut < seen
        assert seen < 60 * len(PLACES)


def test_a_flip_turns_everything_over(painted: Path) -> None:
    train, val = opened(painted, image_size=40, crop=False, flip=1.0)
    (image, target), (plain, plain_target) = train[0], val[0]
    assert torch.equal(image, plain.flip(-1))
    assert torch.equal(target["masks"], plain_target["masks"].flip(-1))
    assert target["boxes"].tolist() == [[40 - x - w, y, 40 - x, y + h] for x, y, w, h in PLACES]


def test_padding_has_its_colour_and_no_masks(painted: Path) -> None:
    train, _ = opened(painted, image_size=64, scale=(0.3, 0.5), flip=0.0)
    places = set()
    for epoch in range(20):
        image, target = train.item(0, epoch)
        padded = image[2] == 255
        assert not target["masks"][:, padded].any()
        rows, columns = np.nonzero(~padded.numpy())
        assert 0.3 * 64 - 1 <= columns.max() - columns.min() + 1 <= 0.5 * 64
        assert image[:, padded].unique(dim=1).tolist() == [[0], [0], [255]]
        places.add((rows.min(), columns.min()))
    assert len(places) > 10


def test_what_is_smaller_than_min_area_is_not_learnt(painted: Path) -> None:
    train, _ = opened(painted, image_size=40, crop=False, min_area=90.0)
    assert train[0][1]["area"].tolist() == [96, 180]


def test_the_box_of_a_cut_object_is_that_of_what_is_left(write_coco: WriteCoco, coco_entry: Entry) -> None:
    # an L: a long bar down the left and a short one along the bottom; a crop that misses the left bar leaves
    # only the bottom one, while the cut box would reach to the top
    shape = [0, 0, 4, 0, 4, 36, 40, 36, 40, 40, 0, 40]
    entry = coco_entry(1, 1, 0, 0, 40, 40, segmentation=[shape], area=304)
    root = write_coco(train=([(40, 40)], [entry]), val=([(40, 40)], []))
    train, _ = opened(root, image_size=40, scale=(2.0, 2.0), flip=0.0)
    bottoms = 0
    for epoch in range(60):
        _, target = train.item(0, epoch)
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = np.nonzero(mask.numpy())
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == extent
            bottoms += extent[1] > 0
    assert bottoms > 5


def test_boxes_that_are_not_cut_keep_their_fractions(write_coco: WriteCoco, coco_entry: Entry) -> None:
    entry = coco_entry(1, 1, 8, 8, 10, 10, bbox=[7.75, 7.5, 10.5, 10.75])
    root = write_coco(train=([(32, 32)], [entry]), val=([(32, 32)], []))
    train, _ = opened(root, image_size=64, flip=0.0)
    assert train[0][1]["boxes"].tolist() == [[15.5, 15.0, 36.5, 36.5]]


def test_an_object_whose_mask_vanishes_in_scaling_is_not_learnt(
    write_coco: WriteCoco, coco_entry: Entry
) -> None:
    lines = np.zeros((64, 64), np.uint8)
    lines[5, 5:60] = lines[5:60, 5] = (
        1  # a corner of lines a pixel wide: nothing of it may be left, but its box
    )
    runs = tool.encode(np.asfortranarray(lines))
    segmentation = {"size": [64, 64], "counts": runs["counts"].decode()}
    entry = coco_entry(1, 1, 5, 5, 55, 55, segmentation=segmentation)
    root = write_coco(train=([(64, 64)], [entry]), val=([(64, 64)], []))
    train, _ = opened(root, image_size=64, scale=(0.15, 0.4))
    kept = [train.item(0, epoch)[1]["masks"].flatten(1).sum(1).tolist() for epoch in range(40)]
    assert [] in kept
    assert all(pixels > 0 for each in kept for pixels in each)
    assert any(kept)


@pytest.mark.parametrize("size", [(100, 2), (2, 100)])
def test_a_strip_becomes_no_less_than_a_pixel_wide(write_coco: WriteCoco, size: tuple[int, int]) -> None:
    root = write_coco(train=([size], []), val=([size], []))
    train, _ = opened(root, image_size=20, scale=(0.1, 0.2))
    assert train[0][0].shape == (3, 20, 20)


@pytest.mark.parametrize(("size", "shape"), [((900, 5), (1, 128)), ((5, 900), (128, 1))])
def test_a_strip_is_evaluated_a_pixel_wide(
    write_coco: WriteCoco, coco_entry: Entry, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    entry = coco_entry(1, 1, 0, 0, *size)
    root = write_coco(train=([size], []), val=([size], [entry]))
    image, target = opened(root, image_size=128)[1][0]
    assert image.shape[1:] == target["masks"].shape[1:] == target["boxes"].canvas_size == shape
    assert target["boxes"].tolist() == [[0, 0, shape[1], shape[0]]]
    assert target["masks"].all()


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.77, 1.0, 1.9])
def test_a_mask_pixel_is_that_under_the_middle_of_the_image_pixel(
    write_coco: WriteCoco, coco_entry: Entry, scale: float
) -> None:
    """As torchvision's nearest-exact; plain nearest is half a pixel of the larger grid off."""
    blob = np.random.default_rng(0).random((60, 80)) < 0.5
    runs = tool.encode(np.asfortranarray(blob, np.uint8))
    segmentation = {"size": [60, 80], "counts": runs["counts"].decode()}
    entry = coco_entry(1, 1, 0, 0, 80, 60, segmentation=segmentation)
    root = write_coco(train=([(80, 60)], [entry]), val=([(80, 60)], [entry]))
    side = int(scale * 80)
    size = [int(side * 60 / 80), side]
    exact = InterpolationMode.NEAREST_EXACT
    expected = resize(torch.from_numpy(blob)[None].byte(), size, interpolation=exact)
    train, val = opened(root, image_size=side, crop=False, flip=0.0)
    assert torch.equal(train[0][1]["masks"], expected)
    assert torch.equal(val[0][1]["masks"], expected)


def test_no_more_is_sent_than_the_crop(painted: Path) -> None:
    train, _ = opened(painted, image_size=40, scale=(2.0, 2.0))
    for epoch in range(4):
        image, target = train.item(0, epoch)
        for sent in (image, target["masks"]):
            assert sent.untyped_storage().nbytes() == sent.numel()


def test_evaluation_keeps_the_shape(painted: Path) -> None:
    _, val = opened(painted, image_size=80)
    image, target = val[0]
    assert image.shape == (3, 64, 80)
    assert target["orig_size"] == (32, 40)
    expected = [[2 * v for v in (x, y, x + w, y + h)] for x, y, w, h in PLACES]
    assert target["boxes"].tolist() == expected
    assert target["masks"].flatten(1).sum(1).tolist() == [4 * w * h for *_, w, h in PLACES]
    assert opened(painted, image_size=80, resize=False)[1][0][0].shape == (3, 32, 40)


def same(first: Any, second: Any) -> bool:
    (image, target), (other, other_target) = first, second
    return torch.equal(image, other) and all(
        torch.equal(value, other_target[name])
        if isinstance(value, torch.Tensor)
        else value == other_target[name]
        for name, value in target.items()
    )


def test_a_sample_is_a_function_of_seed_epoch_and_index(painted: Path) -> None:
    train, _ = opened(painted, image_size=40, scale=(0.5, 2.0))
    first = train.item(0, epoch=3, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(train.item(0, epoch=3, seed=5), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(train.item(0, epoch=4, seed=5), first)
    assert not same(train.item(0, epoch=3, seed=6), first)
