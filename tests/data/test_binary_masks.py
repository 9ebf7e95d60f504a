"""Masks with one value for all objects: each connected part is an object."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lambdanets.cli.masks_to_coco import run as run_verb
from lambdanets.data import Converted, DataWarning, masks_to_coco


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two images; the first has three blobs, of which two touch by a corner, the second one blob."""
    binary = np.zeros((2, 12, 15), bool)
    binary[0, 1:4, 1:4] = binary[0, 4:6, 4:8] = binary[0, 8:11, 9:14] = binary[1, 3:9, 3:9] = True
    for number, mask in enumerate(binary):
        write(tmp_path / "cells", f"{number}.png", mask * np.uint8(255))
    return tmp_path / "cells"


def write(root: Path, name: str, values: np.ndarray) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(values.shape, np.uint8)).save((root / "images" / name).with_suffix(".png"))
    Image.fromarray(values).save(root / "masks" / name)


def annotated(out: Path) -> list[list[tuple[int, ...]]]:
    """Return the top, left, bottom and right edge and the pixels of each object, by image."""
    content = json.loads(out.read_text())
    found: dict[int, list[tuple[int, ...]]] = {each["id"]: [] for each in content["images"]}
    for entry in content["annotations"]:
        rows, columns = np.nonzero(coco_mask.decode(entry["segmentation"]))
        assert entry["area"] == len(rows)
        edges = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1, len(rows))
        found[entry["image_id"]].append(tuple(map(int, edges)))
    assert [entry["id"] for entry in content["annotations"]] == [*range(1, len(content["annotations"]) + 1)]
    return list(found.values())


def test_parts_become_objects(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_verb(cells, out=cells / "all.json")
    assert annotated(cells / "all.json") == [[(1, 1, 6, 8, 17), (8, 9, 11, 14, 15)], [(3, 3, 9, 9, 36)]]
    printed = capsys.readouterr().out
    assert "2 images with 3 objects" in printed
    assert "the masks hold one value besides 0: each connected part of 1 mask became an object" in printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_verb(cells, out=cells / "whole.json", split="off")
    assert annotated(cells / "whole.json") == [[(1, 1, 11, 14, 32)], [(3, 3, 9, 9, 36)]]
    assert "connected part" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "values", [np.uint8(1), np.uint16(65_535), np.int32(1), np.bool_(True)], ids=lambda each: each.dtype.name
)
def test_any_value_of_any_integer_type_is_binary(cells: Path, values: Any) -> None:
    for path in (cells / "masks").iterdir():
        inside = np.asarray(Image.open(path)) > 0
        path.unlink()
        write(cells, f"{path.stem}.tif", inside * values)
    assert masks_to_coco(cells, cells / "all.json") == Converted(2, 3, split=1)


def test_numbered_masks_are_split_on_demand_only(cells: Path) -> None:
    numbered = np.zeros((12, 15), np.uint16)
    numbered[1:3, 1:3] = numbered[6:8, 1:4] = 1
    numbered[1:3, 3:6] = 700
    write(cells, "0.png", numbered)
    with pytest.warns(DataWarning, match=r"1 of 3 objects have parts.*\n.*\n.* --split on"):
        assert masks_to_coco(cells, cells / "whole.json") == Converted(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masks_to_coco(cells, cells / "all.json", split=True) == Converted(2, 4, split=1)
    assert annotated(cells / "all.json")[0] == [(1, 1, 3, 3, 4), (6, 1, 8, 4, 6), (1, 3, 3, 6, 6)]


def test_masks_with_a_threshold_are_split_on_demand_only(cells: Path) -> None:
    with pytest.warns(DataWarning, match="1 of 2 objects have parts"):
        assert masks_to_coco(cells, cells / "whole.json", threshold=128) == Converted(2, 2)
    assert masks_to_coco(cells, cells / "all.json", threshold=128, split=True) == Converted(2, 3, split=1)


def test_a_file_for_each_object_is_split_on_demand_only(cells: Path, tmp_path: Path) -> None:
    one = tmp_path / "separate" / "one"
    for folder in ("images", "masks"):
        (one / folder).mkdir(parents=True)
        (cells / folder / "0.png").rename(one / folder / "0.png")
    assert masks_to_coco(one.parent, tmp_path / "whole.json") == Converted(1, 1)
    assert masks_to_coco(one.parent, tmp_path / "all.json", split=True) == Converted(1, 2, split=1)
