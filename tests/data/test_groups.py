"""Splits by group: no group stands on both sides, and each class is near the held-out fraction."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lambdanets.data import (
    CocoConfig,
    DataConfig,
    DataError,
    open_coco,
    open_coco_split,
    open_split,
    open_splits,
)
from lambdanets.data.errors import SourceWarning
from lambdanets.data.groups import held_out_groups, name_groups
from lambdanets.data.image_set import ImageSet

WriteTar = Callable[..., Path]
HOW = ("exact", "stable")
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]


def names_of(side: object) -> set[str]:
    assert isinstance(side, ImageSet)
    return {Path(side.path(index).replace("#", "/")).name for index in range(len(side))}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_stay_whole_and_classes_near_the_fraction(how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"patient{number}" for number in rng.integers(0, 60, 2000)]
    targets = rng.choice(3, 2000, p=[0.8, 0.15, 0.05])
    chosen = held_out_groups(groups, targets, "x", val_fraction=0.2, seed=seed, hold_out=how)  # pyright: ignore
    for name in set(groups):
        assert len({out for out, group in zip(chosen, groups, strict=True) if group == name}) == 1
    for target in range(3):
        part = chosen[targets == target].mean()
        assert part == pytest.approx(0.2, abs=0.02) if how == "exact" else 0.05 < part < 0.4
    order = rng.permutation(2000)
    shuffled = held_out_groups(
        [groups[row] for row in order],
        targets[order],
        "x",
        val_fraction=0.2,
        seed=seed,
        hold_out=how,  # pyright: ignore
    )
    assert (shuffled == chosen[order]).all()


def test_the_exact_split_is_as_near_as_the_best_of_all() -> None:
    """Every split of twelve groups is tried: the greedy one is within a twentieth of the best distance."""
    rng = np.random.default_rng(3)
    groups = [f"g{number}" for number in rng.integers(0, 12, 100)]
    targets = rng.choice(2, 100, p=[0.7, 0.3])
    counts = np.array(
        [
            [sum(g == f"g{k}" and t == c for g, t in zip(groups, targets, strict=True)) for c in (0, 1)]
            for k in range(12)
        ]
    )
    totals = counts.sum(axis=0)

    def distance(held: np.ndarray) -> float:
        return float(np.abs(held / totals - 0.25).sum())

    masks = (np.arange(2**12)[:, None] >> np.arange(12)) & 1
    best = min(distance(mask @ counts) for mask in masks)
    chosen = held_out_groups(groups, targets, "x", val_fraction=0.25, seed=0, hold_out="exact")
    held = np.array([(chosen & (targets == target)).sum() for target in (0, 1)])
    assert distance(held) < best + 0.05


def test_a_stable_group_stays_when_others_come_and_go() -> None:
    groups = [f"g{number}" for number in range(50) for _ in range(4)]
    targets = np.tile([0, 0, 1, 1], 50)
    chosen = dict(
        zip(
            groups,
            held_out_groups(groups, targets, "x", val_fraction=0.2, seed=0, hold_out="stable"),
            strict=True,
        )
    )
    fewer = dict(
        zip(
            groups[40:],
            held_out_groups(groups[40:], targets[40:], "x", val_fraction=0.2, seed=0, hold_out="stable"),
            strict=True,
        )
    )
    assert all(chosen[name] == out for name, out in fewer.items())


@pytest.mark.parametrize("how", HOW)
def test_a_class_keeps_training_samples(how: str) -> None:
    groups, targets = ["a", "a", "b", "b", "c"], np.array([0, 1, 0, 0, 1])
    for seed in range(20):
        chosen = held_out_groups(groups, targets, "x", val_fraction=0.4, seed=seed, hold_out=how)  # pyright: ignore
        assert set(targets[~chosen]) == {0, 1}
        assert chosen.any()
    with pytest.raises(DataError, match=r"into 1 group \('a'\), and none can be held out"):
        held_out_groups(["a", "a"], np.array([0, 1]), "x", val_fraction=0.4, seed=0, hold_out=how)  # pyright: ignore


def test_groups_have_names() -> None:
    names = ["plate1_a.png", "plate1_b.png", "sub/plate2_a.png"]
    assert name_groups(names, r"(plate\d)", "x") == ["plate1", "plate1", "plate2"]
    assert name_groups(["p1/a.png", "p1/v2/b.png"], "folder", "x") == ["p1", "p1/v2"]
    with pytest.raises(
        DataError, match=r"gives 1 of 3 files of x no group: they do not match it, such as sub/"
    ):
        name_groups(names, "^([^_/]+)_", "x")
    with pytest.raises(DataError, match="lie directly in the folder of their class or"):
        name_groups(names, "folder", "x")
    for bad in ("(", "plate", "(a)(b)"):
        with pytest.raises(ValueError, match=r"data\.group must be folder, a regular expression"):
            DataConfig(group=bad)


@pytest.fixture
def plates(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """Two classes of six plates with three images each; plates are named by the files and by folders."""
    for label in ("cat", "dog"):
        for plate in range(6):
            for number in range(3):
                path = tmp_path / "plates" / label / f"p{plate}" / f"p{plate}_{label}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(100 * plate + number).save(path)
    return tmp_path / "plates"


@pytest.mark.parametrize("group", ["folder", "([^/_]+)_"])
def test_a_folder_is_split_by_group(plates: Path, group: str) -> None:
    config = DataConfig(source=f"folder:{plates}", image_size=8, group=group, val_fraction=0.2)
    splits = open_splits(config, seed=1)
    train, val = names_of(splits.train), names_of(splits.val)
    assert {name[:2] for name in train}.isdisjoint(name[:2] for name in val)
    assert len(val) == 6
    assert names_of(open_split(config, "val", seed=1, classes=splits.classes)[0]) == val
    assert open_splits(config, seed=1).fingerprint == splits.fingerprint
    everything, _ = open_split(
        DataConfig(source=f"folder:{plates}", image_size=8, val_fraction=1.0, group="(x)")
    )
    assert len(everything) == 36


def test_groups_on_both_sides_are_refused(plates: Path) -> None:
    for side in ("train", "val"):
        (plates / side).mkdir()
    (plates / "cat").rename(plates / "train" / "cat")
    (plates / "dog").rename(plates / "train" / "dog")
    for label, plate in (("cat", 0), ("dog", 1), ("dog", 2)):
        (plates / "val" / label).mkdir(exist_ok=True)
        (plates / "train" / label / f"p{plate}").rename(plates / "val" / label / f"p{plate}")
    config = DataConfig(source=f"folder:{plates}", image_size=8, group="folder")
    with pytest.raises(
        DataError, match=r"split already, and 3 groups .* such as 'p0' with 3 training and 3 val"
    ):
        open_splits(config)


@pytest.mark.parametrize("group", ["folder", "([^/_]+)_"])
def test_archives_and_shards_are_split_as_their_folders(
    plates: Path, write_tar: WriteTar, group: str
) -> None:
    files = sorted(plates.glob("*/*/*.png"))
    options: Any = {"image_size": 8, "group": group, "val_fraction": 0.2}
    expected = names_of(open_splits(DataConfig(source=f"folder:{plates}", **options), seed=1).val)
    inside = {f"photos/{file.relative_to(plates)}": file for file in files}
    shards = {f"{file.parent.name}/{file.name}": file for file in files}
    shards |= {f"{name[:-4]}.cls": file.parts[-3].encode() for name, file in shards.items()}
    for source in (write_tar("all.tar", inside), write_tar("shard.tar", shards)):
        splits = open_splits(DataConfig(source=f"tar:{source}", **options), seed=1)
        assert names_of(splits.val) == expected
    sides = {f"{'val' if 'p1' in name else 'train'}/{name[7:]}": file for name, file in inside.items()}
    apart = DataConfig(source=f"tar:{write_tar('sides.tar', sides)}", **options)
    assert len(open_splits(apart).val) == 6
    name, file = next((name, file) for name, file in sides.items() if "/p0/" in name)
    both = DataConfig(
        source=f"tar:{write_tar('both.tar', {**sides, name.replace('train', 'val'): file})}", **options
    )
    with pytest.raises(DataError, match=r"split already, and 1 group .* such as 'p0' with 6 training and 1"):
        open_splits(both)


@pytest.mark.parametrize("group", ["folder", "([^/_]+)_"])
def test_annotated_images_are_split_by_group(
    tmp_path: Path, coco_entry: Callable[..., dict[str, Any]], group: str
) -> None:
    images = [
        {"id": number, "file_name": f"p{number // 4}/p{number // 4}_{number}.png", "width": 20, "height": 20}
        for number in range(24)
    ]
    entries = [coco_entry(number + 1, number, 2, 2, 9, 9, category=number % 2) for number in range(24)]
    content = {"images": images, "annotations": entries, "categories": CATEGORIES}
    for image in images:
        (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / image["file_name"])
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    config = CocoConfig(source=f"coco:{path}", val_fraction=0.3, group=group, batch_size=2)
    splits = open_coco(config, seed=3)
    train, val = (
        [Path(side.path(index)).parent.name for index in range(len(side))]
        for side in (splits.train, splits.val)
    )
    assert set(train).isdisjoint(val)
    assert (len(train), len(val)) == (16, 8)
    assert open_coco(config, seed=3).fingerprint == splits.fingerprint
    assert len(open_coco_split(config, "val", seed=3)) == 8
    assert len(open_coco_split(replace(config, val_fraction=1.0, group="(x)"))) == 24
    with pytest.raises(DataError, match=r"gives 24 of 24 files of .* no group: they do not match it"):
        open_coco(replace(config, group="(x)"))
    with pytest.raises(ValueError, match=r"data\.group must be folder, a regular expression"):
        replace(config, group="x")
    for side, chosen in (("train", images[:14]), ("val", images[14:])):
        (tmp_path / side).mkdir()
        ids = {image["id"] for image in chosen}
        own = [entry for entry in entries if entry["image_id"] in ids]
        text = json.dumps({**content, "images": chosen, "annotations": own})
        (tmp_path / side / "_annotations.coco.json").write_text(text)
    sides = replace(config, source=f"coco:{tmp_path}", images=str(tmp_path), val_fraction=0.1)
    with pytest.raises(DataError, match=r"1 group .* 'p3' with 2 training and 2 validation samples"):
        open_coco(sides)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"source": "digits"},
            r"csv:FILE\.csv and tar:PATH, not to 'digits': its images have no paths",
        ),
        ({"source": "wds/x:y"}, "not to 'wds/x:y': its training and validation parts are fixed"),
        (
            {"source": "folder:x", "group": None, "group_column": "plate"},
            "'folder:x' is no table: data.group",
        ),
    ],
)
def test_sources_without_groups(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_splits(DataConfig(**{"group": "(x)", **changes}))


def test_a_class_of_one_group_is_trained_and_reported(plates: Path) -> None:
    for plate in range(1, 6):
        for path in (plates / "dog" / f"p{plate}").iterdir():
            path.rename(plates / "dog" / "p0" / path.name)
    config = DataConfig(source=f"folder:{plates}", image_size=8, group="folder")
    with pytest.warns(SourceWarning, match="no images of the class 'dog', for which nothing"):
        splits = open_splits(config)
    assert "dog" not in {name.partition("_")[2][:3] for name in names_of(splits.val)}
