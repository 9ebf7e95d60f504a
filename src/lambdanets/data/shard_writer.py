"""Writing of any source into shards: tar archives of WebDataset samples, for fast sequential reading."""

from __future__ import annotations

import io
import math
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lambdanets.utils.files import naming
from lambdanets.utils.processes import locked
from lambdanets.utils.progress import MANY, Progress, progress_bar
from lambdanets.utils.text import json_text

from .config import DataConfig
from .errors import DataError
from .image_source import ImageSource
from .randomness import permutation
from .sources import get_source, open_source
from .sources.protocol import StreamedSource
from .sources.tar import CLASSES
from .sources.tar_index import write_index
from .sources.tar_scan import LABEL

END_MARKER_BYTES = 2 * tarfile.BLOCKSIZE  # zeros behind the last member of an archive
TIMM_INFO = "_info.json"
TIMM_SPLITS = {"train": "train", "val": "validation"}
# Suffixes of image files that webdataset and timm do not look for -> one that they do.
SHARD_SUFFIXES = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".mpo": ".jpg"}


@dataclass(frozen=True)
class Sharded:
    """The result of `write_shards`.

    Args:
        images: number of images by side, "train" and "val".
        shards: number of shards by side.
        classes: names, in the order of the class numbers in the .cls files.
    """

    images: dict[str, int]
    shards: dict[str, int]
    classes: tuple[str, ...]


def write_shards(
    config: DataConfig,
    out: str | os.PathLike[str],
    *,
    images: int = 10_000,
    megabytes: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharded:
    """Write both sides of a source as train-000000.tar, ..., val-000000.tar, ...

    Image files are copied unchanged; decoded images of a source are written as PNGs. Files are not decoded:
    a damaged one is found when the shards are checked. The same source and seed give the same bytes.

    Args:
        config: names the source; it must not be streamed.
        out: the folder to write, which may exist if it is empty. It appears when all shards are complete.
        images: highest number in a shard.
        megabytes: highest size of a shard, in units of 10^6 bytes; a larger image gets its own shard. None
            sets no limit.
        seed: seed of the order of the images, and of the split where the source has none.
        progress: called with (images done, images in all); None shows a bar in a terminal if there are many.

    Returns:
        The numbers of images and shards.

    Raises:
        DataError: the source cannot be used, or the folder is not empty.
        InUseError: another process writes the same folder.
        ValueError: `images` or `megabytes` is below 1.

    Example:
        >>> write_shards(DataConfig(source="folder:/data/imagenet"), "/data/imagenet-shards")
    """
    if images < 1:
        raise ValueError(f"images of a shard must be 1 or more, got {images}.")
    if megabytes is not None and megabytes < 1:
        raise ValueError(f"megabytes of a shard must be 1 or more, got {megabytes}.")
    if isinstance(get_source(config.source), StreamedSource):
        raise DataError(f"{config.source!r} is streamed and cannot be shuffled into shards.")
    folder = Path(os.path.realpath(Path(out).expanduser()))  # a link is not replaced
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists already and is not an empty folder; shards are written into a new one."
        )
    if config.multi_label:
        raise DataError("shards store one label for each image; images with several stay in their table.")
    source = open_source(config, seed=seed)
    sides = {"train": source.train, "val": source.val}
    total = sum(len(side) for side in sides.values())
    bar = nullcontext(progress) if progress else progress_bar("Writing shards", total, least=MANY)
    lengths: dict[str, list[int]] = {}
    with _renamed_when_complete(folder) as unfinished, bar as report:
        done = 0
        for name, side in sides.items():
            order = permutation(seed, 0, len(side)).tolist()
            with closing(_Shards(unfinished, name, images, megabytes)) as shards:
                for number, index in enumerate(order):
                    shards.add(_sample(f"{number:08d}", side, index))
                    done += 1
                    report(done, total)
            lengths[name] = shards.lengths
        _write_json(unfinished / CLASSES, list(source.classes))
        _write_json(
            unfinished / TIMM_INFO,
            {"splits": {TIMM_SPLITS[name]: _timm_split(name, lengths[name]) for name in sides}},
        )
        found = write_index(
            str(unfinished),
            [_shard_name(name, number) for name in sides for number in range(len(lengths[name]))],
        )
        if len(found) < total:
            raise DataError(
                f"{total - len(found)} of the {total} images of {config.source!r} have a file format that "
                "cannot be read from shards."
            )
    return Sharded(
        {name: len(side) for name, side in sides.items()},
        {name: len(each) for name, each in lengths.items()},
        source.classes,
    )


@contextmanager
def _renamed_when_complete(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `folder` if the block succeeds, and removed if it fails."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    with locked(folder.with_name(f".{folder.name}.lock"), str(folder)):
        unfinished.mkdir(parents=True)
        try:
            with naming(folder):
                yield unfinished
                os.replace(unfinished, folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _shard_name(side: str, number: int) -> str:
    return f"{side}-{number:06d}.tar"


class _Shards:
    """Writes the shards of one side; a sample that does not fit into the open shard starts the next one."""

    def __init__(self, folder: Path, side: str, images: int, megabytes: int | None):
        self.folder, self.side, self.images = folder, side, images
        self.limit = math.inf if megabytes is None else megabytes * 10**6
        self.lengths: list[int] = []  # images in each shard
        self.size = 0  # bytes of the members of the open shard
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: dict[str, bytes]) -> None:
        """Write a sample: its files, as contents by names."""
        size = sum(tarfile.BLOCKSIZE + _padded(len(part), tarfile.BLOCKSIZE) for part in sample.values())
        total = _padded(self.size + size + END_MARKER_BYTES, tarfile.RECORDSIZE)
        if self._tar is None or self.lengths[-1] == self.images or total > self.limit:
            self._tar = self._next()
        for name, part in sample.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            self._tar.addfile(entry, io.BytesIO(part))
        self.lengths[-1] += 1
        self.size += size

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def _next(self) -> tarfile.TarFile:
        self.close()
        path = self.folder / _shard_name(self.side, len(self.lengths))
        self.lengths.append(0)
        self.size = 0
        return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def _sample(key: str, images: ImageSource, index: int) -> dict[str, bytes]:
    """Return the contents of an image file and of its .cls file, by their names in the archive."""
    content, suffix = images.encoded(index)
    label = str(int(images.targets[index])).encode()
    return {key + SHARD_SUFFIXES.get(suffix, suffix): content, f"{key}.{LABEL}": label}


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _timm_split(side: str, lengths: list[int]) -> dict[str, object]:
    """Return the entry of a split in _info.json, which timm's reader of shards needs."""
    return {
        "name": TIMM_SPLITS[side],
        "num_samples": sum(lengths),
        "filenames": [_shard_name(side, number) for number in range(len(lengths))],
        "shard_lengths": lengths,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json_text(content, indent=1) + "\n", encoding="utf-8")
