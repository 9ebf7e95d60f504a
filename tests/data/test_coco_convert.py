"""Folders of masks become a COCO json with the same pixels, or every fault in them is named."""

import contextlib
import errno
import io
import json
import os
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lambdanets.cli.errors import UsageError
from lambdanets.cli.masks_to_coco import run as run_verb
from lambdanets.data import CocoConfig, Converted, DataError, DataWarning, masks_to_coco, open_coco_split

Picture = Callable[..., Image.Image]
RNG = np.random.default_rng(0)
SIZE = (13, 11)


def labels(number: int, dtype: type = np.uint8, step: int = 1) -> np.ndarray:
    """Some objects of irregular shape, numbered with gaps, of shape (11, 13)."""
    found = np.zeros((11, 13), dtype)
    for k in range(1, number + 1):
        top, left = RNG.integers(0, 7), RNG.integers(0, 9)
        found[top : top + 4, left : left + 3] = k * step
        found[top + 1, left + 1] = 0
    return found


def masks_of(values: np.ndarray) -> list[np.ndarray]:
    return [values == value for value in sorted(set(values.ravel().tolist()) - {0})]


def save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def read(path: Path) -> tuple[COCO, dict[str, list[np.ndarray]]]:
    """What pycocotools reads: the masks by file name, after checking boxes and areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(path))
    found: dict[str, list[np.ndarray]] = {}
    for image in api.imgs.values():
        found[image["file_name"]] = []
        for entry in api.imgToAnns[image["id"]]:
            mask = api.annToMask(entry)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (entry["bbox"], entry["area"], entry["iscrowd"]) == (box, mask.sum(), 0)
            assert (image["height"], image["width"]) == mask.shape
            found[image["file_name"]].append(mask.astype(bool))
    return api, found


def same(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert found.keys() == expected.keys()
    for name, masks in expected.items():
        assert {mask.tobytes() for mask in found[name]} == {mask.tobytes() for mask in masks}
        assert len(found[name]) == len(masks)


@pytest.fixture
def separate(tmp_path: Path, picture: Picture) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """A folder for each of three images; the last has no objects."""
    root = tmp_path / "nuclei"
    expected: dict[str, list[np.ndarray]] = {}
    for number in range(3):
        name = f"cell{number}"
        (root / name / "images").mkdir(parents=True)
        (root / name / "masks").mkdir()
        picture(number, SIZE).convert("RGBA").save(root / name / "images" / f"{name}.png")
        masks = masks_of(labels(4 if number < 2 else 0))
        for k, mask in enumerate(masks):
            save(mask.astype(np.uint8) * 255, root / name / "masks" / f"{k}.png")
        expected[f"{name}/images/{name}.png"] = masks
    return root, expected


@pytest.fixture
def together(tmp_path: Path, picture: Picture) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """One numbered mask for each of three images, of 8 bits, of 16 bits, and a palette."""
    root = tmp_path / "cells"
    (root / "images").mkdir(parents=True)
    all_labels = [labels(5), labels(3, np.uint16, 1000), labels(4)]
    suffixes = ["png", "jpg", "tif"]
    expected: dict[str, list[np.ndarray]] = {}
    for number, (values, suffix) in enumerate(zip(all_labels, suffixes, strict=True)):
        picture(number, SIZE).save(root / "images" / f"cell{number}.{suffix}")
        save(values, root / "masks" / f"cell{number}.png")
        expected[f"images/cell{number}.{suffix}"] = masks_of(values)
    coloured = Image.frombytes("P", SIZE, all_labels[2].tobytes())
    coloured.putpalette(RNG.integers(0, 256, 768).tolist())
    coloured.save(root / "masks" / "cell2.png")
    return root, expected


@pytest.mark.parametrize("layout", ["separate", "together"])
def test_masks_come_back(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root, expected = request.getfixturevalue(layout)
    out = tmp_path / "new" / "out.json"
    objects = sum(map(len, expected.values()))
    assert masks_to_coco(root, out, classes=("nucleus",)) == Converted(3, objects)
    api, found = read(out)
    same(found, expected)
    assert api.cats == {1: {"id": 1, "name": "nucleus"}}
    content = json.loads(out.read_text())
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, objects + 1))
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]
    data_set = open_coco_split(CocoConfig(source=f"coco:{out}", images=str(root), val_fraction=1.0))
    total = sum(len(data_set.original(index)[1]["masks"]) for index in range(len(data_set)))
    assert total == objects


def test_a_json_beside_the_images_needs_no_folder(
    together: tuple[Path, dict[str, list[np.ndarray]]],
) -> None:
    root, _ = together
    for name in ("annotations/all.json", "all.json"):
        masks_to_coco(root, root / name)
        assert len(open_coco_split(CocoConfig(source=f"coco:{root / name}", val_fraction=1.0))) == 3


@pytest.mark.parametrize("layout", ["separate", "together"])
def test_several_classes_have_folders(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root, expected = request.getfixturevalue(layout)
    for number, folder in enumerate(sorted(root.glob("**/masks"))):
        files = sorted(folder.glob("*.png"))
        for k, path in enumerate(files):
            target = folder / ("round", "long")[(k + number) % 2] / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    masks_to_coco(root, tmp_path / "out.json", classes=("round", "long"))
    api, found = read(tmp_path / "out.json")
    same(found, expected)
    by_class = {number: len(api.getAnnIds(catIds=[number])) for number in (1, 2)}
    names = {1: "round", 2: "long"}
    for number, count in by_class.items():
        paths = [path for path in root.glob("**/*.png") if path.parent.name == names[number]]
        held = [1 if layout == "separate" else len(masks_of(np.asarray(Image.open(path)))) for path in paths]
        assert count == sum(held) > 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda root: save(np.zeros((11, 13), np.uint8), root / "cell0/masks/1.png"),
            "1.png holds no object",
        ),
        (
            lambda root: save(np.arange(143, dtype=np.uint8).reshape(11, 13), root / "cell0/masks/1.png"),
            "1.png holds 142 values besides 0, and should hold one",
        ),
        (
            lambda root: save(np.eye(12, dtype=np.uint8), root / "cell0/masks/1.png"),
            "1.png is 12 pixels wide and 12 high, its image 13 wide and 11 high",
        ),
        (
            lambda root: save(np.ones((11, 13, 3), np.uint8), root / "cell0/masks/1.png"),
            "1.png: a mask has one channel of whole numbers",
        ),
        (lambda root: (root / "cell0/masks/1.png").write_bytes(b"no"), "1.png: not an image"),
        (lambda root: (root / "cell0/images/cell0.png").write_bytes(b"no"), "cell0.png: not an image"),
        (
            lambda root: (root / "cell0/images/cell0.png").unlink(),
            "images holds 0 images and should hold one",
        ),
        (lambda root: (root / "cell0/masks").rename(root / "cell0/other"), "cell0 has no masks/"),
    ],
)
def test_faults_of_separate_masks(
    separate: tuple[Path, Any], tmp_path: Path, spoil: Callable[[Path], object], told: str
) -> None:
    root, _ = separate
    spoil(root)
    with pytest.raises(DataError) as caught:
        masks_to_coco(root, tmp_path / "out.json")
    assert str(caught.value).startswith(f"the masks of {root} cannot be converted:\n  ")
    assert told in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def test_faults_of_numbered_masks_are_told_together(together: tuple[Path, Any], tmp_path: Path) -> None:
    root, _ = together
    (root / "masks" / "cell0.png").rename(root / "masks" / "cell9.png")
    save(np.ones((11, 12), np.uint8), root / "masks" / "cell1.png")
    Image.open(root / "images" / "cell2.tif").save(root / "images" / "cell2.bmp")
    with pytest.raises(DataError, match="cannot be converted") as caught:
        masks_to_coco(root, tmp_path / "out.json")
    for told in (
        "cell9.png has no image of its name in",
        "cell0.png has no mask of its name in",
        "cell1.jpg: the image is 13 pixels wide and 11 high, and is listed as 12 wide and 11 high",
        "cell2.tif has the same name as",
    ):
        assert told in str(caught.value)


def voc(objects: int = 3) -> np.ndarray:
    """Objects in a row with a border of 255 around each, as in Pascal VOC's SegmentationObject."""
    values = np.zeros((11, 13), np.uint8)
    for number in range(objects):
        values[2:7, 4 * number : 4 * number + 4] = 255
        values[3:6, 4 * number + 1 : 4 * number + 3] = number + 1
    return values


@pytest.mark.parametrize(("ignore", "objects"), [("255", 3), ("none", 4), (None, None)])
def test_a_border_is_no_object(
    together: tuple[Path, Any], tmp_path: Path, ignore: str | None, objects: int | None
) -> None:
    root, expected = together
    save(voc(), root / "masks" / "cell0.png")
    out = tmp_path / "out.json"
    if objects is None:
        with pytest.raises(DataError) as caught:
            masks_to_coco(root, out)
        told = "cell0.png holds 255 beside 1, 2, 3: in Pascal VOC's masks it is the border of objects"
        assert told in str(caught.value)
        assert not out.exists()
        return
    run_verb(root, out=out, ignore=ignore)
    held = masks_of(voc()) if ignore == "none" else masks_of(np.where(voc() == 255, 0, voc()))
    assert len(held) == objects
    same(read(out)[1], expected | {"images/cell0.png": held})


def test_255_objects_are_objects(together: tuple[Path, Any], tmp_path: Path) -> None:
    root, expected = together
    every = np.arange(17 * 17).reshape(17, 17).repeat(3, 0).repeat(3, 1)
    every = np.where(every < 256, every, 0).astype(np.uint8)
    save(every, root / "masks" / "cell0.png")
    save(np.zeros((51, 51, 3), np.uint8), root / "images" / "cell0.png")
    masks_to_coco(root, tmp_path / "out.json")
    assert len(read(tmp_path / "out.json")[1]["images/cell0.png"]) == 255
    assert len(expected) == 3


def smooth(radius: int, resample: Image.Resampling) -> np.ndarray:
    """Discs whose edges have shades, of shape (60, 70)."""
    large = np.zeros((480, 560), np.uint8)
    y, x = np.mgrid[:480, :560]
    for top, left in ((150, 140), (300, 400)):
        large[(y - top) ** 2 + (1.1 * x - 1.1 * left) ** 2 < (8 * radius) ** 2] = 255
    return np.asarray(Image.fromarray(large).resize((70, 60), resample))


@pytest.mark.parametrize("layout", ["separate", "together"])
@pytest.mark.parametrize("radius", [3, 10])
@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.LANCZOS])
def test_shades_are_no_objects(
    picture: Picture, tmp_path: Path, layout: str, radius: int, resample: Image.Resampling
) -> None:
    root, values = tmp_path / "cells", smooth(radius, resample)
    image = root / ("one/images/one.png" if layout == "separate" else "images/one.png")
    image.parent.mkdir(parents=True)
    picture(0, (70, 60)).save(image)
    mask = root / ("one/masks/1.png" if layout == "separate" else "masks/one.png")
    save(values, mask)
    with pytest.raises(DataError, match=rf"{mask} holds \d+ values.*with --threshold 128, pixels"):
        masks_to_coco(root, tmp_path / "out.json")
    if layout == "together":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            written = masks_to_coco(root, tmp_path / "every.json", ignore=())
        assert written.objects == len(masks_of(values))
    mask.unlink()
    Image.fromarray(values).save(mask.with_suffix(".jpg"), quality=95)
    with pytest.raises(DataError, match=r"\.jpg has a lossy format, which changes values"):
        masks_to_coco(root, tmp_path / "out.json")
    with pytest.warns(DataWarning) if layout == "together" else contextlib.nullcontext():
        masks_to_coco(root, tmp_path / "out.json", threshold=128)
    [found] = read(tmp_path / "out.json")[1][image.relative_to(root).as_posix()]
    assert (found != (values >= 128)).sum() <= 6


@pytest.mark.parametrize("kind", ["bits", "palette", "gif"])
def test_a_threshold_is_of_shades_not_of_places_in_a_palette(
    together: tuple[Path, Any], tmp_path: Path, kind: str
) -> None:
    root, expected = together
    path = root / "masks" / "cell0.png"
    inside = np.asarray(Image.open(path)) > 0
    image = Image.fromarray(inside if kind == "bits" else np.uint8(255) * inside)
    path.unlink()
    if kind == "palette":
        image = Image.frombytes("P", SIZE, inside.tobytes())
        image.putpalette([0, 0, 0, 200, 200, 200])
    image.save(path.with_suffix(".gif" if kind == "gif" else ".png"))
    for name in ("cell1.png", "cell2.png"):
        save(np.zeros(SIZE[::-1], np.uint8), root / "masks" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of parts that do not touch
        masks_to_coco(root, tmp_path / "out.json", threshold=128)
    same(read(tmp_path / "out.json")[1], {name: [] for name in expected} | {"images/cell0.png": [inside]})


@pytest.mark.parametrize("side", [1, 2, 5])
def test_small_objects_are_no_shades(together: tuple[Path, Any], tmp_path: Path, side: int) -> None:
    root, _ = together
    draw = np.random.default_rng(0)
    values = np.zeros((200, 300), np.uint16)
    values[90:110, 90:110] = 200
    for number in range(1, 150):
        top, left = draw.integers(0, 195), draw.integers(0, 295)
        values[top : top + side, left : left + side] = number
    save(values, root / "masks" / "cell0.png")
    save(np.zeros((200, 300, 3), np.uint8), root / "images" / "cell0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # some are cut in two by others
        masks_to_coco(root, tmp_path / "out.json")
    assert len(read(tmp_path / "out.json")[1]["images/cell0.png"]) == len(masks_of(values))


@pytest.mark.parametrize(
    ("dtype", "step"), [(np.uint16, 20_000), (np.int32, 500_000_000), (np.float32, 70_000)]
)
@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_label_images_may_be_tiff(
    together: tuple[Path, Any], tmp_path: Path, dtype: type, step: int, suffix: str
) -> None:
    root, expected = together
    values = labels(3).astype(dtype) * dtype(step)
    (root / "masks" / "cell0.png").unlink()
    save(values, root / "masks" / f"cell0{suffix}")
    masks_to_coco(root, tmp_path / "out.json")
    same(read(tmp_path / "out.json")[1], expected | {"images/cell0.png": masks_of(values)})


def test_what_is_no_label_image_is_named(together: tuple[Path, Any], tmp_path: Path) -> None:
    root, _ = together
    whole = Image.open(root / "masks" / "cell0.png")
    whole.save(root / "masks" / "cell0.bmp")
    (root / "masks" / "cell1.png").unlink()
    Image.fromarray(np.full((11, 13), 0.5, np.float32)).save(root / "masks" / "cell1.tif")
    (root / "masks" / "cell2.png").unlink()
    whole.save(root / "masks" / "cell2.tif", save_all=True, append_images=[whole] * 4)
    with pytest.raises(DataError) as caught:
        masks_to_coco(root, tmp_path / "out.json")
    for told in (
        "cell0.png has the same name as",
        "cell1.tif: a mask has one channel of whole numbers",
        "cell2.tif: it holds 5 pages, and a mask has one",
    ):
        assert told in str(caught.value)


def test_parts_that_do_not_touch_are_told(together: tuple[Path, Any], tmp_path: Path) -> None:
    root, expected = together
    binary = np.zeros((11, 13), np.uint8)
    binary[1:4, 1:4] = binary[4, 4] = binary[7:9, 2:5] = binary[2:9, 9] = 255  # corners touch
    save(binary, root / "masks" / "cell0.png")
    save(np.zeros((11, 13), np.uint8), root / "masks" / "cell2.png")
    save(binary.astype(np.uint16) * 200, root / "masks" / "cell1.png")
    with pytest.warns(DataWarning, match="2 of 2 objects have parts that do not touch") as caught:
        masks_to_coco(root, tmp_path / "out.json")
    for name, value in (("cell0", 255), ("cell1", 51_000)):
        assert f"{name}.png: {value} has 3 parts." in str(caught[0].message)
    found = read(tmp_path / "out.json")[1]
    same(found, {name: [binary > 0] if "2" not in name else [] for name in expected})


def test_the_command_that_is_printed_reads_the_json(
    together: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = together[0].rename(tmp_path / "my cells")
    run_verb(root, out=tmp_path / "my masks.json")
    words = shlex.split(capsys.readouterr().out.partition("train on them with ")[2])
    assert words == [
        "--data",
        f"coco:{tmp_path / 'my masks.json'}",
        "--set",
        f"data.images={root}",
    ]


@pytest.mark.parametrize("layout", ["separate", "together"])
def test_masks_are_not_left_out_in_silence(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root, _ = request.getfixturevalue(layout)
    masks = root / "cell0" / "masks" if layout == "separate" else root / "masks"
    some = next(masks.iterdir()).read_bytes()
    (masks / "dog").mkdir()
    (masks / "dog" / "cell0.png").write_bytes(some)
    with pytest.raises(DataError, match=r"dog is a folder of none of the classes; --classes names them\."):
        masks_to_coco(root, tmp_path / "out.json")
    with pytest.raises(
        DataError, match=r"/masks/\w+\.png is no mask .* or is not in the folder of a class\."
    ):
        masks_to_coco(root, tmp_path / "out.json", classes=("cat", "dog"))
    (masks / "dog" / "cell0.png").unlink()
    (masks / "dog").rmdir()
    (masks / ".DS_Store").write_bytes(b"")
    (masks / "Thumbs.db").write_bytes(b"")
    masks_to_coco(root, tmp_path / "out.json")
    (masks / "other.npy").write_bytes(some)
    with pytest.raises(DataError, match=r"other\.npy is no mask \(png/tif/tiff/bmp/gif\)"):
        masks_to_coco(root, tmp_path / "other.json")


def test_nothing_is_left_where_the_disk_is_full(
    together: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out\.json'"):
        masks_to_coco(together[0], tmp_path / "out" / "out.json")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_refused_at_once(separate: tuple[Path, Any], tmp_path: Path) -> None:
    root, _ = separate
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(DataError, match=r"there\.json is there already"):
        masks_to_coco(root, tmp_path / "there.json")
    with pytest.raises(DataError, match="must hold images/NAME"):
        masks_to_coco(root / "cell0" / "images", tmp_path / "out.json")
    for options, told in (
        ({"classes": ("a", "a")}, "classes must be names, all different"),
        ({"threshold": 0}, "threshold must be 1 or more"),
        ({"ignore": (0,)}, "ignore must be values of 1 or more"),
        ({"ignore": (255,), "threshold": 128}, "excludes a threshold"),
    ):
        with pytest.raises(ValueError, match=told):
            masks_to_coco(root, tmp_path / "out.json", **options)
    with pytest.raises(UsageError, match="--ignore is a value of the masks"):
        run_verb(root, out=tmp_path / "out.json", ignore="void")
