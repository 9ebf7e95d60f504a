"""The contact sheet, judged by its pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from lambdanets.evaluate.prediction import Prediction
from lambdanets.viz.contact_sheet import ACCENT, OTHER, PICTURE, RIGHT, WRONG, draw_sheets
from lambdanets.viz.pages import CARD, GAP, MARGIN, PAD, PAPER, SCALE


def has(image: Image.Image, name: str) -> bool:
    return bool((np.asarray(image) == ImageColor.getrgb(name)).all(-1).any())


def prediction(label: str = "cat", truth: str | None = None, **options: object) -> Prediction:
    values = {"path": "photo.png", "labels": (label, "other"), "probabilities": (0.8, 0.2), "truth": truth}
    return Prediction(**({"image": Image.new("RGB", (300, 200), "magenta")} | values | options))


def sheet(tmp_path: Path, *predictions: Prediction, **options: object) -> Image.Image:
    (path,) = draw_sheets(predictions, tmp_path / "sheet.png", **options)
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize(
    ("truth", "shown", "absent"),
    [(None, ACCENT, [RIGHT, WRONG]), ("cat", RIGHT, [ACCENT, WRONG]), ("dog", WRONG, [ACCENT, RIGHT])],
)
def test_the_colour_of_the_first_bar_says_whether_it_is_right(
    tmp_path: Path, truth: str | None, shown: str, absent: list[str]
) -> None:
    drawn = sheet(tmp_path, prediction(truth=truth))
    assert has(drawn, shown)
    assert has(drawn, OTHER)
    assert not any(has(drawn, colour) for colour in absent)


def test_bars_are_as_long_as_their_probabilities(tmp_path: Path) -> None:
    drawn = np.asarray(sheet(tmp_path, prediction(labels=("a", "b"), probabilities=(0.75, 0.25))))
    first, second = (
        int((drawn == ImageColor.getrgb(colour)).all(-1).sum(1).max()) for colour in (ACCENT, OTHER)
    )
    assert first == pytest.approx(3 * second, abs=6)


def test_pictures_keep_their_shape(tmp_path: Path) -> None:
    drawn = np.asarray(sheet(tmp_path, prediction()))
    rows, columns = np.nonzero((drawn == ImageColor.getrgb("magenta")).all(-1))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert width == PICTURE * SCALE
    assert height == pytest.approx(width * 2 / 3, abs=1)


def test_small_pictures_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    board = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    drawn = sheet(tmp_path, prediction(image=board))
    left, top = (MARGIN + PAD) * SCALE, int(np.nonzero((np.asarray(drawn) == 0).all(-1))[0].min())
    picture = np.asarray(drawn)[top : top + PICTURE * SCALE, left : left + PICTURE * SCALE, 0]
    assert set(np.unique(picture)) == {0, 255}
    half = PICTURE * SCALE // 2
    assert (picture[:half, :half] == 0).all()
    assert (picture[:half, half:] == 255).all()


def test_long_and_odd_names_stay_inside_their_card(tmp_path: Path) -> None:
    odd = "W" * 200
    each = prediction(labels=(odd, "Löwenzahn · одуванчик"), path=f"{odd}.png", truth=odd)
    drawn = np.asarray(sheet(tmp_path, each, each, title=odd))
    card = (PICTURE + 2 * PAD) * SCALE
    gap = drawn[100 * SCALE :, MARGIN * SCALE + card + 2 : (MARGIN + GAP) * SCALE + card - 2]
    assert (gap == ImageColor.getrgb(PAPER)).all()
    inner = drawn[
        110 * SCALE : 300 * SCALE, MARGIN * SCALE + card - PAD * SCALE + 2 : MARGIN * SCALE + card - 4
    ]
    assert (inner == ImageColor.getrgb(CARD)).all()
    assert (drawn[:, -MARGIN * SCALE + 1 :] == ImageColor.getrgb(PAPER)).all()


def test_pages_are_numbered_and_limited(tmp_path: Path) -> None:
    many = [prediction() for _ in range(23)]
    written = draw_sheets(many, tmp_path / "sheet.png", per_page=4, columns=2, max_pages=3)
    assert [path.name for path in written] == ["sheet.png", "sheet-2.png", "sheet-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    sizes = {Image.open(path).size for path in written}
    assert len(sizes) == 1


def test_pages_of_an_earlier_longer_sheet_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_sheets([prediction()] * 4, path, per_page=1)
    (tmp_path / "sheet-5.png").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo-2.png")
    draw_sheets([prediction()] * 2, path, per_page=1)
    draw_sheets([prediction()], tmp_path / "photo.png")
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["photo-2.png", "photo.png", "sheet-2.png", "sheet-5.png", "sheet.png"]


def test_the_last_page_is_as_short_as_it_can_be(tmp_path: Path) -> None:
    first, last = draw_sheets([prediction()] * 5, tmp_path / "sheet.png", per_page=4, columns=2)
    assert Image.open(last).height < Image.open(first).height


def test_what_could_not_be_read_is_not_drawn(tmp_path: Path) -> None:
    broken = Prediction(path="broken.jpg", error="not an image")
    assert draw_sheets([broken], tmp_path / "sheet.png") == []
    assert not any(tmp_path.iterdir())
    alone = sheet(tmp_path, prediction())
    assert sheet(tmp_path, broken, prediction()).tobytes() == alone.tobytes()


def test_files_are_read_again_and_drawn_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / "photo.png"
    Image.new("RGB", (400, 100), "magenta").save(path, exif=turned)
    drawn = np.asarray(sheet(tmp_path, prediction(path=str(path), image=None)))
    rows, columns = np.nonzero((drawn == ImageColor.getrgb("magenta")).all(-1))
    assert np.ptp(rows) > 3 * np.ptp(columns)


def test_folders_are_made_and_other_formats_refused(tmp_path: Path) -> None:
    (path,) = draw_sheets([prediction()], tmp_path / "new" / "folder" / "sheet.png")
    assert path.is_file()
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_sheets([prediction()], tmp_path / "sheet.jpg")
