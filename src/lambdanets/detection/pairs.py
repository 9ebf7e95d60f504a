"""Sheets of images drawn twice: with the objects that are there, and with those that were found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from lambdanets.data import CocoSet
from lambdanets.detection.drawing import draw_objects
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
    SOFT,
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

PICTURE, BETWEEN = 280, 8  # units: longer side of a picture, and what is between two
COLUMNS = 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with what is there and what was found.

    Attributes:
        name: of its file.
        image: as it is stored.
        truth: its target, as `CocoSet.original` or `CocoSet.stored` gives it; crowds are not drawn.
        found: what a network found, as `to_results` takes it.
    """

    name: str
    image: Image.Image
    truth: dict[str, Any]
    found: dict[str, Any]


def pair(images: CocoSet, index: int, find: Callable[[Tensor, dict[str, Any]], dict[str, Any]]) -> Pair:
    """Return an image of a set with what is there and what was found.

    Args:
        images: the set.
        index: in it.
        find: from an image, uint8 of shape (3, height, width), and its target, both as stored, to what was
            found in it.
    """
    picture, truth = images.stored(index)
    pixels = picture.as_subclass(Tensor)
    return Pair(
        name=Path(images.path(index)).name,
        image=Image.fromarray(pixels.permute(1, 2, 0).numpy()),
        truth=truth,
        found=find(pixels, truth),
    )


def spread(total: int, count: int) -> list[int]:
    """Return `count` places spread evenly over `total`, or all where there are fewer."""
    count = min(count, total)
    return [place * total // count for place in range(count)]


@dataclass(frozen=True)
class _Card:
    """A pair, drawn, with what is written about it; all that is kept of it."""

    name: str
    pictures: tuple[Image.Image, Image.Image]
    captions: tuple[str, str]


def draw_pairs(
    rows: Iterable[Pair],
    path: str | os.PathLike[str],
    title: str,
    *,
    names: Sequence[str],
    threshold: float = 0.5,
    per_page: int = 8,
) -> list[Path]:
    """Draw images on one or more PNG pages, each with its objects on the left and those found on the right.

    Further pages that an earlier, longer sheet left under the same name are removed.

    Args:
        rows: the images; they are taken one by one, so that masks need not be held for all of them.
        path: the first page; the further ones are numbered `name-2.png`, `name-3.png`.
        title: the line at the top of every page.
        names: of the classes, in the order of the labels.
        threshold: objects found with a lower score are not drawn.
        per_page: most images on one page.

    Returns:
        The files written; none when there are no rows.

    Raises:
        ValueError: the path does not end in .png.
    """
    first = page_path(path)
    return write_pages(_pages(rows, title, names, threshold, per_page), first)


def _pages(
    rows: Iterable[Pair], title: str, names: Sequence[str], threshold: float, per_page: int
) -> Iterator[Image.Image]:
    fonts = page_fonts()
    cards = (_drawn(row, names, threshold) for row in rows)
    done = 0
    while part := list(islice(cards, per_page)):
        images = f"image {done + 1}" if len(part) == 1 else f"images {done + 1} to {done + len(part)}"
        done += len(part)
        caption = f"{images}  ·  left: annotated  ·  right: found with a score of {threshold:g} or more"
        yield _page(part, title, caption, fonts)


def _drawn(row: Pair, names: Sequence[str], threshold: float) -> _Card:
    there, found = row.truth["iscrowd"] == 0, row.found["scores"] >= threshold
    pictures = [
        draw_objects(
            row.image,
            source["boxes"][chosen],
            source["labels"][chosen],
            names,
            source["scores"][chosen] if "scores" in source else None,
            source["masks"][chosen] if "masks" in source else None,
            longest=PICTURE * SCALE,
        )
        for source, chosen in ((row.truth, there), (row.found, found))
    ]
    objects = int(there.sum())
    captions = f"{objects} object{'s' * (objects != 1)}", f"{int(found.sum())} found"
    return _Card(row.name, (pictures[0], pictures[1]), captions)


def _page(cards: Sequence[_Card], title: str, caption: str, fonts: Fonts) -> Image.Image:
    columns = min(COLUMNS, len(cards))
    lines = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    # A line is as high as its highest picture: wide images take no more room than they need.
    pictures = [max(-(-card.pictures[0].height // SCALE) for card in line) for line in lines]
    heights = [PAD + ROW + 4 + height + 6 + ROW + PAD for height in pictures]
    card_width = 2 * PICTURE + BETWEEN + 2 * PAD
    width = 2 * MARGIN + columns * card_width + (columns - 1) * GAP
    height = HEADER + sum(heights) + (len(lines) - 1) * GAP + 2 * MARGIN
    sheet = blank_page(width, height, title, caption, fonts)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN + HEADER
    for line, room, high in zip(lines, pictures, heights, strict=True):
        for column, card in enumerate(line):
            left = MARGIN + column * (card_width + GAP)
            draw_rounded_box(draw, (left, top, left + card_width, top + high), 10, CARD, EDGE)
            _card(sheet, draw, card, (left + PAD, top + PAD), room, fonts)
        top += high + GAP
    return sheet


def _card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    card: _Card,
    corner: tuple[int, int],
    room: int,
    fonts: Fonts,
) -> None:
    left, top = corner
    name = fit_text(card.name, fonts.strong, 2 * PICTURE + BETWEEN, keep_end=True)
    draw_text_line(draw, (left, top), name, fonts.strong, INK)
    top += ROW + 4
    for picture, caption in zip(card.pictures, card.captions, strict=True):
        draw_rounded_box(draw, (left, top, left + PICTURE, top + room), 4, TRACK)
        spare = PICTURE * SCALE - picture.width, room * SCALE - picture.height
        sheet.paste(picture, (left * SCALE + spare[0] // 2, top * SCALE + spare[1] // 2))
        draw_text_line(draw, (left, top + room + 6), caption, fonts.text, SOFT)
        left += PICTURE + BETWEEN
