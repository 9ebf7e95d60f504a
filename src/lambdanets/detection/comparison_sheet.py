"""Sheets of images drawn twice: with their annotated and with their detected objects."""

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

# Longer side of a picture and the gap between two, in units of the page.
PICTURE, BETWEEN = 280, 8
COLUMNS = 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with its annotated and its detected objects.

    Attributes:
        name: Name of the image's file.
        image: The stored image.
        truth: Its target, from `CocoSet.original` or `CocoSet.stored`; crowds are not drawn.
        found: The detected objects, as `to_results` accepts them.
        notes: Ends of the lines below both pictures, behind the numbers of objects.
    """

    name: str
    image: Image.Image
    truth: dict[str, Any]
    found: dict[str, Any]
    notes: tuple[str, str] = ("", "")


def make_pair(
    images: CocoSet, index: int, detect: Callable[[Tensor, dict[str, Any]], dict[str, Any]]
) -> Pair:
    """Return an image of a set with its annotated and its detected objects.

    Args:
        images: The set.
        index: Index of the image in the set.
        detect: From the stored image, uint8 [3, height, width], and its target to the detected objects.
    """
    picture, truth = images.stored(index)
    pixels = picture.as_subclass(Tensor)
    return Pair(
        name=Path(images.path(index)).name,
        image=Image.fromarray(pixels.permute(1, 2, 0).numpy()),
        truth=truth,
        found=detect(pixels, truth),
    )


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return `count` indices evenly spaced in `range(total)`, or all if there are fewer."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


@dataclass(frozen=True)
class _Card:
    """A drawn pair with its captions, without the masks."""

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
    legend: str = "left: annotated  ·  right: detected with a score of {:g} or more",
) -> list[Path]:
    """Draw images on one or more PNG pages, annotated objects on the left and detected ones on the right.

    Surplus pages of an earlier, longer sheet of the same name are removed.

    Args:
        rows: The images; an iterator keeps the masks of one image in memory at a time.
        path: The first page; further pages are named `name-2.png`, `name-3.png`.
        title: The line at the top of every page.
        names: Names of the classes, in the order of the labels.
        threshold: Least score of the detected objects that are drawn.
        per_page: Most images on one page.
        legend: The second line at the top of every page, with {:g} for the threshold.

    Returns:
        The written files; none if there are no rows.

    Raises:
        ValueError: The path does not end in .png.
    """
    first = page_path(path)
    return write_pages(_pages(rows, title, names, threshold, per_page, legend.format(threshold)), first)


def _pages(
    rows: Iterable[Pair], title: str, names: Sequence[str], threshold: float, per_page: int, legend: str
) -> Iterator[Image.Image]:
    fonts = page_fonts()
    cards = (_draw_pair(row, names, threshold) for row in rows)
    done = 0
    while part := list(islice(cards, per_page)):
        images = f"image {done + 1}" if len(part) == 1 else f"images {done + 1} to {done + len(part)}"
        done += len(part)
        yield _page(part, title, f"{images}  ·  {legend}", fonts)


def _draw_pair(row: Pair, names: Sequence[str], threshold: float) -> _Card:
    annotated, found = row.truth["iscrowd"] == 0, row.found["scores"] >= threshold
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
        for source, chosen in ((row.truth, annotated), (row.found, found))
    ]
    objects = int(annotated.sum())
    captions = (
        f"{objects} object{'s' * (objects != 1)}{row.notes[0]}",
        f"{int(found.sum())} detected{row.notes[1]}",
    )
    return _Card(row.name, (pictures[0], pictures[1]), captions)


def _page(cards: Sequence[_Card], title: str, caption: str, fonts: Fonts) -> Image.Image:
    columns = min(COLUMNS, len(cards))
    lines = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    # A line is as high as its highest picture: wide images take less space.
    pictures = [max(-(-card.pictures[0].height // SCALE) for card in line) for line in lines]
    heights = [PAD + ROW + 4 + height + 6 + ROW + PAD for height in pictures]
    card_width = 2 * PICTURE + BETWEEN + 2 * PAD
    width = 2 * MARGIN + columns * card_width + (columns - 1) * GAP
    height = HEADER + sum(heights) + (len(lines) - 1) * GAP + 2 * MARGIN
    sheet = blank_page(width, height, title, caption, fonts)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN + HEADER
    for line, picture_height, card_height in zip(lines, pictures, heights, strict=True):
        for column, card in enumerate(line):
            left = MARGIN + column * (card_width + GAP)
            draw_rounded_box(draw, (left, top, left + card_width, top + card_height), 10, CARD, EDGE)
            _draw_card(sheet, draw, card, (left + PAD, top + PAD), picture_height, fonts)
        top += card_height + GAP
    return sheet


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    card: _Card,
    corner: tuple[int, int],
    picture_height: int,
    fonts: Fonts,
) -> None:
    left, top = corner
    name = fit_text(card.name, fonts.strong, 2 * PICTURE + BETWEEN, keep_end=True)
    draw_text_line(draw, (left, top), name, fonts.strong, INK)
    top += ROW + 4
    for picture, caption in zip(card.pictures, card.captions, strict=True):
        draw_rounded_box(draw, (left, top, left + PICTURE, top + picture_height), 4, TRACK)
        spare = PICTURE * SCALE - picture.width, picture_height * SCALE - picture.height
        sheet.paste(picture, (left * SCALE + spare[0] // 2, top * SCALE + spare[1] // 2))
        draw_text_line(draw, (left, top + picture_height + 6), caption, fonts.text, SOFT)
        left += PICTURE + BETWEEN
