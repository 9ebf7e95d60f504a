"""Reading of text files: which files, their blocks with plain line ends, and errors with a position."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from ..files import open_regular
from ..sources.folder import VAL_NAMES

SUFFIXES = (".txt", ".md")
BLOCK = 1 << 20  # bytes


def find_sides(root: str) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and those to validate on; the latter are [] if they are not split.

    Args:
        root: A file, or a folder.

    Raises:
        DataError: There is nothing there, no text, or only one side.
    """
    top = Path(root)
    if top.is_file():
        return [top], []
    if not top.exists():
        raise DataError(f"there is no file or folder {root}.")
    if not top.is_dir():
        raise DataError(f"{root} is neither a file nor a folder.")
    train = top / "train"
    val = next((top / name for name in VAL_NAMES if (top / name).is_dir()), None)
    if train.is_dir() and val is not None:
        return find_files(train), find_files(val)
    return find_files(top), []


def find_files(folder: Path) -> list[Path]:
    """Return the text files of a folder and its subfolders in the order of their paths, without hidden ones.

    Raises:
        DataError: There are none.
    """
    found = [
        Path(directory, name)
        for directory, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in Path(directory, name).relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"{folder} has no {' or '.join(SUFFIXES)} file; a single file may have any name.")
    return sorted(found)


def byte_blocks(files: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield the content of files in blocks, of which none ends inside a line end.

    Yields:
        The file, the position of the block in it in bytes, and the block.
    """
    for path in files:
        position = 0
        with open_regular(path) as file:
            while block := bytearray(file.read(BLOCK)):
                while block.endswith(b"\r") and (following := file.read(1)):
                    block += following
                yield path, position, bytes(block)
                position += len(block)


def plain_bytes(position: int, block: bytes) -> bytes:
    """Return a block with line feeds as line ends, and at position 0 without a byte order mark."""
    block = block.removeprefix(codecs.BOM_UTF8) if position == 0 else block
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def plain_text(position: int, text: str) -> str:
    """Return a text with line feeds as line ends, and at position 0 without a byte order mark."""
    text = text.removeprefix("\ufeff") if position == 0 else text
    return text.replace("\r\n", "\n").replace("\r", "\n")


class BlockDecoder:
    """Decodes the blocks of files, which may end inside a character, as UTF-8."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._end = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, path: Path, position: int, block: bytes) -> str:
        """Return the text of a block with line feeds as line ends.

        Raises:
            DataError: The file, or the one before it, is not UTF-8.
        """
        if path != self._path:
            self.end()
            self._path = path
        self._end = position + len(block)
        return plain_text(position, self._decode(block, final=False))

    def end(self) -> None:
        """Check that the newest file does not end inside a character.

        Raises:
            DataError: It does.
        """
        self._decode(b"", final=True)
        self._decoder.reset()

    def _decode(self, block: bytes, *, final: bool) -> str:
        try:
            return self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            position = self._end - len(error.object) + error.start
            raise DataError(
                f"{self._path} is not UTF-8: byte {position:,} is 0x{error.object[error.start]:02x} "
                f"({error.reason}); save it as UTF-8, or train a model of bytes with data.tokens=bytes."
            ) from None
