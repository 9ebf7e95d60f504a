"""Whatever is wrong with a COCO set is named by file and id, and refused or left out, nothing silently."""

import json
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lambdanets.data import CocoConfig, CocoSplits, DataError, DataWarning, describe_coco, open_coco
from lambdanets.data.coco.annotation_file import read_coco
from lambdanets.data.coco.splits import check_objects

WriteCoco = Callable[..., Path]
Entry = Callable[..., dict[str, Any]]
SIZE = (20, 16)
EMPTY = '{"images": [], "annotations": [], "categories": %s}'


@pytest.fixture
def root(write_coco: WriteCoco, coco_entry: Entry) -> Path:
    """Three images on each side; the first two of them have an object each."""
    sides = {
        side: ([SIZE] * 3, [coco_entry(number, number, 1, 1, 4, 4) for number in (1, 2)])
        for side in ("train", "val")
    }
    return write_coco(**sides)


def opened(root: Path, **options: Any) -> CocoSplits:
    return open_coco(CocoConfig(**({"source": f"coco:{root}"} | options)))


def changed(root: Path, change: Callable[[dict[str, Any]], object], side: str = "train") -> Path:
    path = root / "annotations" / f"instances_{side}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(root, **options)
    return str(caught.value)


def test_a_whole_set_is_opened_without_a_warning(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = opened(root, on_bad_image="skip", on_bad_annotation="skip")
    assert (len(splits.train), len(splits.val), splits.skipped) == (3, 3, ())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"bbox": [12, 3, 9.5, 4]},
            "its box [12, 3, 9.5, 4] reaches outside the image, which is 20 pixels wide",
        ),
        ({"bbox": [-2, 3, 9, 4]}, "reaches outside the image"),
        ({"bbox": [3, 3, 0, 4]}, "its box [3, 3, 0, 4] has no area"),
        ({"bbox": [3, 3, 5, -4]}, "has no area"),
        ({"bbox": [3, 3, 5]}, "its box is not four numbers [x, y, width, height] but [3, 3, 5]"),
        ({"bbox": None}, "its box is not four numbers"),
        ({"bbox": [3, 3, float("nan"), 4]}, "its box is not four numbers"),
        ({"segmentation": [[1, 1, 4, 4]]}, "its polygon has fewer than 3 points (2)"),
        ({"segmentation": [[30, 1, 34, 1, 34, 5]]}, "its polygon covers no pixel of the image"),
        ({"segmentation": [[1, 1, 5, 1, 3, 1]]}, "its polygon covers no pixel of the image"),
        (
            {"segmentation": [[4, 4, 20, 4, 20, 16, 4, 16]]},
            "its mask reaches from (4, 4) to (20, 16) and its box from (1, 1) to (5, 5)",
        ),
        ({"segmentation": {"size": [20, 16], "counts": [5, 315]}}, "its mask is 16 pixels wide and 20 high"),
        ({"image_id": 9}, "it is of image 9, which is not listed"),
        ({"image_id": [1]}, "it is of image [1], which is not listed"),
        ({"category_id": 4}, "it is of category 4, which is not listed"),
        ({"category_id": "3"}, "it is of category '3', which is not listed"),
        ({"id": 1}, "its id is taken by another one before it"),
        ({"id": None}, "annotation at index 1: it has no whole number as its id"),
        ({"iscrowd": 2}, "its iscrowd is 2, not 0 or 1"),
        ({"area": -1}, "its area is -1"),
        ({"area": 10**400}, "its area is 1000"),
        ({"bbox": [10**400, 1.5, 3, 4]}, "reaches outside the image"),
        ({"bbox": [1.5, 1, 10**400, 4]}, "reaches outside the image"),
        ({"segmentation": {"size": [16, 20], "counts": [10**30]}}, "one is beyond the image's 320 pixels"),
        ({"image_id": 2**63}, "it is of image 9223372036854775808, which is not listed"),
        ({"id": 2**63}, "annotation at index 1: its id 9223372036854775808 is beyond 64 bits"),
    ],
)
def test_a_bad_annotation(root: Path, change: dict[str, Any], told: str) -> None:
    path = changed(root, lambda content: content["annotations"][1].update(change))
    message = refusal(root)
    heading, sentence, remedy = message.splitlines()
    assert heading == f"1 of 2 annotations of {path} cannot be used:"
    assert told in sentence
    assert sentence.startswith(f"  annotation {change.get('id', 2)}") or "at index 1" in sentence
    assert "data.on_bad_annotation=skip" in remedy
    assert refusal(root, on_bad_image="skip") == message
    with pytest.warns(DataWarning) as caught:
        splits = opened(root, on_bad_annotation="skip")
    assert len(caught) == 1
    assert str(caught[0].message) == f"{heading}\n{sentence}\nThey are left out."
    assert splits.skipped == (f"{path}: {sentence.strip()}",)
    assert [len(splits.train.entry(index)[1]) for index in range(3)] == [1, 0, 0]
    assert [len(splits.val.entry(index)[1]) for index in range(3)] == [1, 1, 0]


def test_a_box_may_reach_a_pixel_over_the_edge_and_is_cut(root: Path) -> None:
    changed(root, lambda content: content["annotations"][0].update(bbox=[-0.5, 1, 21, 15.9]))
    _, target = opened(root, masks=False).train.original(0)
    assert target["boxes"].tolist() == [[0, 1, 20, 16]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 21}, "the image is 20 pixels wide and 16 high, and is listed as 21 wide and 16 high"),
        ({"width": None}, "image 2 (002.png): its width and height are None and 16"),
        ({"file_name": "gone.png"}, "image 2 (gone.png): there is no such file in"),
        ({"file_name": None}, "image 2: it has no file_name"),
        ({"id": 1}, "image 1 (002.png): its id is taken by 001.png"),
        ({"id": "2"}, "image at index 1: it has no whole number as its id"),
        ({"id": 2**63}, "image at index 1: its id 9223372036854775808 is beyond 64 bits"),
        ({"file_name": "a" * 300}, "aaa): cannot look for it: file name too long"),
    ],
)
def test_a_bad_image(root: Path, change: dict[str, Any], told: str) -> None:
    path = changed(root, lambda content: content["images"][1].update(change))
    message = refusal(root)
    assert message.startswith(f"1 of 3 images of {path} cannot be used:\n  image")
    assert told in message
    assert "data.on_bad_image=skip" in message
    assert ("data.images=FOLDER" in message) == ("there is no such file" in told)
    # the annotation of an image that has no id any more is told, too
    options = {"on_bad_image": "skip"} | ({"on_bad_annotation": "skip"} if "id" in change else {})
    with pytest.warns(DataWarning, match="1 of 3 images of") as caught:
        splits = opened(root, **options)
    assert len(splits.train) == 2
    assert len(splits.val) == 3
    assert sum(len(splits.train.entry(index)[1]) for index in range(2)) == 1
    lost = (
        "it is of image 2, which is not listed" if "id" in change else "left out with their annotations (1)"
    )
    assert lost in str(caught[0].message)


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_a_corrupt_image(root: Path, damage: str) -> None:
    path = root / "val" / "002.png"
    whole = path.read_bytes()
    path.write_bytes({"text": b"no image", "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    if damage == "cut":  # its header is whole; it is met when it is read
        with pytest.raises(DataError, match=rf"cannot read {path}: image file is truncated"):
            opened(root).val[1]
    else:
        assert f"image 2 (002.png): cannot read {path}: not an image" in refusal(root)
    with pytest.warns(DataWarning, match="1 of 3 images of .*instances_val.json"):
        splits = opened(root, on_bad_image="skip")
    assert splits.val.image_ids.tolist() == [1, 3]
    assert splits.val[1][1]["image_id"] == 3


def test_where_images_are_not_found_another_folder_is_named(root: Path) -> None:
    for path in (root / "train").iterdir():
        path.unlink()
    assert "data.images=FOLDER names the folder that the file names start from" in refusal(root)
    with pytest.warns(DataWarning, match=r"left out.*data\.images=FOLDER"):
        assert "to train on. --set data.images=FOLDER" in refusal(root, on_bad_image="skip")


def test_many_are_counted_and_all_sides_are_told_at_once(root: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"] = [
            content["annotations"][0] | {"id": number, "bbox": [0, 0, 0, 0]} for number in range(8)
        ]

    for side in ("train", "val"):
        changed(root, spoil, side)
    (root / "train" / "003.png").unlink()
    message = refusal(root)
    assert message.count("8 of 8 annotations of") == 2
    assert "1 of 3 images of" in message
    assert message.count("\n  annotation ") == 10
    assert message.count("\n  and 3 more\n") == 2
    with pytest.warns(DataWarning, match=r"skipped\.txt has all of them, and open_coco"):
        told = opened(root, on_bad_image="skip", on_bad_annotation="skip").skipped
    paths = [root / "annotations" / f"instances_{side}.json" for side in ("train", "val")]
    faults = [f"{path}: annotation {number} of 001.png: " for path in paths for number in range(8)]
    assert sorted(text.partition("its box")[0] for text in told[1:]) == faults
    assert told[0].startswith(f"{paths[0]}: image 3 (003.png): there is no such file in ")


def test_what_is_skipped_of_a_single_file_is_told_once(root: Path) -> None:
    path = changed(root, lambda content: content["annotations"][1].update(bbox=[0, 0, 0, 0]))
    with pytest.warns(DataWarning):
        splits = opened(path, images=str(root / "train"), on_bad_annotation="skip")
    assert len(splits.skipped) == describe_coco(splits)["skipped"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [], "annotations": [{"id": 1, "ima', "is cut short, or no json: it ends at"),
        ("", "is cut short, or no json"),
        ('{"images": [,]}', "is no json: line 1, column 13"),
        ("[" * 100_000 + "]", "is no COCO json: a number is too long, or lists are nested too deeply"),
        ("[" + "1" * 5000 + "]", "a number is too long, or lists are nested too deeply"),
        ("[]", "is no COCO json: it must be an object with images, annotations, categories; it is a list"),
        ('{"images": [], "annotations": {}}', "is no COCO json: it has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            "category 0 lacks a whole number 'id' or a 'name'",
        ),
        (
            EMPTY % '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]',
            "lists the category id 1 twice: 'a' and 'b'",
        ),
        (
            EMPTY % '[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]',
            "lists two categories of the name 'a'",
        ),
        (
            EMPTY % '[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]',
            "has no usable images to train on",
        ),
    ],
)
def test_what_is_no_coco_json(root: Path, text: str, told: str) -> None:
    path = root / "annotations" / "instances_train.json"
    path.write_text(text)
    message = refusal(root, on_bad_annotation="skip", on_bad_image="skip")
    assert message.startswith(str(path))
    assert told in message
    assert "\n" not in message


def test_bytes_that_are_no_text(root: Path) -> None:
    (root / "annotations" / "instances_val.json").write_bytes(b"\xff\xd8\xff\xe0")
    assert "instances_val.json is no json: it holds bytes that are no text." in refusal(root)


@pytest.mark.parametrize(
    ("change", "told"), [({"name": "wolf"}, "7 dog', '7 wolf"), ({"id": 8}, "7 dog', '8 dog")]
)
def test_sides_of_other_classes(root: Path, change: dict[str, Any], told: str) -> None:
    changed(root, lambda content: content["categories"][1].update(change), "val")
    message = refusal(root)
    assert "must list the same categories and differ in" in message
    assert told in message


def test_a_source_that_is_not_there(root: Path) -> None:
    assert f"there is no folder {root / 'no'}. The nearest that exists is {root}" in refusal(root / "no")
    for source in ("coco:", "folder:x", "coco"):
        with pytest.raises(ValueError, match=r"data\.source must be coco:FOLDER"):
            CocoConfig(source=source)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": (0, 1)}, "data.scale must be two numbers, 0 < smallest <= largest"),
        ({"fill": (0, 0, 256)}, "data.fill must be three whole numbers from 0 to 255"),
        ({"flip": 2}, "data.flip must be a probability"),
        ({"val_fraction": 0}, "data.val_fraction must be above 0"),
        ({"min_area": 0}, "data.min_area must be 1 or more"),
        ({"batch_size": 0}, "data.batch_size must be 1 or more"),
        ({"on_bad_image": "drop"}, "data.on_bad_image must be one of refuse, skip"),
        ({"images": ""}, "data.images must be a name, or None"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        CocoConfig(source="coco:x", **options)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"val_fraction": 0.3},
            r"data\.val_fraction=0\.3 has no effect: .* has a validation side of its own",
        ),
        ({"group_by_ratio": True}, r"data\.group_by_ratio has no effect: with data\.crop all images"),
    ],
)
def test_what_an_option_does_not_do_is_said(root: Path, options: dict[str, Any], told: str) -> None:
    with pytest.warns(DataWarning, match=told):
        opened(root, **options)


def test_a_single_file_has_no_splits_to_name(root: Path) -> None:
    path = root / "annotations" / "instances_train.json"
    message = refusal(path, train_split="train", val_split="val")
    assert message.startswith(f"data.train_split and data.val_split must be None: {path} is one file")


def test_paths_are_found_from_any_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    config = CocoConfig(source="coco:coco", images="coco/train").resolved()
    assert (config.source, config.images) == (f"coco:{root}", str(root / "train"))
    monkeypatch.chdir("/")
    assert len(open_coco(config).val) == 3


def objects_checked(root: Path, **options: Any) -> None:
    config = CocoConfig(source=f"coco:{root}", **options)
    check_objects(config, open_coco(config))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda entries: entries.clear(), "have no objects: they have no annotations."),
        (
            lambda entries: [entry.update(iscrowd=1) for entry in entries],
            "all 2 annotations are marked as crowds (iscrowd 1), on which a detector is not trained. CVAT",
        ),
        (
            lambda entries: [entry.update(category_id="3") for entry in entries],
            "it is of category '3', which is not listed: it is text, and ids are whole numbers",
        ),
        (
            lambda entries: [entry.pop("segmentation") for entry in entries],
            "it has no segmentation (boxes alone are learnt with data.masks=False)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::lambdanets.data.DataWarning")
def test_images_without_objects_are_not_trained_on(
    root: Path, change: Callable[[list[Any]], object], told: str
) -> None:
    changed(root, lambda content: change(content["annotations"]))
    with pytest.raises(DataError) as caught:
        objects_checked(root, on_bad_annotation="skip")
    assert str(caught.value).startswith(f"the 3 training images of coco:{root} have no objects: ")
    assert told in str(caught.value)


def test_few_objects_are_trained_on_with_a_warning(root: Path, coco_entry: Entry) -> None:
    crowds = [coco_entry(number, 1, 1, 1, 4, 4, iscrowd=1) for number in (3, 4, 5)]
    changed(root, lambda content: content["annotations"].extend(crowds))
    with pytest.warns(DataWarning, match=r"3 of 5 annotations of the training images .* crowds"):
        objects_checked(root)


def test_validation_images_without_objects_are_named(root: Path) -> None:
    changed(root, lambda content: content["annotations"].clear(), "val")
    with pytest.warns(DataWarning, match=r"the 3 validation images .* have no objects"):
        objects_checked(root)


@pytest.mark.parametrize(
    "written",
    [
        r"photos\{}",
        "photos%5C{}",
        "/home/ann/project/photos/{}",
        "file:///home/ann/photos/{}",
        r"C:\Users\ann\train\photos\{}",
        "../ann/photos/{}",
        "cafe\u0301/{}",
    ],
)
def test_names_of_other_systems_are_found(root: Path, written: str) -> None:
    folder = root / "train" / (unicodedata.normalize("NFC", "cafe\u0301") if "cafe" in written else "photos")
    folder.mkdir()
    files = [path.rename(folder / path.name) for path in sorted((root / "train").glob("*.png"))]

    def rename(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = written.format(image["file_name"])

    changed(root, rename)
    with pytest.warns(DataWarning, match="3 of 3 file names of .* another system or folder:\n.* is"):
        train = opened(root).train
    assert [train.path(index) for index in range(3)] == [str(path) for path in files]


def test_a_name_that_could_be_two_files_is_refused(root: Path) -> None:
    changed(root, lambda content: content["images"][0].update(file_name="/home/ann/001.png"))
    (root / "001.png").write_bytes((root / "train" / "001.png").read_bytes())
    first, second = root / "train" / "001.png", root / "001.png"
    assert (
        f"image 1 (/home/ann/001.png): several files match its name, such as {first} and {second}."
        in refusal(root)
    )


def test_two_names_of_one_file_are_refused(root: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        for image, folder in zip(content["images"], "abc", strict=True):
            image["file_name"] = f"/home/ann/{folder}/001.png"

    changed(root, rename)
    message = refusal(root)
    assert message.startswith("3 of 3 images of")
    path = root / "train" / "001.png"
    assert f"(/home/ann/a/001.png): {path} is listed under this and under another file_name." in message


def test_numbers_as_text_and_null_are_read(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second = content["annotations"]
        first.update(area=None, iscrowd=None)
        second.update(bbox=["1", "1.0", "4", "4"], area="16.5", iscrowd="0")
        second["segmentation"] = [[str(value) for value in second["segmentation"][0]]]
        content["images"][0].update(width="20", height="16.0")

    whole = opened(root).train
    changed(root, change)
    train = opened(root).train
    for index in range(3):
        image, target = whole.original(index)
        other, same = train.original(index)
        assert torch.equal(image, other)
        assert torch.equal(target["boxes"], same["boxes"])
        assert torch.equal(target["masks"], same["masks"])
    assert [train.original(index)[1]["area"].tolist() for index in range(2)] == [[16], [16.5]]


@pytest.mark.parametrize(
    "more",
    [
        {"id": 1, "name": "cat", "supercategory": "none"},
        {"id": 0, "name": "_background_"},
        {"id": -1, "name": "__ignore__", "supercategory": None},
    ],
)
def test_categories_that_tools_add_are_left_out(root: Path, more: dict[str, Any]) -> None:
    for side in ("train", "val"):
        changed(root, lambda content: content["categories"].insert(0, more), side)
    changed(root, lambda content: content["annotations"].clear(), "val")
    for side in ("train", "val"):
        changed(root, lambda content: content["categories"][1].update(supercategory="cats"), side)
    assert opened(root).classes == ("cat", "dog")


def test_two_annotated_categories_of_one_name_are_refused(root: Path, coco_entry: Entry) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 9, "name": "cat"})
        content["annotations"].append(coco_entry(9, 3, 1, 1, 4, 4, category=9))

    changed(root, change)
    assert "lists two categories of the name 'cat', with the ids 3 and 9" in refusal(root)


def test_a_polygon_far_outside_is_cut_off(root: Path) -> None:
    # Between x = -999,999 and 999,999 to and fro, down the image: it covers every second row.
    turns = [value for row in range(16) for value in ((-1) ** (row // 2 % 2) * -999_999, row + row % 2)]
    far = [-999_999, 4, 999_999, 4, 999_999, 12, -999_999, 12]

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0].update(segmentation=[far], bbox=[0, 4, 20, 8])
        content["annotations"][1].update(segmentation=[turns], bbox=[0, 0, 20, 16])

    changed(root, change)
    train = opened(root).train
    masks = train.original(0)[1]["masks"].numpy()
    assert masks[0, 4:12].all()
    assert masks.sum() == 8 * 20
    assert train.original(1)[1]["masks"].any()


def test_many_categories_are_read_in_a_moment(root: Path) -> None:
    many = [{"id": number, "name": f"class {number}"} for number in range(100_000)]
    path = changed(root, lambda content: content.update(categories=many, annotations=[]))
    start = time.process_time()
    assert len(read_coco(path).categories) == 100_000
    assert time.process_time() - start < 10  # compared with each other they took over a minute
