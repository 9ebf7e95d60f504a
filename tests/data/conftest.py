"""Small image folders, written where a test runs."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    """Noise that differs from seed to seed, of a size (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Make an image of noise, `picture(seed, (width, height))`."""
    return noise


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write `{"train/cat": 3, ...}` as folders of that many PNG files, and return the root."""

    def write(counts: dict[str, int], *, size: tuple[int, int] = (12, 12)) -> Path:
        root = tmp_path / "images"
        for number, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for index in range(count):
                noise(1000 * number + index, size).save(root / name / f"{index:03d}.png")
        return root

    return write


@pytest.fixture
def truncate() -> Callable[[Path], None]:
    """Cut a file in half."""

    def cut(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    return cut


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """Write members, a content or the path of a file for each name, as an archive; return its path."""

    def write(name: str, members: dict[str, bytes | Path], *, form: int = tarfile.PAX_FORMAT) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as tar:
            for member, content in members.items():
                content = content if isinstance(content, bytes) else content.read_bytes()
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def negative() -> Callable[[Path, str], int]:
    """Let the header of an archive's last member say that its size is -512; return where the header is."""

    def change(archive: Path, name: str) -> int:
        content = bytearray(archive.read_bytes())
        start = content.rindex(name.encode())
        header = content[start : start + tarfile.BLOCKSIZE]
        header[124:136] = (2**96 - 512).to_bytes(12, "big")  # as GNU tar writes numbers
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[start : start + tarfile.BLOCKSIZE] = header
        archive.write_bytes(content)
        return start

    return change


def png(seed: int) -> bytes:
    """The file of an image of noise."""
    file = io.BytesIO()
    noise(seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def samples() -> Callable[..., dict[str, bytes]]:
    """Make samples of WebDataset, a PNG and a .cls for each label."""

    def make(labels: Sequence[object], *, first: int = 0) -> dict[str, bytes]:
        members = {}
        for index, label in enumerate(labels, start=first):
            members |= {f"{index:06d}.png": png(index), f"{index:06d}.cls": str(label).encode()}
        return members

    return make


def rectangle(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    """Box, polygon and area of a rectangle, as COCO has them."""
    right, bottom = left + width, top + height
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"bbox": [left, top, width, height], "segmentation": [polygon], "area": width * height}


@pytest.fixture
def coco_entry() -> Callable[..., dict[str, Any]]:
    """Make an annotation of a rectangle, `coco_entry(id, image_id, left, top, width, height)`."""

    def make(number: int, image: int, *place: int, category: int = 3, **more: object) -> dict[str, Any]:
        own = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
        return own | rectangle(*place) | more

    return make


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., Path]:
    """Write a COCO folder, `write_coco(train=(sizes, annotations), val=...)`, and return its root.

    Image i of a side has the id i + 1, the name f"{i + 1:03d}.png" and the i-th size (width, height).
    """

    def write(
        *, categories: dict[int, str] | None = None, **sides: tuple[Sequence[tuple[int, int]], Sequence[Any]]
    ) -> Path:
        root = tmp_path / "coco"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        names = categories or {3: "cat", 7: "dog"}
        for side, (sizes, annotations) in sides.items():
            (root / side).mkdir(exist_ok=True)
            images = []
            for number, size in enumerate(sizes, start=1):
                name = f"{number:03d}.png"
                noise(1000 * len(side) + number, size).save(root / side / name)
                images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            content = {
                "images": images,
                "annotations": list(annotations),
                "categories": [{"id": number, "name": name} for number, name in names.items()],
            }
            (root / "annotations" / f"instances_{side}.json").write_text(json.dumps(content))
        return root

    return write
