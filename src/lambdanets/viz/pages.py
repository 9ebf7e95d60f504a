"""Pages of image cards: their layout, and the numbered files they are written to.

Lengths are in units of `SCALE` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lambdanets.utils.fonts import font, legible, text_length, write_text

SCALE = 2  # pixels per unit of the layout below, for screens of high resolution
PAPER, CARD, EDGE, TRACK = "#f3f4f6", "#ffffff", "#e2e4e9", "#eceef2"
INK, SOFT = "#1b1f27", "#6b7280"
MARGIN, GAP, PAD = 24, 16, 12  # around the page, between cards, and inside a card
ROW, HEADER = 19, 58  # heights of a line of text and of the title with its caption
MARK = "lambdanets contact sheet"  # stored in the file: only pages with this mark are ever removed


@dataclass(frozen=True, kw_only=True)
class Fonts:
    """The three fonts of a page."""

    title: ImageFont.FreeTypeFont
    text: ImageFont.FreeTypeFont
    strong: ImageFont.FreeTypeFont


def page_fonts() -> Fonts:
    """Return the fonts of a page."""
    return Fonts(title=font(17 * SCALE, bold=True), text=font(11 * SCALE), strong=font(11 * SCALE, bold=True))


def page_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a first page.

    Raises:
        ValueError: The path does not end in .png.
    """
    first = Path(path)
    if first.suffix.lower() != ".png":
        raise ValueError(f"the contact sheet is a PNG image; its path must end in .png, got {str(path)!r}")
    return first


def write_pages(pages: Iterable[Image.Image], first: Path) -> list[Path]:
    """Write pages to numbered files, and remove further ones of an earlier, longer sheet.

    Args:
        pages: The pages, drawn one at a time.
        first: Path of the first page; the others are `name-2.png`, `name-3.png` and so on.

    Returns:
        The written files.
    """
    first.parent.mkdir(parents=True, exist_ok=True)
    mark = PngInfo()
    mark.add_text("Software", MARK)
    written: list[Path] = []
    for number, page in enumerate(pages, start=1):
        target = _numbered(first, number)
        page.save(target, optimize=True, pnginfo=mark)
        written.append(target)
    number = len(written) + 1
    while written and _is_ours(stale := _numbered(first, number)):
        stale.unlink()
        number += 1
    return written


def _numbered(first: Path, number: int) -> Path:
    return first if number == 1 else first.with_stem(f"{first.stem}-{number}")


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    except (OSError, Image.DecompressionBombError):
        return False


def blank_page(width: int, height: int, title: str, caption: str, fonts: Fonts) -> Image.Image:
    """Return a page of a width and height in units, with a title at the top and a caption below it."""
    sheet = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_text_line(
        draw, (MARGIN, MARGIN - 4), fit_text(title, fonts.title, width - 2 * MARGIN), fonts.title, INK
    )
    draw_text_line(draw, (MARGIN, MARGIN + 26), caption, fonts.text, SOFT)
    return sheet


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float, *, keep_end: bool = False) -> str:
    """Return a text that can be drawn, shortened by an ellipsis if it is wider than a width in units.

    Args:
        text: Any text; white space becomes single spaces.
        font: The font.
        width: Width in units.
        keep_end: Shorten in the middle, for file names.
    """
    text = legible(" ".join(text.split())) or "?"
    for shortened in (text, *_shorter(text, keep_end)):
        if text_length(shortened, font) <= width * SCALE:
            return shortened
    return "…"


def _shorter(text: str, keep_end: bool) -> Iterator[str]:
    for length in range(len(text) - 1, 0, -1):
        end = length // 2 if keep_end else 0
        yield text[: length - end].rstrip() + "…" + (text[-end:] if end else "")


def draw_text_line(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, colour: str
) -> None:
    """Write a line of text with its upper left corner at a position in units."""
    write_text(draw, (corner[0] * SCALE, corner[1] * SCALE), text, colour, font)


def draw_rounded_box(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    radius: int,
    fill: str,
    outline: str | None = None,
) -> None:
    """Draw a rectangle with rounded corners, in units."""
    scaled = [round(value * SCALE) for value in box]
    radius = min(radius * SCALE, (scaled[2] - scaled[0]) // 2, (scaled[3] - scaled[1]) // 2)
    draw.rounded_rectangle(scaled, radius, fill, outline, width=SCALE if outline else 0)
