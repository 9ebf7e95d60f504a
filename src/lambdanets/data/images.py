"""Decoding of image files of any kind to upright RGB or grey images."""

from __future__ import annotations

import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from os import SEEK_CUR, SEEK_END, PathLike
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from .config import MAX_PIXELS
from .errors import DataError
from .files import open_regular

# Suffixes of formats that every build of Pillow reads, and of those that need a feature of it.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
SUFFIXES_BY_FEATURE = {"webp": (".webp",), "avif": (".avif",), "jpg_2000": (".jp2", ".j2k")}

# Exceptions of PIL's decoders for damaged files; any other is a bug of this package and propagates.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
ORIENTATION = 0x0112  # the EXIF tag
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ROWS_AT_ONCE = 256  # converted together: a whole large scan in a wider dtype would fill the memory
# Behind FF, a byte 0 stands for FF in the data, and D0 to D7 are restart markers inside a scan.
JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of text and of a colour profile
# Messages of Pillow, newer and older, for a PNG whose text chunks exceed its limit.
TOO_MUCH_TEXT = re.compile("MAX_TEXT|Data Too Large")
# Held while Pillow's limit of pixels, which is global for the process, is lifted.
_PIXEL_LIMIT_LOCK = threading.Lock()


def _supported(feature: str) -> bool:
    """Return whether Pillow was built with a feature; older versions lack its name."""
    return (feature in features.modules or feature in features.codecs) and bool(features.check(feature))


IMAGE_SUFFIXES = (
    *SUFFIXES,
    *(suffix for name, some in SUFFIXES_BY_FEATURE.items() if _supported(name) for suffix in some),
)


class NamedFile(BytesIO):
    """An image file in memory, with a name for messages."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def read_image(
    source: str | PathLike[str] | IO[bytes],
    *,
    in_chans: int = 3,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Read a complete image file as an upright RGB or grey image.

    The EXIF orientation is applied. 16-bit images are scaled to 8 bits, not clipped. Transparent pixels are
    composed with white. Of an animation the first frame is taken. A file that ends too early is never
    read in part, nor a PNG whose checksums are wrong; flipped bits inside a JPEG cannot be detected, as the
    format has no checksum. Data behind the end of an image, such as the video of a motion photo, are ignored.

    Args:
        source: a path or an open binary file.
        in_chans: 3 for RGB, 1 for grey.
        size: (width, height) of the annotated image, whose coordinates must match the pixels: an image that
            is stored in this size is not rotated.
        max_pixels: a larger image is refused before it is decoded.

    Returns:
        The image, of mode RGB or L, in memory (the file is closed).

    Raises:
        DataError: the file cannot be read, is no image, ends too early, is too large, or is of another size;
            the message names it.
    """
    with _naming(source), _opened(source) as file:
        image = _decoded(file, max_pixels)
        if image.size != size:
            image = upright(image)
            _check_size(image.size, size)
        return as_mode(image, in_chans)


def check_size(
    source: str | PathLike[str] | IO[bytes], size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> None:
    """Check, by its header alone, that an image has a size (width, height), as stored or upright.

    Raises:
        DataError: as from `read_image`, for faults that the header shows.
    """
    with _naming(source), _opened(source) as file, header(file, max_pixels) as image:
        if image.size != size:
            rotated = image.getexif().get(ORIENTATION, 1) in range(5, 9)
            width, height = image.size
            _check_size((height, width) if rotated else (width, height), size)


def _check_size(found: tuple[int, int], size: tuple[int, int] | None) -> None:
    if size is not None and found != size:
        (width, height), (listed_width, listed_height) = found, size
        raise ValueError(
            f"the image is {width} pixels wide and {height} high, and is listed as {listed_width} wide and "
            f"{listed_height} high"
        )


def stored_size(source: str | PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (width, height) of an image as it is stored, from its header alone.

    Raises:
        DataError: as from `read_image`, for faults that the header shows.
    """
    with _naming(source), _opened(source) as file, header(file, max_pixels) as image:
        return image.size


def check_image(source: str | PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> None:
    """Check that `read_image` can read a file.

    JPEGs are decoded at an eighth of their size, which is faster and finds the same faults.

    Raises:
        DataError: as from `read_image`.
    """
    with _naming(source), _opened(source) as file:
        as_mode(_decoded(file, max_pixels, small=True), 3)


def read_values(source: str | PathLike[str] | IO[bytes], *, as_grey: bool = False) -> np.ndarray:
    """Read the values of a mask, an image file of one channel, as they are stored.

    Args:
        source: a path or an open binary file.
        as_grey: convert palettes and single bits to grey values from 0 to 255.

    Returns:
        Integers of shape [height, width]; of a palette the indices of its colours, unless `as_grey`.

    Raises:
        DataError: the file cannot be read, ends too early, or has several channels or pages, or fractions;
            the message names it.
    """
    with _naming(source), _opened(source) as file:
        image = _decoded(file, MAX_PIXELS)
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it holds {pages} pages, and a mask has one")
        values = np.asarray(image.convert("L") if as_grey and image.mode in ("1", "P") else image)
        if values.dtype.kind == "f" and np.array_equal(values, values.round().clip(-(2**24), 2**24)):
            # ImageJ writes label images as floats.
            values = values.astype(np.int32)
        if values.ndim != 2 or values.dtype.kind not in "iub":
            raise ValueError("a mask has one channel of whole numbers")
        return values


def _opened(source: str | PathLike[str] | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return open_regular(source) if isinstance(source, str | PathLike) else nullcontext(source)


@contextmanager
def _naming(source: str | PathLike[str] | IO[bytes]) -> Iterator[None]:
    """Raise a DataError that names the file in place of a decoder's error."""
    try:
        yield
    except UNREADABLE as error:
        name = source if isinstance(source, str | PathLike) else getattr(source, "name", "an image")
        raise DataError(f"cannot read {name}: {reason(error)}.") from error


def _decoded(file: IO[bytes], max_pixels: int, *, small: bool = False) -> Image.Image:
    # Another library may have set this to True: then the missing part of a truncated image is grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image = _loaded(file, max_pixels, small)
    except ValueError as error:
        image = _loaded(_without_text(file, error), max_pixels, small)
    if image.format in ("JPEG", "MPO"):
        _check_end(file)
    elif image.format == "PNG":
        _check_sums(file)
    return image


def _loaded(file: IO[bytes], max_pixels: int, small: bool) -> Image.Image:
    image = _identified(file, max_pixels)
    if image.format == "EPS":
        raise ValueError("EPS is a program that draws an image; save the image as PNG")
    if small:
        image.draft("RGB", (1, 1))
    image.load()
    return image


def header(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        ValueError: it has too many pixels. A file that is no image raises any exception of `UNREADABLE`.
    """
    try:
        return _identified(file, max_pixels)
    except ValueError as error:
        return _identified(_without_text(file, error), max_pixels)


def _identified(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Read the header of an image, and refuse one with too many pixels."""
    try:
        image = Image.open(file)
    except Image.DecompressionBombError:
        file.seek(0)
        # Pillow's limit is global for the process: it is lifted only for larger images, and only while their
        # header is read.
        with _PIXEL_LIMIT_LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"its {image.width} x {image.height} = {image.width * image.height:,} pixels are more than "
            f"the limit of {max_pixels:,}; raise data.max_pixels (predict: --max-pixels) if it is to be read"
        )
    return image


def _without_text(file: IO[bytes], error: ValueError) -> IO[bytes]:
    """Return a PNG file without its texts and its colour profile, if Pillow refused it for their size.

    Texts, such as the metadata of a graphics program, do not affect the pixels. Damaged chunks are copied
    unchanged, so that decoding finds the damage. Any error with another cause is raised again.
    """
    if not TOO_MUCH_TEXT.search(str(error)):
        raise error
    file.seek(0)
    whole = file.read()
    start = end = len(PngImagePlugin._MAGIC)
    parts = [whole[:start]]
    while end < len(whole):
        start, end = end, end + 12 + int.from_bytes(whole[end : end + 4], "big")
        if whole[start + 4 : start + 8] not in PNG_TEXT:
            parts.append(whole[start:end])
    return BytesIO(b"".join(parts))


def _check_end(file: IO[bytes]) -> None:
    """Refuse a JPEG that ends in zeros, as after an interrupted copy: zeros decode to grey."""
    file.seek(-1, SEEK_END)
    if file.read(1) == b"\0":
        file.seek(0)
        if not _ends(file.read()):
            raise OSError("image file is truncated and filled up with zeros")


def _check_sums(file: IO[bytes]) -> None:
    """Refuse a PNG whose pixels differ from their checksums, which Pillow does not check."""
    file.seek(len(PngImagePlugin._MAGIC))
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind != b"IDAT":
            file.seek(length + 4, SEEK_CUR)
        elif zlib.crc32(file.read(length), zlib.crc32(kind)) != int.from_bytes(file.read(4), "big"):
            raise OSError("image file is damaged: a checksum is wrong")


def _ends(jpeg: bytes) -> bool:
    """Return whether the first image of a JPEG file has an end marker, which other data may follow."""
    offset = 2  # length of the start marker
    while (marker := JPEG_MARKER.search(jpeg, offset)) is not None:
        if marker[1] == b"\xd9":
            return True
        offset = marker.end()
        # All markers but 01 are followed by the length of their segment, which is skipped.
        if marker[1] != b"\x01":
            offset += int.from_bytes(jpeg[offset : offset + 2], "big")
    return False


def reason(error: BaseException) -> str:
    """Return why a file could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or an unknown or damaged format"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image according to its EXIF orientation."""
    try:
        rotated = image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except UNREADABLE:
        return image  # a broken EXIF block does not affect the pixels
    return ImageOps.exif_transpose(image) if rotated else image


def as_mode(image: Image.Image, in_chans: int) -> Image.Image:
    """Convert an image of any mode to RGB (`in_chans` 3) or L (1).

    Raises:
        ValueError: the image holds floating-point values, or integers beyond 16 bits: which value is white is
            not defined.
    """
    wanted = "RGB" if in_chans == 3 else "L"
    if image.mode == wanted and "transparency" not in image.info:
        return image
    if image.mode in SIXTEEN_BIT:
        image = from_sixteen_bits(image)
    elif image.mode == "F":
        raise ValueError(
            "floating-point pixels have no defined white level; save the image with 8 or 16 bits"
        )
    elif image.mode[-1] in "Aa" or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(wanted)


def from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey image to 8 bits: 0 stays 0 and 65535 becomes 255."""
    scaled = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        rows = slice(top, min(top + ROWS_AT_ONCE, image.height))
        values = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("integer pixels beyond 16 bits have no defined white; save it with 8 or 16 bits")
        scaled[rows] = (values.astype(np.uint32) * 255 + 32895) >> 16  # divided by 257, and rounded
    return Image.fromarray(scaled)
