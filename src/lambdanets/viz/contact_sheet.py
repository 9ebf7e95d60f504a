"""The contact sheet: images with their most probable labels, on PNG pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lambdanets.data import read_image
from lambdanets.utils.fonts import legible, text_length
from lambdanets.viz.pages import (
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
    draw_rounded_box,
    draw_text_line,
    fit_text,
    page_fonts,
    page_path,
    write_pages,
)

ACCENT, OTHER, RIGHT, WRONG = "#2f6fde", "#b4c3dc", "#1a7f4b", "#c8372d"
PER_PAGE, MAX_PAGES = 25, 8
PICTURE = 184  # height and width of an image on a card, in units (see `pages`)
LABELS = 104  # largest width of class names, in units; bars have the rest of the width
SMALL_IMAGE = 64  # longer side in pixels up to which images are enlarged without smoothing


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The labels of one image, or the reason why it could not be read.

    Attributes:
        path: The file, or the name of the sample.
        labels: Class names, the most probable first; empty if the image could not be read.
        probabilities: Their probabilities, in the same order.
        truth: The true class, if known.
        error: A sentence on what is wrong with the image, None if it was read.
        image: The image, if there is no file to read it from.
    """

    path: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    truth: str | None = None
    error: str | None = None
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    @property
    def right(self) -> bool | None:
        """Whether the most probable class is the true one; None if either is unknown."""
        return None if self.truth is None or not self.labels else self.labels[0] == self.truth


def draw_sheets(
    predictions: Sequence[Prediction],
    path: str | os.PathLike[str],
    *,
    title: str = "Predictions",
    per_page: int = PER_PAGE,
    columns: int = 5,
    max_pages: int = MAX_PAGES,
    summary: str | None = None,
) -> list[Path]:
    """Draw predictions on one or more PNG pages.

    Images keep their shape; images of a few pixels are enlarged without smoothing. The bar of the most
    probable class is green or red if the truth is known. Predictions with an error are left out. Further
    pages of an earlier, longer sheet under the same name are removed.

    Args:
        predictions: The result of `predict` or `predict_samples`.
        path: The first page; the others are `name-2.png`, `name-3.png` and so on.
        title: The line at the top of every page.
        per_page: Most images on one page.
        columns: Most images side by side.
        max_pages: Most pages, so that a folder of a million photos does not fill the disk.
        summary: Line below the title; None counts the images and the correct predictions.

    Returns:
        The written files; none if no image could be read.

    Raises:
        ValueError: The path does not end in .png.
    """
    first = page_path(path)
    readable = [each for each in predictions if each.labels]
    parts = [readable[start : start + per_page] for start in range(0, len(readable), per_page)][:max_pages]
    return write_pages(_pages(readable, parts, title, columns, per_page, summary), first)


def _pages(
    readable: Sequence[Prediction],
    parts: Sequence[Sequence[Prediction]],
    title: str,
    columns: int,
    per_page: int,
    summary: str | None,
) -> Iterator[Image.Image]:
    fonts = page_fonts()
    for number, part in enumerate(parts, start=1):
        caption = _caption(readable, number, len(parts), per_page, summary)
        yield _page(part, title, caption, fonts, columns)


def _caption(
    readable: Sequence[Prediction], number: int, pages: int, per_page: int, summary: str | None
) -> str:
    """Return the line below the title: numbers of images and of correct predictions, and the page."""
    known = [each for each in readable if each.right is not None]
    parts = [summary or f"{len(readable)} image{'s' * (len(readable) != 1)}"]
    if known and summary is None:
        parts.append(f"{sum(bool(each.right) for each in known)} of {len(known)} correct")
    if pages > 1:
        parts.append(f"page {number} of {pages}")
    if number == pages and len(readable) > pages * per_page:
        parts.append(f"the first {pages * per_page} drawn")
    return "  ·  ".join(parts)


def _page(page: Sequence[Prediction], title: str, caption: str, fonts: Fonts, columns: int) -> Image.Image:
    """Draw one page."""
    columns = min(columns, len(page))
    bars = max(len(each.labels) for each in page)
    lines = 2 if any(each.truth is not None for each in page) else 1
    card = (PICTURE + 2 * PAD, PAD + PICTURE + 8 + lines * ROW + 6 + bars * ROW + PAD)
    rows = -(-len(page) // columns)
    # Wide enough for the title, even with one or two images.
    width = max(2 * MARGIN + columns * card[0] + (columns - 1) * GAP, 520)
    height = HEADER + rows * card[1] + (rows - 1) * GAP + 2 * MARGIN
    sheet = blank_page(width, height, title, caption, fonts)
    draw = ImageDraw.Draw(sheet)
    for index, prediction in enumerate(page):
        row, column = divmod(index, columns)
        left = MARGIN + column * (card[0] + GAP)
        top = MARGIN + HEADER + row * (card[1] + GAP)
        draw_rounded_box(draw, (left, top, left + card[0], top + card[1]), 10, CARD, EDGE)
        _card(sheet, draw, prediction, (left + PAD, top + PAD), fonts)
    return sheet


def _card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, each: Prediction, corner: tuple[int, int], fonts: Fonts
) -> None:
    """Draw the card of one prediction with its upper left corner at a position in units."""
    left, top = corner
    picture = _thumbnail(each.image or read_image(each.path, max_pixels=sys.maxsize), PICTURE * SCALE)
    draw_rounded_box(draw, (left, top, left + PICTURE, top + PICTURE), 6, TRACK)
    offset = [(PICTURE * SCALE - size) // 2 for size in picture.size]
    sheet.paste(picture, (left * SCALE + offset[0], top * SCALE + offset[1]))
    y = top + PICTURE + 8
    name = Path(each.path).name
    draw_text_line(draw, (left, y), fit_text(name, fonts.strong, PICTURE, keep_end=True), fonts.strong, INK)
    y += ROW
    if each.truth is not None:
        mark, colour = ("✓", RIGHT) if each.right else ("✗", WRONG)
        draw_text_line(
            draw, (left, y), fit_text(f"{mark} true: {each.truth}", fonts.text, PICTURE), fonts.text, colour
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
    """Draw a class name, and a bar and a number for its probability (0 to 1), in units."""
    left, top = corner
    right = left + PICTURE
    draw_text_line(draw, (left, top), fit_text(label, font, indent - 8), font, INK)
    track = (left + indent, top + 3, right - 46, top + 11)
    draw_rounded_box(draw, track, 4, TRACK)
    length = (track[2] - track[0]) * probability
    if length >= 1:
        draw_rounded_box(draw, (track[0], track[1], track[0] + length, track[3]), 4, colour)
    number = f"{probability:.1%}" if probability < 0.99995 else "100%"
    draw.text((right * SCALE, top * SCALE), number, INK, font, anchor="ra")


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Return an image in RGB, resized so that its longer side has `side` pixels."""
    factor = side / max(image.size)
    size = tuple(max(1, round(length * factor)) for length in image.size)
    smooth = max(image.size) > SMALL_IMAGE
    resample = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize((size[0], size[1]), resample, reducing_gap=3.0 if smooth else None)
