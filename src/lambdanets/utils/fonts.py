"""Literal text in figures and drawings: no mathematics, and letters from any installed font that has them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from .text import printable

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

FAMILY = "DejaVu Sans"  # part of Matplotlib; it has most alphabets
NORMAL_WEIGHT = 400

# Letter that FAMILY lacks -> a font that has it, or None if no font has it.
_fallbacks: dict[str, "FontEntry | None"] = {}


def legible(text: str) -> str:
    """Return a text in which characters that no font has are escaped: `\\x1b`, `\\u732b`.

    Args:
        text: Any text, such as the name of a class.
    """
    fonts = _fonts_of(text := printable(text))
    return "".join(
        letter if letter not in fonts or fonts[letter] else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


@contextmanager
def plain_text(*texts: str) -> Iterator[None]:
    """Make Matplotlib draw text literally, without mathematics between dollar signs.

    Create and save the figures inside the `with` block.

    Args:
        *texts: Text from the user, passed through `legible`; fonts that have its letters are used.
    """
    from matplotlib import rc_context

    fonts = [entry for text in texts for entry in _fonts_of(text).values() if entry]
    families = [FAMILY, *dict.fromkeys(entry.name for entry in fonts)]
    with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": families}):
        yield


def font(size: float, *, bold: bool = False) -> "FreeTypeFont":
    """Return the font of drawings, DejaVu Sans.

    Args:
        size: Size in pixels.
        bold: Return the bold font, for titles and names.
    """
    from PIL import ImageFont

    return ImageFont.truetype(_path(bold), size)


def text_length(text: str, font: "FreeTypeFont") -> float:
    """Return the width of a text in pixels.

    Args:
        text: One line, passed through `legible`.
        font: The font; letters that it lacks are drawn in a fallback font.
    """
    return sum(own.getlength(part) for part, own in _runs(text, font))


def write_text(
    draw: "ImageDraw", corner: tuple[float, float], text: str, ink: str, font: "FreeTypeFont"
) -> None:
    """Draw a line of text.

    Args:
        draw: The drawing.
        corner: Left and top of the line, in pixels.
        text: One line, passed through `legible`.
        ink: Colour of the text.
        font: The font; letters that it lacks are drawn in a fallback font.
    """
    left, baseline = corner[0], corner[1] + font.getmetrics()[0]
    for part, own in _runs(text, font):
        draw.text((left, baseline), part, ink, own, anchor="ls")
        left += own.getlength(part)


def _runs(text: str, font: "FreeTypeFont") -> Iterator[tuple[str, "FreeTypeFont"]]:
    """Yield parts of a text, each with a font that has its letters."""
    fonts = _fonts_of(text)
    for entry, letters in groupby(text, fonts.get):
        yield "".join(letters), font.font_variant(font=entry.fname) if entry else font


def _fonts_of(text: str) -> dict[str, "FontEntry | None"]:
    """Return the letters of a text that FAMILY lacks, each with a font that has it, or None."""
    if text.isascii():
        return {}
    lacking = [letter for letter in dict.fromkeys(text) if letter not in _own_letters()]
    if unknown := [letter for letter in lacking if letter not in _fallbacks]:
        _fallbacks.update(_search(unknown))
    return {letter: _fallbacks[letter] for letter in lacking}


def _search(letters: Iterable[str]) -> dict[str, "FontEntry | None"]:
    """Find fonts for letters among all installed fonts, first those that have the most of the letters."""
    from matplotlib.font_manager import fontManager

    remaining, found = set(letters), dict.fromkeys(letters)
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    upright.sort(key=lambda entry: (abs(_weight(entry) - NORMAL_WEIGHT), entry.name, entry.fname))
    candidates = [(entry, remaining & _letters(entry.fname)) for entry in upright]
    while remaining:
        entry, covered = max(candidates, key=lambda each: len(each[1] & remaining), default=(None, set()))
        if entry is None or not covered & remaining:
            break
        found |= dict.fromkeys(covered & remaining, entry)
        remaining -= covered
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
    """Return the letters of a font file; none for a font that cannot be scaled, such as coloured emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(path)
    except (RuntimeError, OSError):  # a damaged or removed file
        return frozenset()
    # A font of "last resort" draws a box for every letter.
    if not opened.scalable or "lastresort" in opened.family_name.replace(" ", "").lower():
        return frozenset()
    return frozenset(map(chr, opened.get_charmap()))
