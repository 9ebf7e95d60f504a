"""Every kind of image file becomes an upright RGB or grey picture, or is named in one sentence."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from lambdanets.data import DataConfig, DataError, read_image
from lambdanets.data.image_source import DatasetImages
from lambdanets.data.images import as_mode, check_image, check_size

GRADIENT = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_rgb_is_left_alone(tmp_path: Path) -> None:
    original = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(original).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.mode == "RGB"
    assert read.size == (7, 5)
    np.testing.assert_array_equal(np.asarray(read), original)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_grey(tmp_path: Path, in_chans: int) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    read = pixels(read_image(tmp_path / "a.png", in_chans=in_chans))
    expected = GRADIENT if in_chans == 1 else np.repeat(GRADIENT[..., None], 3, axis=2)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, kind: str) -> None:
    alpha = np.array([[255, 0], [102, 255]], np.uint8)
    ink = np.full((2, 2), 50, np.uint8)
    path = tmp_path / "a.png"
    if kind == "palette":
        image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
        image.putpalette([50, 50, 50] * 3)
        image.save(path, transparency=bytes([255, 0, 102]))
    else:
        channels = [ink] * (3 if kind == "RGBA" else 1) + [alpha]
        Image.merge(kind, [Image.fromarray(channel) for channel in channels]).save(path)
    expected = (ink.astype(float) * alpha + 255.0 * (255 - alpha)) / 255
    for channel in np.moveaxis(pixels(read_image(path)), 2, 0):
        np.testing.assert_allclose(channel, expected, atol=1)


def test_colour_key_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", transparency=35)
    read = pixels(read_image(tmp_path / "a.png"))
    assert (read[GRADIENT == 35] == 255).all()
    assert (read[GRADIENT != 35] == GRADIENT[GRADIENT != 35][:, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 1000], [32768, 65278, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    for in_chans in (1, 3):
        read = pixels(read_image(tmp_path / f"a.{suffix}", in_chans=in_chans))
        np.testing.assert_array_equal(read.reshape(2, 3, -1)[..., 0], np.round(values / 257).astype(int))


def test_every_value_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(-1, 64)  # higher than what is converted at a time
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.round(values / 257).astype(int)
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "a.png", in_chans=1)), expected)


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 30000, 65535]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n65535\n" + values.tobytes())
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "a.pgm", in_chans=1)), [[0, 117, 255]])


def test_one_bit_and_palette(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "a.png", in_chans=1)), (GRADIENT > 100) * 255)
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "b.gif")
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "b.gif")), [[[255, 0, 0], [0, 0, 255]]])


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg")
    assert read.mode == "RGB"
    np.testing.assert_allclose(pixels(read)[4, 4], [255, 0, 0], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=exif)
    read = pixels(read_image(tmp_path / "a.png", in_chans=1))
    turned = {
        1: GRADIENT,
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.T,
        6: GRADIENT[::-1].T,  # its left side is the top of the scene
        7: GRADIENT[::-1, ::-1].T,
        8: GRADIENT[:, ::-1].T,
    }
    np.testing.assert_array_equal(read, turned[orientation])


def test_broken_exif_does_not_refuse_whole_pixels(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "a.png", in_chans=1)), GRADIENT)


def photo(suffix: str) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "bmp", "tiff", "webp", "gif"])
@pytest.mark.parametrize("tolerant", [False, True], ids=["", "after another library allowed truncation"])
def test_truncated_files_are_never_half_read(
    tmp_path: Path, suffix: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(photo(suffix)[: len(photo(suffix)) // 2])
    with pytest.raises(DataError, match=f"cannot read .*half.{suffix}: [^\n]+\\.$"):
        read_image(path)


def test_zero_filled_tail_of_a_jpeg(tmp_path: Path) -> None:
    whole = photo("jpeg")
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole)))
    for read in (read_image, check_image):
        with pytest.raises(DataError, match=r"a\.jpg: image file is truncated and filled up with zeros"):
            read(path)
    path.write_bytes(whole + bytes(7))  # padding behind the end is harmless
    assert read_image(path).size == (40, 40)


@pytest.mark.parametrize("interlaced", [False, True])
def test_flipped_bits_and_a_zero_filled_tail_of_a_png(tmp_path: Path, interlaced: bool) -> None:
    path = tmp_path / "a.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 150, 3), dtype=np.uint8)).save(path, interlace=interlaced)
    content = path.read_bytes()
    first, last = content.index(b"IDAT") + 4, content.rindex(b"IEND") - 8
    for place in rng.integers(first, last, 40).tolist():
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        for damaged in (flipped, content[:place].ljust(len(content), b"\0")):
            path.write_bytes(damaged)
            for read in (read_image, check_image):
                with pytest.raises(DataError, match=r"a\.png"):
                    read(path)


def test_the_check_is_as_strict_as_reading(tmp_path: Path) -> None:
    for suffix in ("jpeg", "png", "bmp", "tiff", "webp", "gif"):
        whole = photo(suffix)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(whole)
        check_image(path)
        for part in (0, 10, len(whole) // 3, len(whole) - 40):
            path.write_bytes(whole[:part])
            with pytest.raises(DataError, match=f"a.{suffix}"):
                check_image(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*a\.jpg: ") as caught:
        read_image(tmp_path / "a.jpg")
    assert "<_io" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: there is no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="is a directory"):
        read_image(tmp_path)


def test_floating_point_is_refused_with_a_hint(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    for read in (read_image, check_image):
        with pytest.raises(DataError, match="no defined white"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("pillows", [100, 1000, 10**9])
def test_the_number_of_pixels_has_a_limit_that_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillows: int
) -> None:
    Image.new("L", (40, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    for read in (read_image, check_image):
        with pytest.raises(
            DataError, match=r"its 40 x 50 = 2,000 pixels are more .* 1,999; raise data\.max_pi"
        ):
            read(tmp_path / "a.png", max_pixels=1999)
        read(tmp_path / "a.png", max_pixels=2000)
    assert pillows == Image.MAX_IMAGE_PIXELS
    assert DataConfig().max_pixels > 192_000_000  # a large scan of one's own


@pytest.mark.parametrize("form", ["iTXt", "zTXt"])
def test_a_png_with_much_text(tmp_path: Path, form: str) -> None:
    info = PngImagePlugin.PngInfo()
    if form == "iTXt":
        info.add_itxt("workflow", "A" * 2**21, zip=True)
    else:
        info.add_text("workflow", "A" * 2**21, zip=True)
    path = tmp_path / "a.png"
    Image.fromarray(GRADIENT).save(path, pnginfo=info)
    with pytest.raises(ValueError, match=r"MAX_TEXT|Too Large"), Image.open(path) as image:
        image.load()  # what there is to get around
    for read in (read_image, check_image):
        read(path)
    check_size(path, (8, 6))
    of_a_data_set = DatasetImages([(path.open("rb"), 0)], np.arange(1), np.zeros(1, np.int64), 1, "set")
    assert of_a_data_set.encoded(0) == (path.read_bytes(), ".png")
    np.testing.assert_array_equal(pixels(read_image(path, in_chans=1)), GRADIENT)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_with_a_film_behind_it(tmp_path: Path, progressive: bool) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    thumbnail = Image.Exif()
    thumbnail[0x010E] = "\xff\xd9"  # an end marker inside a segment is none
    Image.fromarray(noise).save(file, "JPEG", progressive=progressive, exif=thumbnail)
    photo = file.getvalue()
    path = tmp_path / "a.jpg"
    film = b"\0\0\0\x18ftypmp42" + bytes(5000)
    path.write_bytes(photo + film)
    assert read_image(path).size == (40, 40)
    check_image(path)
    path.write_bytes(photo[:-60] + bytes(60) + film)
    for read in (read_image, check_image):
        with pytest.raises(DataError, match="image file is truncated"):
            read(path)


def test_a_program_that_draws_is_not_run(tmp_path: Path) -> None:
    """Pillow would hand EPS, under any name, to Ghostscript."""
    Image.fromarray(GRADIENT).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(
        DataError, match=r"a\.jpg: EPS is a program that draws an image; save the image as PNG"
    ):
        read_image(tmp_path / "a.jpg")


def test_open_files_are_read(tmp_path: Path) -> None:
    file = io.BytesIO(photo("png"))
    assert read_image(file).size == (40, 40)
    with pytest.raises(DataError, match="cannot read an image: "):
        read_image(io.BytesIO(b"nothing"))


def test_as_mode_takes_what_pil_has_in_memory() -> None:
    image = Image.fromarray(GRADIENT)
    assert as_mode(image, 1) is image
    np.testing.assert_array_equal(np.asarray(as_mode(ImageOps.invert(image), 3))[..., 2], 255 - GRADIENT)
