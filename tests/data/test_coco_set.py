"""A COCO set gives the pixels, boxes, labels and masks that its files mean, whatever the form."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as tool
from pycocotools.coco import COCO
from torchvision import tv_tensors

from lambdanets.data import (
    CocoConfig,
    CocoSet,
    DataError,
    DataWarning,
    describe_coco,
    open_coco,
    open_coco_split,
)

WriteCoco = Callable[..., Path]
Entry = Callable[..., dict[str, Any]]
SIZE = (20, 16)


@pytest.fixture
def forms(coco_entry: Entry) -> list[dict[str, Any]]:
    """A polygon, two polygons, both forms of run lengths, and a crowd, on one image."""
    blob = np.zeros((16, 20), np.uint8)
    blob[3:9, 4:11] = 1
    blob[5, 6] = 0
    text = tool.encode(np.asfortranarray(blob))
    compressed = {"size": [16, 20], "counts": text["counts"].decode()}
    lengths = [4 * 16 + 3, 6, 10, 6, 16 * 20 - 4 * 16 - 3 - 22]
    return [
        coco_entry(10, 1, 1, 2, 5, 6, category=7),
        coco_entry(
            11, 1, 2, 2, 12, 9, segmentation=[[2, 2, 7.5, 2, 4, 9.25], [8.5, 4, 14, 4, 14, 11, 9, 10.5]]
        ),
        coco_entry(12, 1, 4, 3, 7, 6, segmentation=compressed, area=41),
        coco_entry(13, 1, 4, 3, 2, 6, segmentation={"size": [16, 20], "counts": lengths}),
        coco_entry(14, 1, 4, 3, 7, 6, segmentation=compressed, iscrowd=1),
    ]


def api(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def opened(root: Path, **options: Any) -> tuple[CocoSet, CocoSet]:
    splits = open_coco(CocoConfig(**({"source": f"coco:{root}", "resize": False, "workers": 0} | options)))
    return splits.train, splits.val


def test_all_forms_are_what_pycocotools_draws(write_coco: WriteCoco, forms: list[dict[str, Any]]) -> None:
    root = write_coco(train=([SIZE], forms), val=([SIZE, SIZE], forms))
    reference = api(root / "annotations" / "instances_val.json")
    train, val = opened(root)
    image, target = val[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 20))
    pixels = np.asarray(Image.open(root / "val" / "001.png"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)
    expected = np.stack([reference.annToMask(reference.anns[number]) for number in range(10, 15)])
    assert isinstance(target["masks"], tv_tensors.Mask)
    np.testing.assert_array_equal(target["masks"].numpy(), expected)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (16, 20)
    assert target["boxes"].tolist() == [
        [1, 2, 6, 8],
        [2, 2, 14, 11],
        [4, 3, 11, 9],
        [4, 3, 6, 9],
        [4, 3, 11, 9],
    ]
    assert target["labels"].tolist() == [2, 1, 1, 1, 1]
    assert target["iscrowd"].tolist() == [0, 0, 0, 0, 1]
    assert target["area"].tolist() == [30, 108, 41, 12, 42]
    assert (target["image_id"], target["orig_size"]) == (1, (16, 20))
    # crowds are no objects to learn
    _, learnt = train.original(0)
    np.testing.assert_array_equal(learnt["masks"].numpy(), expected[:4])
    assert len(learnt["boxes"]) == len(learnt["labels"]) == len(learnt["iscrowd"]) == 4


def test_an_image_without_objects_is_kept_unless_asked(write_coco: WriteCoco, coco_entry: Entry) -> None:
    crowd = coco_entry(2, 2, 1, 1, 4, 4, iscrowd=1)
    root = write_coco(train=([SIZE] * 3, [coco_entry(1, 1, 1, 1, 4, 4), crowd]), val=([SIZE], []))
    train, val = opened(root)
    assert len(train) == 3
    for data_set in (train, val):
        _, target = data_set[len(data_set) - 1]
        shapes = [tuple(target[name].shape) for name in ("boxes", "labels", "area", "iscrowd")]
        assert shapes == [(0, 4), (0,), (0,), (0,)]
        assert target["masks"].shape[0] == 0
    fewer, val = opened(root, drop_empty=True)
    assert fewer.image_ids.tolist() == [1]
    assert len(val) == 1


def test_boxes_alone(write_coco: WriteCoco, coco_entry: Entry) -> None:
    entry = coco_entry(1, 1, 1, 1, 4, 5)
    del entry["segmentation"], entry["area"], entry["iscrowd"]
    root = write_coco(train=([SIZE], [entry]), val=([SIZE], [entry]))
    with pytest.raises(DataError, match=r"annotation 1 of 001\.png: it has no segmentation .*data\.masks"):
        opened(root)
    train, val = opened(root, masks=False)
    assert "masks" not in train[0][1]
    assert val[0][1]["area"].tolist() == [20]


def test_labels_and_category_ids_go_both_ways(write_coco: WriteCoco, coco_entry: Entry) -> None:
    categories = {90: "toothbrush", 1: "person", 13: "stop sign"}
    entries = [coco_entry(k, 1, 1, 1, 4, 4, category=number) for k, number in enumerate([13, 90, 1])]
    root = write_coco(categories=categories, train=([SIZE], entries), val=([SIZE], entries))
    _, val = opened(root)
    assert val.classes == ("person", "stop sign", "toothbrush")
    assert val[0][1]["labels"].tolist() == [2, 3, 1]
    assert [val.category_ids[label - 1] for label in val[0][1]["labels"]] == [13, 90, 1]
    # a run that numbered the classes otherwise keeps its labels
    config = CocoConfig(source=f"coco:{root}")
    other = open_coco_split(config, classes=("toothbrush", "person", "stop sign"))
    assert other[0][1]["labels"].tolist() == [3, 1, 2]
    assert [other.category_ids[label - 1] for label in other[0][1]["labels"]] == [13, 90, 1]
    with pytest.raises(DataError, match=r"'stop sign'.*the run was trained on 'person', 'cat'"):
        open_coco_split(config, classes=("person", "cat"))


def test_ground_truth_is_what_the_file_says(write_coco: WriteCoco, forms: list[dict[str, Any]]) -> None:
    without = {key: value for key, value in forms[0].items() if key not in ("area", "iscrowd")}
    root = write_coco(train=([SIZE], []), val=([SIZE, SIZE], [*forms[1:], without]))
    _, val = opened(root)
    written = json.loads((root / "annotations" / "instances_val.json").read_text())
    found = val.ground_truth()
    assert found["images"] == written["images"]
    assert sorted(found["categories"], key=str) == sorted(written["categories"], key=str)
    assert found["annotations"][:-1] == forms[1:]
    assert found["annotations"][-1] == forms[0]


@pytest.mark.parametrize("kind", ["grey", "rgba", "palette", "16 bit", "jpeg"])
def test_every_kind_of_image_is_rgb(write_coco: WriteCoco, kind: str) -> None:
    root = write_coco(train=([SIZE], []), val=([SIZE], []))
    path = root / "val" / "001.png"
    colours = np.random.default_rng(1).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    grey = np.repeat(colours[..., :1], 3, axis=2)
    expected, saved = {
        "grey": (grey, Image.fromarray(colours[..., 0])),
        "rgba": (colours, Image.fromarray(colours).convert("RGBA")),
        "palette": (grey // 64 * 64, Image.fromarray(colours[..., 0] // 64)),
        "16 bit": (grey, Image.fromarray(colours[..., 0].astype(np.uint16) * 257)),
        "jpeg": (np.full_like(colours, 90), Image.fromarray(np.full_like(colours, 90))),
    }[kind]
    if kind == "palette":
        saved = Image.frombytes("P", SIZE, saved.tobytes())
        saved.putpalette([value for level in range(4) for value in [64 * level] * 3])
    saved.save(path, "JPEG" if kind == "jpeg" else "PNG")
    _, val = opened(root)
    np.testing.assert_array_equal(val[0][0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("listed", ["stored", "upright", "neither"])
def test_the_listed_size_says_whether_a_photo_was_annotated_upright(
    write_coco: WriteCoco, listed: str
) -> None:
    width, height = {"stored": (20, 16), "upright": (16, 20), "neither": (20, 20)}[listed]
    root = write_coco(train=([SIZE], []), val=([(width, height)], []))
    stored = Image.fromarray(np.random.default_rng(2).integers(0, 256, (16, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    stored.save(root / "val" / "001.png", exif=exif)
    if listed == "neither":
        with pytest.raises(
            DataError, match="16 pixels wide and 20 high, and is listed as 20 wide and 20 high"
        ):
            opened(root)
        return
    expected = np.asarray(stored if listed == "stored" else stored.rotate(-90, expand=True))
    np.testing.assert_array_equal(opened(root)[1][0][0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("prefix", ["", "val/", "images/", "images/val/", "deep/er/", "annotations/"])
def test_where_images_are_found(write_coco: WriteCoco, prefix: str) -> None:
    root = write_coco(train=([SIZE], []), val=([SIZE], []))
    inside = "deep/er/" if prefix == "deep/er/" else ""
    (root / prefix).mkdir(parents=True, exist_ok=True)
    (root / "val" / "001.png").rename(root / prefix / "moved.png")
    path = root / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace("001.png", f"{inside}moved.png"))
    _, val = opened(root)
    assert Path(val.path(0)) == root / prefix / "moved.png"
    (root / prefix / "moved.png").rename(root / "train" / "moved.png")
    looked = rf"image 1 \({inside}moved\.png\): there is no such file in {root / 'val'}, "
    with pytest.raises(DataError, match=looked):
        opened(root)
    if not inside:
        open_coco_split(CocoConfig(source=f"coco:{root}", images=str(root / "train")))


def test_splits_of_other_names(write_coco: WriteCoco, coco_entry: Entry) -> None:
    root = write_coco(first=([SIZE], []), second=([SIZE, SIZE], [coco_entry(1, 1, 1, 1, 4, 4)]))
    with pytest.raises(
        DataError, match=r"no annotations of the train side.*'annotations/instances_first\.json'"
    ):
        opened(root)
    train, val = opened(root, train_split="first", val_split="second")
    assert (len(train), len(val)) == (1, 2)


def test_the_layout_of_one_json_in_each_folder(write_coco: WriteCoco) -> None:
    root = write_coco(train=([SIZE], []), valid=([SIZE, SIZE], []))
    for side in ("train", "valid"):
        (root / "annotations" / f"instances_{side}.json").rename(root / side / "_annotations.coco.json")
    train, val = opened(root)
    assert (len(train), len(val)) == (1, 2)


def test_one_file_is_split_by_names(write_coco: WriteCoco, coco_entry: Entry) -> None:
    entries = [coco_entry(number, number, 1, 1, 4, 4) for number in range(1, 21)]
    root = write_coco(all=([SIZE] * 20, entries))
    source = f"coco:{root / 'annotations' / 'instances_all.json'}"
    train, val = opened(root, source=source, val_fraction=0.2)
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.image_ids) & set(val.image_ids)
    assert [target["image_id"] for _, target in (val[index] for index in range(4))] == val.image_ids.tolist()
    assert all(len(train.entry(index)[1]) == 1 for index in range(16))
    again = open_coco(CocoConfig(source=source, val_fraction=0.2))
    assert again.val.image_ids.tolist() == val.image_ids.tolist()
    assert (
        open_coco(CocoConfig(source=source, val_fraction=0.2), seed=1).val.image_ids.tolist()
        != val.image_ids.tolist()
    )
    assert len(open_coco_split(CocoConfig(source=source, val_fraction=1.0))) == 20
    with pytest.raises(DataError, match="has no usable images to train on"):
        open_coco(CocoConfig(source=source, val_fraction=1.0))


def test_a_photo_that_is_listed_twice_is_on_one_side(write_coco: WriteCoco) -> None:
    path = write_coco(all=([SIZE] * 12, [])) / "annotations" / "instances_all.json"
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["images"]):
        spelt = "./" * (number % 3 == 0)
        entry["file_name"] = f"{spelt}{number // 3 + 1:03d}.png"
    path.write_text(json.dumps(content))
    for seed in range(3):
        splits = open_coco(CocoConfig(source=f"coco:{path}", val_fraction=0.25), seed=seed)
        assert (len(splits.train), len(splits.val)) == (9, 3)
        assert len({Path(splits.val.path(index)).name for index in range(3)}) == 1


def test_a_photo_and_a_link_to_it_are_on_one_side(write_coco: WriteCoco) -> None:
    root = write_coco(all=([SIZE] * 12, []))
    for number in range(0, 12, 2):
        [photo], [other] = (list(root.rglob(f"{number + more:03d}.png")) for more in (1, 2))
        other.unlink()
        other.symlink_to(photo)
    path = root / "annotations" / "instances_all.json"
    for seed in range(3):
        splits = open_coco(CocoConfig(source=f"coco:{path}", val_fraction=0.5), seed=seed)
        sides = [{Path(s.path(i)).resolve() for i in range(len(s))} for s in (splits.train, splits.val)]
        assert [len(side) for side in sides] == [3, 3]
        assert sides[0].isdisjoint(sides[1])


def test_validation_images_that_are_training_images_are_told(write_coco: WriteCoco) -> None:
    root = write_coco(train=([SIZE] * 3, []), val=([SIZE] * 2, []))
    [first] = root.glob("train/*001.png")
    [linked] = root.glob("val/*002.png")
    linked.unlink()
    linked.symlink_to(first)
    with pytest.warns(DataWarning, match=r"^1 of 2 validation images of .* are training images, too, such"):
        opened(root)


def test_one_image_is_not_split(write_coco: WriteCoco) -> None:
    path = write_coco(all=([SIZE], [])) / "annotations" / "instances_all.json"
    with pytest.raises(DataError, match="has one image, which cannot be split into training and validation"):
        opened(path)
    assert len(open_coco_split(CocoConfig(source=f"coco:{path}", val_fraction=1.0))) == 1


def test_a_batch_beyond_the_memory(write_coco: WriteCoco) -> None:
    path = write_coco(all=([SIZE] * 2, [])) / "annotations" / "instances_all.json"
    for read in (open_coco, open_coco_split):
        with pytest.raises(DataError, match=r"^a batch of 8 images of 1000000 x 1000000 takes [\d,]+ GiB"):
            read(CocoConfig(source=f"coco:{path}", image_size=10**6))


def test_the_fingerprint_tells_sets_apart(write_coco: WriteCoco, coco_entry: Entry) -> None:
    def mark(width: int) -> str:
        root = write_coco(train=([SIZE], [coco_entry(1, 1, 1, 1, width, 4)]), val=([SIZE], []))
        return open_coco(CocoConfig(source=f"coco:{root}")).fingerprint

    assert mark(4) == mark(4) != mark(5)


def test_facts(write_coco: WriteCoco, forms: list[dict[str, Any]]) -> None:
    root = write_coco(train=([SIZE] * 3, forms), val=([SIZE], []))
    facts = describe_coco(open_coco(CocoConfig(source=f"coco:{root}")))
    assert facts["train objects"] == 4
    assert facts["train crowds"] == 1
    assert facts["train images without objects"] == 2
    assert facts["val objects"] == 0


def test_without_pycocotools_it_is_said_what_to_install(
    write_coco: WriteCoco, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_coco(train=([SIZE], []), val=([SIZE], []))
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"pip install 'lambdanets\[detection\]'"):
        opened(root)
