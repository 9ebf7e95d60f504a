"""Objects drawn onto an image: masks, boxes and class names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from lambdanets.data.coco.masks import Masks, rasterise_at
from lambdanets.detection.masks import MASK_THRESHOLD
from lambdanets.utils.fonts import font, legible, text_length, write_text
from lambdanets.viz.pages import INK

# Bright and of distinct hues: visible on photos, dark fluorescence and purple stains.
COLOURS = (
    *("#ff3b3b", "#19b5fe", "#ffd21f", "#b86bff", "#2ee66b", "#ff8a1f"),
    *("#ff62c0", "#22e0d0", "#a8e61d", "#6f8cff", "#ffa98f", "#d9b3ff"),
)
# Opacity of the colour inside a mask.
MASK_OPACITY = 0.4
# With more objects, names would hide them and are left out.
MAX_NAMED_OBJECTS = 30
# Largest fraction of any object that a name may cover.
MAX_COVERED = 0.25
# Least longer side of a drawing, in pixels.
MIN_LENGTH = 512
# Images up to this length are enlarged without smoothing, to show the network's input.
MAX_UNSMOOTHED_LENGTH = 64
MAX_NAME_LENGTH = 24
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

    With several classes, each class has a colour and objects have names; with one class, each object has its
    own colour and no name. The twelve colours repeat. Names and scores are written above, below or in the
    box, where they cover no other name and little of any object; they are left out where there is no such
    position, on tiny objects and among more than 30 objects.

    Args:
        image: Of any mode; it is not changed.
        boxes: Left, top, right and bottom in pixels of the image [n, 4].
        labels: Labels [n], from 1.
        names: Names of the classes, in the order of the labels.
        scores: Scores [n], written after the names.
        masks: Masks [n, height, width] or [n, 1, height, width] in [0, 1], where values above 0.5 are inside;
            or `Masks`, which are decoded one by one, and only the pixels shown, to draw large images.
        longest: Longer side of the drawing in pixels; None keeps that of the image, or enlarges a small image
            by an integer factor to 512 or more.

    Returns:
        The drawing, of mode RGB.
    """
    picture = _resized(image.convert("RGB"), longest)
    scale = np.array([picture.width / image.width, picture.height / image.height] * 2)
    corners = boxes.detach().float().cpu().numpy().reshape(-1, 4) * scale
    numbers = labels.tolist()
    keys = [label - 1 for label in numbers] if len(names) > 1 else range(len(numbers))
    colours = [COLOURS[key % len(COLOURS)] for key in keys]
    sides = (corners[:, 2:] - corners[:, :2]).clip(0)
    areas = sides.prod(1)
    # Thin enough not to hide small objects on a large image.
    line = max(1, round(min((picture.width * picture.height) ** 0.5 / 300, _typical_side(areas) / 12)))
    largest_first = np.argsort(-areas, kind="stable").tolist()
    if masks is not None:
        for index in largest_first:
            _draw_mask(picture, *_mask_part(masks, index, picture.size), colours[index], line)
    draw = ImageDraw.Draw(picture)
    for index in largest_first:
        draw.rectangle(
            _pixel_box(corners[index], picture.size),
            outline=colours[index],
            width=line if masks is None else max(1, line // 2),
        )
    if len(numbers) <= MAX_NAMED_OBJECTS:
        values = [None] * len(numbers) if scores is None else scores.tolist()
        shown = [names[int(label) - 1] if len(names) > 1 else "" for label in numbers]
        texts = [_tag_text(name, value) for name, value in zip(shown, values, strict=True)]
        _draw_tags(picture, corners, texts, colours)
    return picture


def _typical_side(areas: np.ndarray) -> float:
    """Return the side of a square with the median area."""
    return float(np.median(areas)) ** 0.5 if len(areas) else math.inf


def _resized(image: Image.Image, longest: int | None) -> Image.Image:
    side = max(image.size)
    factor = -(-MIN_LENGTH // side) if longest is None else longest / side
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resample = Image.Resampling.NEAREST if side <= MAX_UNSMOOTHED_LENGTH else Image.Resampling.LANCZOS
    return image.resize(size, resample) if size != image.size else image.copy()


def _draw_mask(picture: Image.Image, top: int, left: int, inside: np.ndarray, colour: str, line: int) -> None:
    """Blend a colour into a mask and draw its outline, `line` pixels wide, opaque.

    Args:
        picture: The drawing.
        top: First row of the mask's part in the drawing.
        left: First column.
        inside: Pixels of this part, bool [h, w]; the mask is zero elsewhere.
        colour: Colour of the object.
        line: Width of the outline.
    """
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        return
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Padded, so that a mask cut off by the edge of the image has an outline there, too.
    core = np.pad(inside, line)
    for axis in (0, 1):
        core = np.logical_and.reduce([np.roll(core, shift, axis) for shift in range(-line, line + 1)])
    opacity = np.where(core[line:-line, line:-line], round(255 * MASK_OPACITY), 255) * inside
    corner = left + int(columns[0]), top + int(rows[0])
    picture.paste(colour, corner, Image.fromarray(opacity.astype(np.uint8)))


def _mask_part(masks: Tensor | Masks, index: int, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Return the first row and column of a part of the drawing of (width, height), and the mask in it."""
    if isinstance(masks, Masks):
        # Of a mask larger than the drawing, only the pixels shown are decoded.
        rows, columns = (
            (2 * np.arange(min(shown, side)) + 1) * side // (2 * min(shown, side))
            for shown, side in zip(size[::-1], (masks.height, masks.width), strict=True)
        )
        top, left, part = rasterise_at(masks.segmentations[index], masks.height, masks.width, rows, columns)
        if size == (len(columns), len(rows)):
            return top, left, part > 0
        pixels = np.zeros((len(rows), len(columns)), bool)
        pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
    else:
        mask = masks[index]
        pixels = (mask.detach().reshape(mask.shape[-2:]) > MASK_THRESHOLD).cpu().numpy()
    if size == pixels.shape[::-1]:
        return 0, 0, pixels
    tiny = max(pixels.shape) <= MAX_UNSMOOTHED_LENGTH
    resample = Image.Resampling.NEAREST if tiny else Image.Resampling.BILINEAR
    return 0, 0, np.asarray(Image.fromarray(pixels.astype(np.uint8) * 255).resize(size, resample)) > 127


def _pixel_box(box: np.ndarray, size: tuple[int, int]) -> Box:
    """Return the first and last pixels of a box on a drawing of (width, height), at least one per axis."""
    limit = np.array([*size]) - 1
    first = np.round(box[:2]).clip(0, limit)
    left, top, right, bottom = (*first, *np.maximum(first, (np.round(box[2:]) - 1).clip(0, limit)))
    return left, top, right, bottom


def _tag_text(name: str, score: float | None) -> str:
    name = legible(" ".join(name.split()))
    short = name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1].rstrip() + "…"
    return short if score is None else f"{short} {score:.2f}".strip()


def _draw_tags(
    picture: Image.Image, corners: np.ndarray, texts: Sequence[str], colours: Sequence[str]
) -> None:
    """Write names on tags of the objects' colours, in the order of the objects."""
    draw = ImageDraw.Draw(picture)
    size = min(max((picture.width * picture.height) ** 0.5 / 36, 12), 36)
    letters = font(size, bold=True)
    height, pad = round(1.4 * size), round(0.3 * size)
    taken: list[Box] = []
    for box, text, colour in zip(corners, texts, colours, strict=True):
        if not text or max(box[2:] - box[:2]) < height:
            continue
        width = round(text_length(text, letters)) + 2 * pad
        tag = _free_position((width, height), box, picture.size, taken, corners)
        if tag is None:
            continue
        taken.append(tag)
        left, top, right, bottom = tag
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        ink = INK if ImageColor.getcolor(colour, "L") > 120 else "white"  # pyright: ignore[reportOperatorIssue]
        write_text(draw, (left + pad, top + (height - sum(letters.getmetrics())) / 2), text, ink, letters)


def _free_position(
    size: tuple[int, int], box: np.ndarray, limit: tuple[int, int], taken: Sequence[Box], corners: np.ndarray
) -> Box | None:
    """Return a position for a tag of (width, height) on a drawing of the size `limit`, or None."""
    width, height = size
    left, top, _, bottom = np.round(box).tolist()
    left = max(0, min(left, limit[0] - width))
    areas = (corners[:, 2:] - corners[:, :2]).clip(0).prod(1)
    for upper in (top - height, bottom, max(0, top)):
        tag = (left, upper, left + width, upper + height)
        fits = upper >= 0 and tag[2] <= limit[0] and tag[3] <= limit[1]
        free = not taken or not _intersection(tag, np.array(taken)).any()
        if fits and free and (_intersection(tag, corners) <= MAX_COVERED * areas).all():
            return tag
    return None


def _intersection(box: Box, boxes: np.ndarray) -> np.ndarray:
    """Return the area that a box shares with each of others [n]."""
    first, last = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    return (last - first).clip(0).prod(1)
