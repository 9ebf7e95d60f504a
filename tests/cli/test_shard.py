"""`lambdanets shard`: the folder it writes, its output, and its errors."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lambdanets.data import DataConfig, open_splits

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_shards_of_the_digits(command: Command, tmp_path: Path) -> None:
    done = command("shard", "digits", "--out", "shards", "--images", 1000, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "train: 1,618 images in 2 shards",
        "val: 179 images in 1 shard",
        "10 classes; read them with --data tar:shards",
    ]
    splits = open_splits(DataConfig(source=f"tar:{tmp_path / 'shards'}", image_size=8, in_chans=1))
    assert (len(splits.train), len(splits.val)) == (1618, 179)


def test_the_seed_is_that_of_order_and_split(inside: Command, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("default", "zero", "one")]
    for folder, words in zip(folders, ((), ("--seed", 0), ("--seed", 1)), strict=True):
        assert inside("shard", "digits", "--out", folder, *words).returncode == 0
    default, zero, one = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert default == zero
    for name in ("train-000000.tar", "val-000000.tar"):
        assert one[name] != zero[name]


def test_the_size_of_a_shard(inside: Command, tmp_path: Path) -> None:
    done = inside("shard", "digits", "--out", tmp_path / "shards", "--megabytes", 2)
    assert done.stdout.splitlines()[0] == "train: 1,618 images in 2 shards"
    assert max(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar")) <= 2 * 10**6


def test_splits_of_a_source_have_names(inside: Command, tmp_path: Path) -> None:
    for place, number in {"train": 2, "val": 3, "learn": 5, "check": 4}.items():
        for name in ("cat", "dog"):
            (tmp_path / "set" / place / name).mkdir(parents=True)
            for index in range(number):
                Image.new("L", (8, 8), index).save(tmp_path / "set" / place / name / f"{index}.png")
    source = f"torch/image_folder:{tmp_path / 'set'}"
    for number, (words, images) in enumerate(
        {
            (): (4, 6),
            ("--train-split", "learn"): (10, 6),
            ("--val-split", "check"): (4, 8),
            ("--train-split", "learn", "--val-split", ""): (8, 2),
        }.items()
    ):
        done = inside("shard", source, "--out", tmp_path / str(number), *words)
        assert done.returncode == 0, done.stderr
        assert [line.split(" images")[0] for line in done.stdout.splitlines()[:2]] == [
            f"train: {images[0]}", f"val: {images[1]}"
        ]  # fmt: skip


def test_a_run_is_measured_and_shown_on_shards(inside: Command, trained: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert inside("shard", "digits", "--out", shards).returncode == 0
    done = inside("eval", trained, "--data", f"tar:{shards}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"images +179\b", done.stdout)


def test_what_is_refused(inside: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for code, words, says in (
        (
            1,
            ("digits", "--out", tmp_path),
            f"{tmp_path} exists already and is not an empty folder; shards are",
        ),
        (1, (f"folder:{tmp_path / 'no'}", "--out", tmp_path / "new"), "there is no folder"),
        (
            1,
            ("wds/x:y", "--out", tmp_path / "new"),
            "'wds/x:y' is streamed and cannot be shuffled into shards.",
        ),
        (2, ("digits", "--out", tmp_path / "new", "--images", 0), "--images must be 1 or more, got 0."),
        (
            2,
            ("digits", "--out", tmp_path / "new", "--megabytes", 0),
            "--megabytes must be 1 or more, got 0.",
        ),
        (2, ("digits",), "--out is missing; see lambdanets shard --help"),
    ):
        done = inside("shard", *words)
        assert done.returncode == code
        assert done.stderr.startswith(f"lambdanets: {says}"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
