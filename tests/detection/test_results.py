"""What a network has found, as COCO's results: pycocotools must read what was meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as tool
from torch import Tensor

from lambdanets.data import DataError
from lambdanets.detection import (
    ground_truth_as_results,
    merge,
    of_boxes,
    of_masks,
    read_results,
    to_detections,
    to_results,
    write_results,
)

Entry = dict[str, Any]
GroundTruth = Callable[..., dict[str, list[Entry]]]


def detection(*boxes: list[float], masks: Tensor | None = None, **options: list[float]) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {
        "boxes": torch.tensor(boxes).float().reshape(-1, 4),
        "labels": torch.tensor(options.get("labels", [1] * len(boxes)), dtype=torch.int64),
        "scores": torch.tensor(options.get("scores", [0.5] * len(boxes))).float(),
    }
    return values if masks is None else values | {"masks": masks}


def test_an_entry_is_what_was_found() -> None:
    masks = torch.tensor([[[[0.4, 0.5, 0.51], [0.0, 0.9, 1.0]]]])
    first = detection([1, 2, 4, 8], labels=[2], scores=[0.75], masks=masks)
    second = detection([0.5, 0, 2, 1.25], [0, 0, 1, 1], labels=[1, 3], scores=[0.5, 0.25])
    entries = to_results([first, second], [40, 9], [3, 7, 20])
    runs = entries[0].pop("segmentation")
    assert entries == [
        {"image_id": 40, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.75},
        {"image_id": 9, "category_id": 3, "bbox": [0.5, 0, 1.5, 1.25], "score": 0.5},
        {"image_id": 9, "category_id": 20, "bbox": [0, 0, 1, 1], "score": 0.25},
    ]
    assert runs["size"] == [2, 3]
    assert tool.decode([runs])[..., 0].tolist() == [[0, 0, 1], [0, 1, 1]]


@given(arrays(np.bool_, st.tuples(st.integers(1, 7), st.integers(1, 9))), st.data())
def test_run_lengths_are_pycocotools(mask: np.ndarray, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, mask.shape[1]))
    mask[:, :first] = False  # columns at the left in which there is nothing
    found = detection([0, 0, 1, 1], masks=torch.from_numpy(mask)[None, None])
    [entry] = to_results([found], [1], [1])
    expected = tool.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert entry["segmentation"] == {"size": list(mask.shape), "counts": expected["counts"].decode()}


def test_numbers_are_those_of_the_network_in_few_digits() -> None:
    scores = torch.tensor([0.1, 0.99999994, 0.99999988, 1e-7])
    entries = to_results([detection(*torch.rand(4, 4).tolist(), scores=scores.tolist())], [1], [1])
    assert [np.float32(entry["score"]) for entry in entries] == scores.tolist()
    assert len({entry["score"] for entry in entries}) == 4
    assert json.dumps(entries[0]["score"]) == "0.1"


def test_what_was_found_stays_as_it_is() -> None:
    found = detection([1, 2, 4, 8], masks=torch.rand(1, 1, 9, 9))
    kept = {name: value.clone() for name, value in found.items()}
    to_results([found], [1], [1])
    assert all(torch.equal(found[name], value) for name, value in kept.items())


@pytest.mark.parametrize("masks", [None, torch.zeros(0, 1, 5, 5)])
def test_nothing_found_gives_no_entries(masks: Tensor | None) -> None:
    assert to_results([detection(masks=masks)], [1], [1]) == []


def test_half_precision_is_taken() -> None:
    half = {name: value.bfloat16() for name, value in detection([1, 2, 4, 8]).items()}
    half["labels"] = half["labels"].long()
    assert to_results([half], [1], [5])[0]["bbox"] == [1, 2, 3, 6]


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 0.625, 1.0]))
    )
)
def test_masks_are_read_as_they_were(masks: np.ndarray) -> None:
    boxes = [[0.0, 0.0, 1.0, 1.0]] * len(masks)
    entries = to_results([detection(*boxes, masks=torch.from_numpy(masks)[:, None])], [1], [1])
    assert json.loads(json.dumps(entries)) == entries
    read = [tool.decode([entry["segmentation"]])[..., 0] for entry in entries]
    np.testing.assert_array_equal(np.reshape(read, masks.shape), masks > 0.5)


@pytest.mark.parametrize(
    ("found", "ids", "words"),
    [
        (detection([0, 0, 1, 1]), [1, 2], "got 2 for 1"),
        (detection([0, 0, 1, 1], labels=[0]), [1], "from 1 to 2"),
        (detection([0, 0, 1, 1], labels=[3]), [4], "image 4 has the label 3"),
        (detection([0, 0, float("nan"), 1]), [4], "image 4 are not finite"),
        (detection([0, 0, 1, 1], scores=[float("inf")]), [4], "not finite"),
    ],
)
def test_what_cannot_be_is_refused(found: dict[str, Tensor], ids: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_results([found], ids, [3, 7])


def test_ground_truth_becomes_results_without_crowds(ground_truth: GroundTruth) -> None:
    runs = {"size": [200, 200], "counts": [0, 2, 39998]}
    truth = ground_truth(
        [
            (1, 3, 2, 3, 4, 5),
            (1, 3, 0, 0, 9, 9, {"iscrowd": 1}),
            (2, 7, 0, 0, 1, 2, {"segmentation": runs}),
        ]
    )
    first, second = ground_truth_as_results(truth)
    assert (first["image_id"], first["category_id"], first["bbox"], first["score"]) == (1, 3, [2, 3, 4, 5], 1)
    drawn = np.zeros((200, 200), np.uint8)
    drawn[3:8, 2:6] = 1
    np.testing.assert_array_equal(tool.decode([first["segmentation"]])[..., 0], drawn)
    assert tool.decode([second["segmentation"]]).sum() == 2
    json.dumps([first, second])


def test_how_images_are_dealt_out_changes_nothing(found: Callable[..., Entry]) -> None:
    draw = np.random.default_rng(0)
    images = {
        image: [
            found(draw.integers(1, 4) / 4, image, category, *draw.integers(0, 50, 4).tolist())
            for category in (3, 7, 3, 20, 3, 7)
        ]
        for image in (5, 2, 9, 14, 1)
    }
    alone = merge([[entry for entries in images.values() for entry in entries]])
    for count in (2, 3, 8):
        order = draw.permutation(list(images)).tolist()
        parts = [[entry for image in order[rank::count] for entry in images[image]] for rank in range(count)]
        assert merge(parts) == alone
    assert len(alone) == 30
    keys = [(entry["image_id"], -entry["score"]) for entry in alone]
    assert keys == sorted(keys)


def test_an_image_that_was_looked_at_twice_counts_once(found: Callable[..., Entry]) -> None:
    first, again = found(0.5, 1, 3, 0, 0, 5, 5), found(0.5000001, 1, 3, 0, 0, 5, 5)
    other = found(0.9, 2, 3, 0, 0, 5, 5)
    assert merge([[first], [other, again]]) == [first, other]
    assert merge([[first, other, dict(first)], []]) == [first, other]
    assert merge([]) == []


def test_entries_are_parted_into_coco_s_two_kinds(found: Callable[..., Entry]) -> None:
    box = found(0.5, 1, 3, 0, 0, 5, 5)
    runs = {"size": [1, 1], "counts": "01"}
    both = box | {"segmentation": runs}
    assert of_boxes([both]) == [box]
    assert of_masks([both]) == [{"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": runs}]
    assert set(both) == {*box, "segmentation"}


def test_a_file_reads_as_it_was_written(tmp_path: Path, random_set: Callable[..., Any]) -> None:
    _, detections = random_set(0)
    tensors = [{name: torch.from_numpy(value) for name, value in each.items()} for each in detections]
    entries = to_results(tensors, range(8), [3, 7, 20])
    path = tmp_path / "new" / "results.json"
    for written in (entries, of_boxes(entries), of_masks(entries), []):
        write_results(written, path)
        assert read_results(path) == written == json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, found: Callable[..., Entry]) -> None:
    path = tmp_path / "results.json"
    write_results([found(0.5, 1, 3, 0, 0, 5, 5)], path)
    before = path.read_text()
    with pytest.raises(ValueError):
        write_results([found(float("nan"), 1, 3, 0, 0, 5, 5)], path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


GOOD = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}
RUNS = {"size": [2, 3], "counts": tool.encode(np.ones((2, 3), np.uint8, order="F"))["counts"].decode()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        (b"\xff\xfe\x00", "bytes that are no text"),
        ("", "cut short"),
        (json.dumps([GOOD])[:-9], "cut short"),
        ("[1 2]", "line 1, column 4"),
        ("[" * 10**5, "lists are nested too deeply"),
        (f"[{10**4299}0]", "a number is too long"),
        ('{"images": []}', "a list with an entry for each object"),
        ([GOOD, 5], "entry 1: it is no object but 5"),
        ([{**GOOD, "image_id": "1"}], "image_id is no whole number but '1'"),
        ([{**GOOD, "category_id": None}], "category_id is no whole number"),
        ([{**GOOD, "score": float("nan")}], "score is no finite number"),
        ([{**GOOD, "score": True}], "score is no finite number"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "not \\[x, y, width, height\\] but"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "not \\[x, y, width, height\\] but"),
        ([{"image_id": 1, "category_id": 3, "score": 1}], "neither a bbox nor a segmentation"),
        ([{**GOOD, "segmentation": [[0, 0, 1, 1, 2, 2]]}], "run lengths as text"),
        ([{**GOOD, "segmentation": {**RUNS, "size": [2]}}], "run lengths as text"),
        ([{**GOOD, "segmentation": {**RUNS, "size": [2, 4]}}], "cover 6 pixels of 8"),
        ([{**GOOD, "segmentation": {**RUNS, "counts": "!"}}], "damaged"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "results.json"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(DataError, match=words) as refusal:
        read_results(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_mask_that_was_found_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    empty = tool.encode(np.zeros((2, 3), np.uint8, order="F"))["counts"].decode()
    write_results([GOOD | {"segmentation": {"size": [2, 3], "counts": empty}}], path)
    assert len(read_results(path)) == 1


@pytest.mark.parametrize("with_masks", [True, False])
def test_entries_give_the_detections_again(with_masks: bool) -> None:
    masks = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    found = detection([1, 0, 4, 5], [0.5, 0, 2, 1.25], labels=[2, 1], scores=[0.75, 0.5],
                      masks=masks if with_masks else None)  # fmt: skip
    again = to_detections(to_results([found], [4], [3, 7]), [3, 7], (5, 7))
    for name in ("boxes", "labels", "scores"):
        assert torch.equal(again[name], found[name])
    if with_masks:
        assert torch.equal(again["masks"], masks > 0.5)
    nothing = to_detections([], [3, 7], (5, 7))
    assert nothing["boxes"].shape == (0, 4)
