"""Text in figures and drawings, as it is: no mathematics, letters from any installed font that has them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from .wording import printable

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

FAMILY = "DejaVu Sans"  # comes with Matplotlib: most alphabets are legible on every machine
NORMAL_WEIGHT = 400

_fallbacks: dict[str, "FontEntry | None"] = {}  # of letters that FAMILY lacks


def legible(text: str) -> str:
    """Return a text with what cannot be drawn written as Python writes it: `\\x1b`, `\\u732b`.

    Args:
        text: of any kind, such as the name of a class.
    """
    fonts = _fonts_of(text := printable(text))
    return "".join(
        letter if letter not in fonts or fonts[letter] else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


@contextmanager
def plain_text(*texts: str) -> Iterator[None]:
    """Let Matplotlib draw text as it is, without reading mathematics into dollar signs.

    Figures are made and saved within.

    Args:
        *texts: those of a user, made `legible` before they are drawn; fonts that have their letters are used.
    """
    from matplotlib import rc_context

    fonts = [entry for text in texts for entry in _fonts_of(text).values() if entry]
    families = [FAMILY, *dict.fromkeys(entry.name for entry in fonts)]
    with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": families}):
        yield


def font(size: float, *, bold: bool = False) -> "FreeTypeFont":
    """Return DejaVu for drawings.

    Args:
        size: in pixels.
        bold: for titles and names.
    """
    from PIL import ImageFont

    return ImageFont.truetype(_path(bold), size)


def text_length(text: str, font: "FreeTypeFont") -> float:
    """Return how wide a legible text is in pixels.

    Args:
        text: one line.
        font: of letters that it has; others are taken from other fonts.
    """
    return sum(own.getlength(part) for part, own in _runs(text, font))


def write_text(
    draw: "ImageDraw", corner: tuple[float, float], text: str, ink: str, font: "FreeTypeFont"
) -> None:
    """Write a legible text onto a drawing.

    Args:
        draw: the drawing.
        corner: left and top of the line, in pixels.
        text: one line.
        ink: its colour.
        font: of letters that it has; others are taken from other fonts.
    """
    left, baseline = corner[0], corner[1] + font.getmetrics()[0]
    for part, own in _runs(text, font):
        draw.text((left, baseline), part, ink, own, anchor="ls")
        left += own.getlength(part)


def _runs(text: str, font: "FreeTypeFont") -> Iterator[tuple[str, "FreeTypeFont"]]:
    """Parts of a text, each with the font that has its letters."""
    fonts = _fonts_of(text)
    for entry, letters in groupby(text, fonts.get):
        yield "".join(letters), font.font_variant(font=entry.fname) if entry else font


def _fonts_of(text: str) -> dict[str, "FontEntry | None"]:
    """The letters of a text that FAMILY lacks, each with a font that has it, or None."""
    if text.isascii():
        return {}
    lacking = [letter for letter in dict.fromkeys(text) if letter not in _own_letters()]
    if unknown := [letter for letter in lacking if letter not in _fallbacks]:
        _fallbacks.update(_search(unknown))
    return {letter: _fallbacks[letter] for letter in lacking}


def _search(letters: Iterable[str]) -> dict[str, "FontEntry | None"]:
    """Look through all installed fonts, those of the most letters first."""
    from matplotlib.font_manager import fontManager

    left, found = set(letters), dict.fromkeys(letters)
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    upright.sort(key=lambda entry: (abs(_weight(entry) - NORMAL_WEIGHT), entry.name, entry.fname))
    having = [(entry, left & _letters(entry.fname)) for entry in upright]
    while left:
        entry, most = max(having, key=lambda each: len(each[1] & left), default=(None, set()))
        if entry is None or not most & left:
            break
        found |= dict.fromkeys(most & left, entry)
        left -= most
    return found


def _weight(entry: "FontEntry") -> int:
    return entry.weight if isinstance(entry.weight, int) else NORMAL_WEIGHT


@cache
def _path(bold: bool) -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return findfont(FontProperties(family=FAMILY, weight="bold" if bold else "normal"))


@cache
def _own_letters() -> frozenset[str]:
    return _letters(_path(False)) & _letters(_path(True))


def _letters(path: str) -> frozenset[str]:
    """The letters of a font file; none of one that cannot be drawn at any size, such as coloured emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(path)
    except (RuntimeError, OSError):  # a damaged file, or one that is gone
        return frozenset()
    # Those of "last resort" have a box for every letter.
    if not opened.scalable or "lastresort" in opened.family_name.replace(" ", "").lower():
        return frozenset()
    return frozenset(map(chr, opened.get_charmap()))
