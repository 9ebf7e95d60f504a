"""Any part of a tiled TIFF has the pixels of the image that is read as a whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.data import DataError, read_image
from lambdanets.data.slides import Slide

tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")

HEIGHT, WIDTH = 150, 211
FORMS = {
    "rgb": ((HEIGHT, WIDTH, 3), np.uint8, {"photometric": "rgb", "tile": (64, 32)}),
    "grey": ((HEIGHT, WIDTH), np.uint8, {"tile": (32, 64), "compression": "zlib", "predictor": True}),
    "grey of 16 bits": ((HEIGHT, WIDTH), np.uint16, {"tile": (64, 64), "compression": "zlib"}),
    "strips": ((HEIGHT, WIDTH, 3), np.uint8, {"photometric": "rgb", "rowsperstrip": 7}),
    "one strip": ((HEIGHT, WIDTH, 3), np.uint8, {"photometric": "rgb", "rowsperstrip": 2**32 - 1}),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "slide.tif"


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_those_of_the_whole_image(file: Path, form: str) -> None:
    shape, dtype, options = FORMS[form]
    draw = np.random.default_rng(0)
    tifffile.imwrite(file, draw.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True), **options)
    whole = np.asarray(read_image(file)).transpose(2, 0, 1)
    with Slide(file) as slide:
        assert slide.size == (HEIGHT, WIDTH)
        for _ in range(20):
            top, left = (int(draw.integers(0, side)) for side in slide.size)
            bottom, right = int(draw.integers(top, HEIGHT)) + 1, int(draw.integers(left, WIDTH)) + 1
            part = slide.region(top, left, bottom, right)
            np.testing.assert_array_equal(part.numpy(), whole[:, top:bottom, left:right])


def test_a_shrunk_image_is_that_of_the_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambdanets.data.slides.BAND", 20)
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    tifffile.imwrite(file, pixels, photometric="rgb", tile=(32, 32))
    with Slide(file) as slide:
        shrunk = slide.shrunk(60)
    assert max(shrunk.size) <= 60
    np.testing.assert_array_equal(np.asarray(shrunk), np.asarray(Image.fromarray(pixels).reduce(4)))


def test_the_full_resolution_of_a_pyramid_is_read(file: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    with tifffile.TiffWriter(file) as writer:
        writer.write(pixels, photometric="rgb", tile=(32, 32), subifds=1)
        writer.write(pixels[::2, ::2], photometric="rgb", tile=(32, 32), subfiletype=1)
    with Slide(file) as slide:
        np.testing.assert_array_equal(slide.region(0, 0, HEIGHT, WIDTH).numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("pixels", "options", "sentence"),
    [
        (np.zeros((20, 30), np.float32), {}, "its pixels are 1 x float32"),
        (np.zeros((20, 30, 4), np.uint8), {"photometric": "rgb"}, "its pixels are 4 x uint8"),
        (np.zeros((20, 30), np.uint8), {"photometric": "miniswhite"}, "stored as miniswhite"),
        (np.zeros((3, 20, 30), np.uint8), {"photometric": "rgb"}, "stored one behind the other"),
    ],
)
def test_other_pixels_are_refused(file: Path, pixels: np.ndarray, options: dict, sentence: str) -> None:
    tifffile.imwrite(file, pixels, **options)
    with pytest.raises(DataError, match=f"it cannot be read in tiles: .*{sentence}"):
        Slide(file)


def test_one_huge_block_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambdanets.data.slides.CACHE_BYTES", 500)
    tifffile.imwrite(file, np.zeros((20, 30), np.uint8), rowsperstrip=20)
    with pytest.raises(DataError, match="save it with tiles"):
        Slide(file)


def test_a_damaged_block_is_named(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((64, 64), np.uint8), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(file) as opened:
        offset = opened.pages[0].dataoffsets[2]
    with file.open("r+b") as damaged:
        damaged.seek(offset)
        damaged.write(b"\0" * 6)
    with Slide(file) as slide:
        assert not slide.region(0, 0, 32, 64).any()
        with pytest.raises(DataError, match=r"cannot read .*slide\.tif: block 2 is damaged"):
            slide.region(0, 0, 64, 64)


def test_no_image_is_one_sentence(file: Path) -> None:
    file.write_bytes(b"II*\0nothing")
    with pytest.raises(DataError, match="it cannot be read in tiles: "):
        Slide(file)
