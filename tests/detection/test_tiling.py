"""Objects found in overlapping tiles are those of the whole image: each once, and in one piece."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lambdanets.data import CocoConfig
from lambdanets.data.coco.components import bounding_boxes, label_parts
from lambdanets.data.coco.masks import Masks, rasterise
from lambdanets.detection.masks import Objects, encode_mask
from lambdanets.detection.tiling import Tile, TrainingSizes, WholeImage, detect_in_tiles, tiles
from lambdanets.train import RunError

SIDE = 96


def connected(*, masks: bool = True) -> Callable[[Tensor, Tile], Objects]:
    """A detector of the connected regions in a tile; the label of a region is its grey value."""

    def detect(image: Tensor, tile: Tile) -> Objects:
        height, width = image.shape[-2:]
        part = WholeImage(image).region(*tile.edges)[0]
        numbers, count = label_parts(part.numpy() > 0)
        boxes, labels, encoded = [], [], []
        for number, (rows, columns) in enumerate(bounding_boxes(numbers, count), start=1):
            inside = numbers[rows, columns] == number
            top, left = tile.top + rows.start, tile.left + columns.start
            boxes.append([left, top, tile.left + columns.stop, tile.top + rows.stop])
            labels.append(int(part[rows, columns][torch.from_numpy(inside)][0]))
            encoded.append(encode_mask(inside, top, left, height, width))
        found: Objects = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.linspace(1, 0.5, len(boxes)),
        }
        return found | ({"masks": Masks(encoded, height, width)} if masks else {})

    return detect


def in_tiles(detect: Callable[[Tensor, Tile], Objects], image: Tensor) -> tuple[Objects, int]:
    return detect_in_tiles(partial(detect, image), WholeImage(image).size, SIDE)


def scattered(seed: int, largest: int) -> Tensor:
    """Rectangles of two classes that do not touch, on an image of random size."""
    draw = np.random.default_rng(seed)
    image = np.zeros(draw.integers(100, 500, 2), np.uint8)
    for _ in range(400):
        height, width = np.exp(draw.uniform(np.log(3), np.log(largest), 2)).astype(int)
        top, left = (int(draw.integers(0, length)) for length in image.shape)
        if not image[max(0, top - 3) : top + height + 3, max(0, left - 3) : left + width + 3].any():
            image[top : top + height, left : left + width] = draw.integers(1, 3)
    return torch.from_numpy(image)[None].expand(3, -1, -1)


def listed(found: Objects) -> list[tuple[object, ...]]:
    rows = zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True)
    runs = [each["counts"] for each in found["masks"].segmentations] if "masks" in found else None
    return sorted((label, *box, runs[n] if runs else "") for n, (label, box) in enumerate(rows))


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("largest", [SIDE // 5, 2 * SIDE])  # smaller than the overlap; larger than a tile
@pytest.mark.parametrize("seed", range(4))
def test_objects_are_those_of_the_whole_image(seed: int, largest: int, masks: bool) -> None:
    image, detect = scattered(seed, largest), connected(masks=masks)
    found, number = in_tiles(detect, image)
    assert number == len(tiles(*WholeImage(image).size, SIDE)) > 1
    assert listed(found) == listed(detect(image, Tile(0, 0, *image.shape[1:])))
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def test_copies_of_a_tile_hold_as_many_copies_of_its_objects() -> None:
    one = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    for number in range(16):
        top, left = 4 + number // 4 * 24, 4 + number % 4 * 24
        one[:, top : top + 10, left : left + 5 + number] = 1
    image = one.repeat(1, 5, 7)
    found, _ = in_tiles(connected(), image)
    assert len(found["boxes"]) == 35 * 16
    masks = found["masks"]
    drawn = rasterise(masks.segmentations, masks.height, masks.width)
    np.testing.assert_array_equal(drawn.sum(0), one[0].repeat(5, 7))


def test_an_image_without_objects() -> None:
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    found, number = in_tiles(connected(), image)
    assert number == 16
    assert [len(found[name]) for name in ("boxes", "labels", "scores", "masks")] == [0] * 4


def test_a_part_of_another_class_gives_way_to_the_whole_object() -> None:
    whole = connected()

    def detect(image: Tensor, tile: Tile) -> Objects:
        found = whole(image, tile)
        narrow = found["boxes"][:, 2] - found["boxes"][:, 0] < 20
        return found | {"labels": torch.where(narrow, 2, 1)}

    image = torch.zeros(3, SIDE, 2 * SIDE, dtype=torch.uint8)
    edge = tiles(SIDE, 2 * SIDE, SIDE)[0].right
    image[:, 40:50, edge - 5 : edge + 20] = 1  # 5 pixels of it are in the first tile
    found, _ = in_tiles(detect, image)
    assert found["labels"].tolist() == [1]


@pytest.mark.parametrize("size", [(100, 100), (97, 500), (500, 96), (50, 300), (240, 241)])
def test_tiles_cover_an_image_and_overlap(size: tuple[int, int]) -> None:
    own = tiles(*size, SIDE)
    seen = np.zeros(size, int)
    for tile in own:
        assert (tile.bottom - tile.top, tile.right - tile.left) == (min(SIDE, size[0]), min(SIDE, size[1]))
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert seen.all()
    below = [next((t for t in own if t.left == tile.left and t.top > tile.top), None) for tile in own]
    assert all(
        each is None or tile.bottom - each.top >= SIDE // 4 for tile, each in zip(own, below, strict=True)
    )
    assert own[0].intersection(Tile(0, 0, 5, 7)) == Tile(0, 0, 5, 7)
    assert own[0].intersection(Tile(SIDE, 0, SIDE + 5, 7)) is None


@pytest.mark.parametrize("text", ["", "[]", '{"median": 5}', '{"median": 1e400, "large": 5}', "[" * 10**5])
def test_sizes_that_a_run_has_written(tmp_path: Path, text: str) -> None:
    config, path = CocoConfig(source="coco:x", image_size=256), tmp_path / "image_sizes.json"
    assert TrainingSizes.read(path, config) == TrainingSizes(median=256, large=256)
    TrainingSizes(median=300, large=400).write(path)
    assert TrainingSizes.read(path, config) == TrainingSizes(median=300, large=400)
    path.write_text(text)
    with pytest.raises(RunError, match=r"image_sizes\.json is damaged, .* to take data\.image_size=256"):
        TrainingSizes.read(path, config)


def test_only_images_that_would_be_shrunk_far_more_than_in_training_are_tiled() -> None:
    sizes = TrainingSizes.of(np.array([(200, 256)] * 18 + [(360, 300), (3000, 20)]))
    assert sizes == TrainingSizes(median=256, large=360)
    config = CocoConfig(source="coco:x", image_size=256, scale=(0.8, 1.5))
    sides = {width: sizes.tile((100, width), config, "auto") for width in (256, 360, 675, 676, 1920)}
    assert sides == {256: None, 360: None, 675: None, 676: 256, 1920: 256}
    assert sizes.tile((1280, 1920), config, "off") is None
    assert [sizes.tile((200, 300), config, side) for side in (299, 300)] == [299, None]
    photos = CocoConfig(source="coco:x", scale=(0.1, 2.0))  # an object may be a tenth as large
    assert sizes.tile((3000, 4000), photos, "auto") is None
    assert sizes.tile((1280, 1920), CocoConfig(source="coco:x", resize=False), "auto") is None
