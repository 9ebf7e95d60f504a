"""Objects drawn onto an image: masks, boxes and names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from lambdanets.data.coco_masks import Masks, sampled
from lambdanets.train.pages import INK
from lambdanets.utils.fonts import font, legible, text_length, write_text

from .results import INSIDE

# Bright and far apart in hue: they stand out from photos, dark fluorescence and purple stains alike.
COLOURS = (
    *("#ff3b3b", "#19b5fe", "#ffd21f", "#b86bff", "#2ee66b", "#ff8a1f"),
    *("#ff62c0", "#22e0d0", "#a8e61d", "#6f8cff", "#ffa98f", "#d9b3ff"),
)
FILL = 0.4  # of a mask's colour, the rest is the image
MANY = 30  # objects, above which names would hide them
HIDDEN = 0.25  # most of any object that a name may cover
LEAST = 512  # pixels that a drawing is long at least
TINY = 64  # pixels up to which smoothing would hide what the network was given
LONGEST_NAME = 24  # characters
Box = tuple[float, float, float, float]


def draw_objects(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    scores: Tensor | None = None,
    masks: Tensor | Masks | None = None,
    *,
    longest: int | None = None,
) -> Image.Image:
    """Draw objects onto an image.

    With several classes each has its colour, and objects have names; with one class each object has a colour
    of its own, and a name would tell nothing. After twelve the colours repeat. Names and scores stand above,
    below or in their box, where they cover no others and little of any object; where there is no such place,
    on tiny objects and among more than 30 objects they are left out.

    Args:
        image: of any mode; it stays as it is.
        boxes: left, top, right and bottom in its pixels, of shape (n, 4).
        labels: of shape (n,), from 1 on.
        names: of the classes, in the order of the labels.
        scores: of shape (n,), written after the names.
        masks: of shape (n, height, width) or (n, 1, height, width), from 0 to 1: above 0.5 is inside. Or
            `Masks`, which are drawn one by one, and only the pixels that are shown: masks of large images.
        longest: longer side of the drawing in pixels; None keeps the image's, or enlarges a small one by a
            whole factor to 512 or more.

    Returns:
        The drawing, of mode RGB.
    """
    picture = _sized(image.convert("RGB"), longest)
    scale = np.array([picture.width / image.width, picture.height / image.height] * 2)
    corners = boxes.detach().float().cpu().numpy().reshape(-1, 4) * scale
    numbers = labels.tolist()
    keys = [label - 1 for label in numbers] if len(names) > 1 else range(len(numbers))
    colours = [COLOURS[key % len(COLOURS)] for key in keys]
    sides = (corners[:, 2:] - corners[:, :2]).clip(0)
    areas = sides.prod(1)
    # A line must not hide small objects on a large image.
    line = max(1, round(min((picture.width * picture.height) ** 0.5 / 300, _typical(areas) / 12)))
    largest_first = np.argsort(-areas, kind="stable").tolist()
    if masks is not None:
        for index in largest_first:
            _paint(picture, _inside(masks, index, picture.size), colours[index], line)
    draw = ImageDraw.Draw(picture)
    for index in largest_first:
        draw.rectangle(
            _within(corners[index], picture.size),
            outline=colours[index],
            width=line if masks is None else max(1, line // 2),
        )
    if len(numbers) <= MANY:
        known = [None] * len(numbers) if scores is None else scores.tolist()
        called = [names[int(label) - 1] if len(names) > 1 else "" for label in numbers]
        words = [_words(name, value) for name, value in zip(called, known, strict=True)]
        _draw_tags(picture, corners, words, colours)
    return picture


def _typical(areas: np.ndarray) -> float:
    """The side of a square as large as most objects."""
    return float(np.median(areas)) ** 0.5 if len(areas) else math.inf


def _sized(image: Image.Image, longest: int | None) -> Image.Image:
    side = max(image.size)
    factor = -(-LEAST // side) if longest is None else longest / side
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resample = Image.Resampling.NEAREST if side <= TINY else Image.Resampling.LANCZOS
    return image.resize(size, resample) if size != image.size else image.copy()


def _paint(picture: Image.Image, inside: np.ndarray, colour: str, line: int) -> None:
    """Mix a colour into the inside of a mask, and draw its rim, `line` pixels wide, in the colour itself."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        return
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    core = np.pad(inside, line)  # so that there is a rim where the mask is cut off by the edge, too
    for axis in (0, 1):
        core = np.logical_and.reduce([np.roll(core, shift, axis) for shift in range(-line, line + 1)])
    opacity = np.where(core[line:-line, line:-line], round(255 * FILL), 255) * inside
    picture.paste(colour, (int(columns[0]), int(rows[0])), Image.fromarray(opacity.astype(np.uint8)))


def _inside(masks: Tensor | Masks, index: int, size: tuple[int, int]) -> np.ndarray:
    """One of several masks in the size (width, height) of the drawing, as bool of shape (height, width)."""
    if isinstance(masks, Masks):
        # Where the drawing is smaller, only pixels that it shows; else all of them.
        rows, columns = (
            (2 * np.arange(min(shown, side)) + 1) * side // (2 * min(shown, side))
            for shown, side in zip(size[::-1], (masks.height, masks.width), strict=True)
        )
        top, left, part = sampled(masks.segmentations[index], masks.height, masks.width, rows, columns)
        drawn = np.zeros((len(rows), len(columns)), bool)
        drawn[top : top + part.shape[0], left : left + part.shape[1]] = part
    else:
        mask = masks[index]
        drawn = (mask.detach().reshape(mask.shape[-2:]) > INSIDE).cpu().numpy()
    if size == drawn.shape[::-1]:
        return drawn
    tiny = max(drawn.shape) <= TINY
    resample = Image.Resampling.NEAREST if tiny else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(drawn.astype(np.uint8) * 255).resize(size, resample)) > 127


def _within(box: np.ndarray, size: tuple[int, int]) -> Box:
    """The first and last pixels of a box on a drawing of (width, height), at least one each way."""
    limit = np.array([*size]) - 1
    first = np.round(box[:2]).clip(0, limit)
    left, top, right, bottom = (*first, *np.maximum(first, (np.round(box[2:]) - 1).clip(0, limit)))
    return left, top, right, bottom


def _words(name: str, score: float | None) -> str:
    name = legible(" ".join(name.split()))
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"
    return short if score is None else f"{short} {score:.2f}".strip()


def _draw_tags(
    picture: Image.Image, corners: np.ndarray, words: Sequence[str], colours: Sequence[str]
) -> None:
    """Write names on plates of the objects' colours, those of the first objects first."""
    draw = ImageDraw.Draw(picture)
    size = min(max((picture.width * picture.height) ** 0.5 / 36, 12), 36)
    letters = font(size, bold=True)
    height, pad = round(1.4 * size), round(0.3 * size)
    taken: list[Box] = []
    for box, text, colour in zip(corners, words, colours, strict=True):
        if not text or max(box[2:] - box[:2]) < height:
            continue
        width = round(text_length(text, letters)) + 2 * pad
        place = _place((width, height), box, picture.size, taken, corners)
        if place is None:
            continue
        taken.append(place)
        left, top, right, bottom = place
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        ink = INK if ImageColor.getcolor(colour, "L") > 120 else "white"  # pyright: ignore[reportOperatorIssue]
        write_text(draw, (left + pad, top + (height - sum(letters.getmetrics())) / 2), text, ink, letters)


def _place(
    size: tuple[int, int], box: np.ndarray, limit: tuple[int, int], taken: Sequence[Box], corners: np.ndarray
) -> Box | None:
    """Where a plate of (width, height) may stand on a drawing of the size `limit`, or None."""
    width, height = size
    left, top, _, bottom = np.round(box).tolist()
    left = max(0, min(left, limit[0] - width))
    areas = (corners[:, 2:] - corners[:, :2]).clip(0).prod(1)
    for upper in (top - height, bottom, max(0, top)):
        place = (left, upper, left + width, upper + height)
        fits = upper >= 0 and place[2] <= limit[0] and place[3] <= limit[1]
        free = not taken or not _overlap(place, np.array(taken)).any()
        if fits and free and (_overlap(place, corners) <= HIDDEN * areas).all():
            return place
    return None


def _overlap(place: Box, boxes: np.ndarray) -> np.ndarray:
    """Area that a box shares with each of some others, of shape (n,)."""
    first, last = np.maximum(place[:2], boxes[:, :2]), np.minimum(place[2:], boxes[:, 2:])
    return (last - first).clip(0).prod(1)
