"""Text in figures: as it is, in fonts that have its letters."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image, ImageDraw

from lambdanets.utils import fonts
from lambdanets.utils.fonts import font, legible, plain_text, text_length, write_text

LETTER = "\U000f1234"  # of private use: no other font of a machine has it
UNKNOWN = "\uf8f3"


@pytest.fixture
def square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed font whose only letter is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "square"])
    made.setupCharacterMap({ord(LETTER): "square"})
    made.setupGlyf({".notdef": glyph, "square": glyph})
    made.setupHorizontalMetrics({".notdef": (900, 0), "square": (900, 0)})
    made.setupHorizontalHeader(ascent=900, descent=-100)
    made.setupNameTable({"familyName": "Square of a Test", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    made.setupPost()
    made.save(tmp_path / "square.ttf")
    monkeypatch.setattr(fonts, "_fallbacks", {})
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "square.ttf")
    yield
    fontManager.ttflist[:] = before


def test_letters_without_a_font_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_fallbacks", {})
    assert legible("Straße ✓ привет $x^2$") == "Straße ✓ привет $x^2$"
    assert legible(f"a{UNKNOWN}b\x1b") == "a\\uf8f3b\\x1b"


@pytest.mark.usefixtures("square")
def test_letters_are_taken_from_any_installed_font() -> None:
    assert legible(f"a{LETTER}") == f"a{LETTER}"
    letters = font(40)
    assert text_length(f"a{LETTER}", letters) == pytest.approx(letters.getlength("a") + 36, abs=1)
    drawing = Image.new("L", (60, 60), "white")
    write_text(ImageDraw.Draw(drawing), (0, 0), LETTER, "black", letters)
    rows, columns = np.nonzero(np.asarray(drawing) < 100)
    ascent = letters.getmetrics()[0]
    assert (rows.min(), rows.max() + 1) == pytest.approx((ascent - 32, ascent), abs=1)
    assert (columns.min(), columns.max() + 1) == pytest.approx((0, 32), abs=1)


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("text", ["a$\\q$", "$x^2$", "price_$1_$5", "$$", LETTER])
def test_figures_draw_text_as_it_is(tmp_path: Path, text: str) -> None:
    with warnings.catch_warnings(), plain_text(text):
        warnings.simplefilter("error")  # such as that of a missing glyph
        figure = Figure()
        title = figure.suptitle(legible(text))
        figure.savefig(tmp_path / "figure.png")
    assert (title.get_text(), title.get_parse_math()) == (text, False)
    assert matplotlib.rcParams["text.parse_math"]
