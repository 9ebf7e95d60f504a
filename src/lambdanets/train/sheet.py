"""The contact sheet: every image with its likeliest labels, on pages one can hand around."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lambdanets.data import read_image
from lambdanets.train.pages import (
    CARD,
    EDGE,
    GAP,
    HEADER,
    INK,
    MARGIN,
    PAD,
    ROW,
    SCALE,
    TRACK,
    Fonts,
    blank_page,
    fitted,
    page_fonts,
    page_path,
    rounded,
    write_line,
    write_pages,
)
from lambdanets.train.prediction import Prediction
from lambdanets.utils.fonts import legible, text_length

ACCENT, OTHER, RIGHT, WRONG = "#2f6fde", "#b4c3dc", "#1a7f4b", "#c8372d"
PICTURE = 184
LABELS = 104  # most room for class names; bars have the rest
SMALL_IMAGE = 64  # pixels; below it, smoothing would hide what the network was given


def draw_sheets(
    predictions: Sequence[Prediction],
    path: str | os.PathLike[str],
    *,
    title: str = "Predictions",
    per_page: int = 25,
    columns: int = 5,
    max_pages: int = 8,
) -> list[Path]:
    """Draw predictions on one or more PNG pages.

    Every image keeps its shape; images of a few pixels are enlarged without smoothing. The bar of the
    likeliest class is green or red where the truth is known. Predictions that carry an error are left out.
    Further pages that an earlier, longer sheet left under the same name are removed.

    Args:
        predictions: What `predict` or `predict_samples` returned.
        path: The first page; the further ones are numbered `name-2.png`, `name-3.png`.
        title: The line at the top of every page.
        per_page: Most images on one page.
        columns: Most images side by side.
        max_pages: Pages after which drawing stops, so that a folder of a million photos fills no disk.

    Returns:
        The files written; none when no image could be read.

    Raises:
        ValueError: The path does not end in .png.
    """
    first = page_path(path)
    readable = [each for each in predictions if each.labels]
    parts = [readable[start : start + per_page] for start in range(0, len(readable), per_page)][:max_pages]
    return write_pages(_pages(readable, parts, title, columns, per_page), first)


def _pages(
    readable: Sequence[Prediction],
    parts: Sequence[Sequence[Prediction]],
    title: str,
    columns: int,
    per_page: int,
) -> Iterator[Image.Image]:
    fonts = page_fonts()
    for number, part in enumerate(parts, start=1):
        yield _page(part, title, _caption(readable, number, len(parts), per_page), fonts, columns)


def _caption(readable: Sequence[Prediction], number: int, pages: int, per_page: int) -> str:
    known = [each for each in readable if each.right is not None]
    parts = [f"{len(readable)} image{'s' * (len(readable) != 1)}"]
    if known:
        parts.append(f"{sum(bool(each.right) for each in known)} of {len(known)} right")
    if pages > 1:
        parts.append(f"page {number} of {pages}")
    if number == pages and len(readable) > pages * per_page:
        parts.append(f"the first {pages * per_page} drawn")
    return "  ·  ".join(parts)


def _page(page: Sequence[Prediction], title: str, caption: str, fonts: Fonts, columns: int) -> Image.Image:
    columns = min(columns, len(page))
    bars = max(len(each.labels) for each in page)
    lines = 2 if any(each.truth is not None for each in page) else 1
    card = (PICTURE + 2 * PAD, PAD + PICTURE + 8 + lines * ROW + 6 + bars * ROW + PAD)
    rows = -(-len(page) // columns)
    # A page of one or two images still has to hold its title.
    width = max(2 * MARGIN + columns * card[0] + (columns - 1) * GAP, 520)
    height = HEADER + rows * card[1] + (rows - 1) * GAP + 2 * MARGIN
    sheet = blank_page(width, height, title, caption, fonts)
    draw = ImageDraw.Draw(sheet)
    for index, prediction in enumerate(page):
        row, column = divmod(index, columns)
        left = MARGIN + column * (card[0] + GAP)
        top = MARGIN + HEADER + row * (card[1] + GAP)
        rounded(draw, (left, top, left + card[0], top + card[1]), 10, CARD, EDGE)
        _card(sheet, draw, prediction, (left + PAD, top + PAD), fonts)
    return sheet


def _card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, each: Prediction, corner: tuple[int, int], fonts: Fonts
) -> None:
    left, top = corner
    picture = _thumbnail(each.image or read_image(each.path, max_pixels=sys.maxsize), PICTURE * SCALE)
    rounded(draw, (left, top, left + PICTURE, top + PICTURE), 6, TRACK)
    offset = [(PICTURE * SCALE - size) // 2 for size in picture.size]
    sheet.paste(picture, (left * SCALE + offset[0], top * SCALE + offset[1]))
    y = top + PICTURE + 8
    name = Path(each.path).name if each.image is None else each.path
    write_line(draw, (left, y), fitted(name, fonts.strong, PICTURE, keep_end=True), fonts.strong, INK)
    y += ROW
    if each.truth is not None:
        mark, colour = ("✓", RIGHT) if each.right else ("✗", WRONG)
        write_line(
            draw, (left, y), fitted(f"{mark} true: {each.truth}", fonts.text, PICTURE), fonts.text, colour
        )
        y += ROW
    y += 6
    longest = max(text_length(legible(label), fonts.strong) for label in each.labels)
    middle = min(longest / SCALE + 8, LABELS)
    for rank, (label, probability) in enumerate(zip(each.labels, each.probabilities, strict=True)):
        colour = OTHER if rank else {None: ACCENT, True: RIGHT, False: WRONG}[each.right]
        font = fonts.text if rank else fonts.strong
        _bar(draw, (left, y + rank * ROW), middle, label, probability, font, colour)


def _bar(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    indent: float,
    label: str,
    probability: float,
    font: ImageFont.FreeTypeFont,
    colour: str,
) -> None:
    left, top = corner
    right = left + PICTURE
    write_line(draw, (left, top), fitted(label, font, indent - 8), font, INK)
    track = (left + indent, top + 3, right - 46, top + 11)
    rounded(draw, track, 4, TRACK)
    length = (track[2] - track[0]) * probability
    if length >= 1:
        rounded(draw, (track[0], track[1], track[0] + length, track[3]), 4, colour)
    number = f"{probability:.1%}" if probability < 0.99995 else "100%"
    draw.text((right * SCALE, top * SCALE), number, INK, font, anchor="ra")


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    size = tuple(max(1, round(length * factor)) for length in image.size)
    smooth = max(image.size) > SMALL_IMAGE
    resample = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize((size[0], size[1]), resample, reducing_gap=3.0 if smooth else None)
