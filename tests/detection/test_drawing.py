"""Drawn objects, judged by their pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from lambdanets.detection import draw_objects
from lambdanets.detection.drawing import COLOURS, MASK_OPACITY, MIN_LENGTH

FEW = ["cat", "dog", "fish"]
GREY = (90, 90, 90)


def draw(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    names: Sequence[str] = FEW,
    **options: Any,
) -> np.ndarray:
    numbers = torch.tensor(labels or [1] * len(boxes), dtype=torch.int64)
    drawn = draw_objects(image, torch.tensor(boxes).float().reshape(-1, 4), numbers, names, **options)
    assert drawn.mode == "RGB"
    return np.asarray(drawn).astype(int)


def blank(width: int = 600, height: int = 600) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def where(drawn: np.ndarray, colour: str | tuple[int, ...]) -> np.ndarray:
    return (drawn == (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)).all(-1)


def disc(size: int, left: int, top: int, diameter: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = diameter / 2
    return (x + 0.5 - left - radius) ** 2 + (y + 0.5 - top - radius) ** 2 <= radius**2


def test_a_mask_is_filled_where_it_is_and_nowhere_else() -> None:
    mask = disc(600, 200, 300, 120)
    drawn = draw(blank(), [[200, 300, 320, 420]], masks=mask[None])
    outline = where(drawn, COLOURS[0])
    mixed = (1 - MASK_OPACITY) * np.array(GREY) + MASK_OPACITY * np.array(ImageColor.getrgb(COLOURS[0]))
    fill = where(drawn, tuple(mixed.round().astype(int)))
    box = np.zeros((600, 600), bool)
    box[300:420, 200:320] = True
    tag = np.zeros((600, 600), bool)
    tag[260:300] = True
    inside = mask.numpy()
    assert (inside <= (outline | fill)).all()
    assert not (fill & ~inside).any()
    rim = box.copy()
    rim[302:418, 202:318] = False
    assert not (outline & ~inside & ~rim & ~tag).any()
    assert (where(drawn, GREY) | inside | rim | tag).all()
    # The rim of the mask is one line, all around.
    assert fill[360, 205:315].all()
    assert outline[[360, 360, 418], [201, 318, 260]].all()


def test_a_mask_at_the_edge_has_a_rim_there() -> None:
    mask = torch.zeros(1, 1, 600, 600)
    mask[..., 100:500, :300] = 0.8
    drawn = draw(blank(), [[0, 100, 300, 500]], masks=mask)
    assert where(drawn, COLOURS[0])[120:480, 0].all()
    assert not where(drawn, COLOURS[0])[200:400, 20:280].any()


@pytest.mark.parametrize("form", ["bool", "uint8", "float32", "four axes"])
def test_masks_come_in_several_forms(form: str) -> None:
    mask = disc(600, 200, 300, 120)[None]
    expected = draw(blank(), [[200, 300, 320, 420]], masks=mask)
    masks = mask[:, None].float() * 0.6 if form == "four axes" else mask.to(getattr(torch, form))
    np.testing.assert_array_equal(draw(blank(), [[200, 300, 320, 420]], masks=masks), expected)


def test_a_box_is_a_thin_line_around_its_pixels() -> None:
    drawn = draw(blank(), [[100, 50, 400, 350]], [2])
    line = where(drawn, COLOURS[1])
    rows, columns = np.nonzero(line[50:])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 299, 100, 399)
    assert line[[50, 349], 100:400].all()
    assert line[50:350, [100, 399]].all()
    assert not line[60:340, 110:390].any()


def test_one_class_has_a_colour_for_each_object_and_several_for_each_class() -> None:
    boxes = [[10, 200, 110, 400], [200, 200, 300, 400], [400, 200, 500, 400]]
    alone = draw(blank(), boxes, [1, 1, 1], ["nucleus"])
    assert [bool(where(alone, colour).any()) for colour in COLOURS[:4]] == [True, True, True, False]
    classes = draw(blank(), boxes, [3, 1, 3])
    assert [bool(where(classes, colour).any()) for colour in COLOURS[:4]] == [True, False, True, False]


def test_small_objects_are_drawn_over_large_ones() -> None:
    masks = torch.zeros(2, 600, 600)
    masks[0, 250:350, 250:350] = masks[1, 100:500, 100:500] = 1
    drawn = draw(blank(), [[250, 250, 350, 350], [100, 100, 500, 500]], [1, 2], masks=masks)
    assert where(drawn, COLOURS[0])[250, 250:350].all()


@pytest.mark.parametrize("corner", [(0, 0), (520, 0), (0, 520), (520, 520), (260, 260)])
def test_names_stay_inside_the_image(corner: tuple[int, int]) -> None:
    """Letters that were cut off would be missing: as many dark pixels stand on the plate anywhere."""
    left, top = corner
    box = [[left, top, left + 80, top + 80]]
    drawn = draw(blank(), box, [3], scores=torch.tensor([0.5]))
    free = draw(blank(), [[260, 260, 340, 340]], [3], scores=torch.tensor([0.5]))
    ink = [(each.sum(-1) < 150).sum() for each in (drawn, free)]
    assert ink[0] == ink[1] > 20


def plates(drawn: np.ndarray) -> bool:
    """Whether there are letters: near-black or white pixels, which nothing else here has."""
    return bool((drawn.sum(-1) < 150).any() or (drawn.sum(-1) > 740).any())


def test_names_are_left_out_where_they_would_hide_objects() -> None:
    boxes = [[x, y, x + 60, y + 60] for x in range(0, 600, 100) for y in range(0, 600, 100)]
    assert plates(draw(blank(), boxes[:30]))
    assert not plates(draw(blank(), boxes[:31]))
    assert not plates(draw(blank(), [[300, 300, 309, 309]]))
    # There is no room but on the objects themselves, which are as small as the names.
    crowded = [[0, 0, 60, 12], [0, 12, 60, 24]]
    assert not plates(draw(blank(600, 24), crowded))


def test_a_name_that_all_objects_have_is_left_out() -> None:
    box = [[200, 200, 400, 400]]
    assert not plates(draw(blank(), box, names=["nucleus"]))
    long, short = (draw(blank(), box, names=names, scores=torch.tensor([0.5])) for names in (FEW, ["cat"]))
    assert plates(short)
    assert where(short, COLOURS[0]).sum() < where(long, COLOURS[0]).sum()


def test_names_do_not_cover_one_another() -> None:
    same = [[200, 200, 400, 400]] * 3
    drawn = draw(blank(), same, [1, 2, 3])
    plate = [int(where(drawn, colour).sum()) for colour in COLOURS[:3]]
    alone = [int(where(draw(blank(), same[:1], [label]), COLOURS[label - 1]).sum()) for label in (1, 2, 3)]
    assert all(count > 0.3 * most for count, most in zip(plate, alone, strict=True))


@pytest.mark.parametrize("size", [(600, 600), (1, 1), (4000, 300), (3, 700), (40, 30)])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_any_number_of_objects_is_drawn_on_any_image(size: tuple[int, int], count: int) -> None:
    width, height = size
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
    masks = torch.rand(count, 1, height, width, generator=generator) if width * height < 1e5 else None
    drawn = draw(
        blank(*size),
        corners.reshape(count, 4).tolist(),
        scores=torch.rand(count, generator=generator),
        masks=masks,
    )
    assert drawn.shape[0] * width == pytest.approx(drawn.shape[1] * height, rel=0.01)
    assert max(drawn.shape) >= MIN_LENGTH
    assert drawn.shape[:2] == (height, width) or max(size) < MIN_LENGTH
    assert where(drawn, GREY).all() == (count == 0)


def test_small_images_are_enlarged_without_smoothing() -> None:
    board = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    mask = torch.tensor([[[1, 0], [0, 0]]])
    drawn = draw(board, [[0, 0, 1, 1]], masks=mask)
    half = drawn.shape[0] // 2
    assert drawn.shape == (MIN_LENGTH, MIN_LENGTH, 3)
    assert where(drawn, (255, 255, 255))[:half, half:].all()
    assert not where(drawn, (0, 0, 0))[:half, :half].any()
    assert where(drawn, (0, 0, 0))[half:, half:].all()


def test_a_drawing_has_the_size_that_is_asked_for() -> None:
    mask = disc(600, 200, 300, 120)[None]
    drawn = draw(blank(), [[200, 300, 320, 420]], masks=mask, longest=300)
    assert drawn.shape == (300, 300, 3)
    rows, columns = np.nonzero(~where(drawn, GREY)[150:])
    assert (rows.max(), columns.min(), columns.max()) == (59, 100, 159)


def test_boxes_outside_the_image_or_without_area_are_drawn_at_its_edge() -> None:
    drawn = draw(blank(), [[-50, -20, 0, 900], [590, 10, 800, 10], [300, 300, 300, 300]])
    assert where(drawn, COLOURS[0])[:, 0].all()


def test_names_may_be_of_any_script_and_length() -> None:
    names = ["щенок\nщит", "猫", "x" * 500, "é" * 30, ""]
    boxes = [[20, 100 * n + 60, 400, 100 * n + 110] for n in range(5)]
    drawn = draw(blank(), boxes, [1, 2, 3, 4, 5], names)
    assert all(where(drawn, colour).any() for colour in COLOURS[:5])


def test_the_image_stays_as_it_is() -> None:
    image = Image.new("L", (600, 600), 90)
    draw(image, [[200, 300, 320, 420]], masks=disc(600, 200, 300, 120)[None])
    assert image.getextrema() == (90, 90)
