"""Images larger than the memory: TIFF files that are stored in tiles or strips, read in parts."""

from __future__ import annotations

import math
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import DataError
from .images import ORIENTATION, reason

# Decoded blocks that are kept, because tiles of an image overlap: bytes of all of them.
CACHE_BYTES = 2**28
# A part of the image that is read at once to shrink it: rows.
BAND = 512


class Slide:
    """A TIFF image of which any part can be read without decoding the rest.

    Its first page is read, 8 or 16 bits, grey or RGB; of a pyramid this is the full resolution. Values are
    those of `read_image`. A `with` statement closes the file.

    Args:
        path: A TIFF file, also BigTIFF, OME-TIFF of one page, or Aperio's SVS.

    Attributes:
        size: (height, width) in pixels.

    Raises:
        DataError: The package tifffile is missing, or the file cannot be read in parts; the message is a
            clause without the name of the file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            import tifffile  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise DataError(
                "the package tifffile would read a TIFF in tiles: pip install 'lambdanets[slides]'"
            ) from error
        try:
            self._file = tifffile.TiffFile(Path(path))
        except Exception as error:  # damaged files raise errors of many kinds
            raise DataError(f"it cannot be read in tiles: {reason(error)}") from error
        try:
            self._page: Any = self._file.pages[0]
            fault = _fault(self._page)
        except Exception as error:
            fault = reason(error)
        if fault is not None:
            self._file.close()
            raise DataError(f"it cannot be read in tiles: {fault}")
        self._path, page = path, self._page
        self.size: tuple[int, int] = (page.imagelength, page.imagewidth)
        self._block = _block(page)
        held = max(1, CACHE_BYTES // (math.prod(self._block) * page.samplesperpixel))
        self._decoded = lru_cache(maxsize=held)(self._decode)

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exception: object) -> None:
        self._decoded.cache_clear()
        self._file.close()

    def region(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Return the part of the image between two rows and two columns, uint8 RGB [3, height, width].

        Raises:
            DataError: The part is damaged.
        """
        part = np.empty((bottom - top, right - left, 3), np.uint8)
        height, width = self._block
        across = -(-self.size[1] // width)
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                block = self._decoded(row * across + column)
                # The rectangle that block and part share, in pixels of the image.
                first = max(top, row * height), max(left, column * width)
                last = min(bottom, (row + 1) * height), min(right, (column + 1) * width)
                part[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = block[
                    first[0] - row * height : last[0] - row * height,
                    first[1] - column * width : last[1] - column * width,
                ]
        return torch.from_numpy(part).permute(2, 0, 1)

    def shrunk(self, longest: int) -> Image.Image:
        """Return the image with a longer side of at most `longest` pixels, read band by band."""
        height, width = self.size
        factor = -(-max(self.size) // longest)
        drawn = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        rows = max(1, BAND // factor)
        for first in range(0, len(drawn), rows):
            top, bottom = first * factor, min((first + rows) * factor, height)
            band = self.region(top, 0, bottom, width).permute(1, 2, 0).numpy()
            drawn[first : first + rows] = np.asarray(Image.fromarray(band).reduce(factor))
        return Image.fromarray(drawn)

    def _decode(self, index: int) -> np.ndarray:
        """Return a block of the file as uint8 [height, width, 1 or 3]."""
        page = self._page
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        try:
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(length)
            block = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        except Exception as error:
            raise DataError(
                f"cannot read {self._path}: block {index} is damaged: {reason(error)}."
            ) from error
        if block is None:  # a block that the file leaves out is black
            return np.zeros((*self._block, page.samplesperpixel), np.uint8)
        if block.dtype == np.uint16:
            block = (block.astype(np.uint32) * 255 + 32895) >> 16  # divided by 257, and rounded
        return block[0].astype(np.uint8)


def _block(page: Any) -> tuple[int, int]:
    """Return (height, width) of the parts in which a page is stored."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    # A file of one strip may give it more rows than the image has.
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _fault(page: Any) -> str | None:
    """Return why a page cannot be read in parts, or None."""
    colours = page.photometric.name
    if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel not in (1, 3):
        return f"its pixels are {page.samplesperpixel} x {page.dtype}, not 1 or 3 of 8 or 16 bits"
    if colours not in ("MINISBLACK", "RGB", "YCBCR"):
        return f"its colours are stored as {colours.lower()}, not as grey or RGB"
    if page.samplesperpixel > 1 and page.planarconfig != 1:
        return "its colours are stored one behind the other"
    if page.imagedepth > 1 or page.tags.valueof(ORIENTATION, default=1) != 1:
        return "it is turned, or has a depth"
    if math.prod(_block(page)) * page.samplesperpixel > CACHE_BYTES:
        return "it is stored in blocks larger than 256 MiB; save it with tiles"
    return None
