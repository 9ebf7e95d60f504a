"""A run labels images: what it says is what it says in `predict`, whatever stops it on the way."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lambdanets.data import DataError, open_unlabelled, write_shards
from lambdanets.evaluate import pseudo_labels as module
from lambdanets.evaluate.prediction import predict
from lambdanets.evaluate.pseudo_labels import label, weights_hash
from lambdanets.recipes import digits
from lambdanets.train import Run, RunConfig, RunError, load_run, override
from lambdanets.train.engine import train
from lambdanets.train.errors import TrainingInterrupted
from lambdanets.utils.processes import InUseError
from photo_sets import write_scans
from runs import assert_same_end, interrupt


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 300 digits as files, a fifth of them for validation."""
    return write_scans(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def recipe(scans: Path) -> RunConfig:
    return override(
        digits(), f"data.source=folder:{scans}", "data.batch_size=16", "data.train_per_class=4",
        "engine.epochs=3", "engine.threads=1", "schedule.warmup_epochs=1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(recipe: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(recipe, run_dir=folder)
    return load_run(folder)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def test_labels_are_those_of_predict(teacher: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    found = label(teacher, f"folder:{scans}/train", out, threshold=0.0, keep_labelled=True)
    names = [
        path.relative_to(scans / "train").as_posix() for path in sorted((scans / "train").rglob("*.png"))
    ]
    assert [row[0] for row in rows(out)] == names == found.selected.images
    said = predict(teacher, [scans / "train" / name for name in names], top=1)
    assert [row[1] for row in rows(out)] == [each.labels[0] for each in said]
    assert [float(row[2]) for row in rows(out)] == pytest.approx(
        [each.probabilities[0] for each in said], rel=1e-5
    )
    assert found.truths is not None
    assert [str(truth) for truth in found.truths] == [name.split("/")[0] for name in names]
    assert (found.left_out, found.unreadable) == (0, ())


def test_images_that_the_teacher_learned_from_are_left_out(teacher: Run, scans: Path, tmp_path: Path) -> None:
    found = label(teacher, f"folder:{scans}", tmp_path / "labels.csv", threshold=0.0)
    assert found.left_out == 40
    assert len(found.all_labels) == 240 - 40
    left = {str(scans / image) for image in found.all_labels.images}
    learned = set(map(str, (scans / "train").rglob("*.png"))) - left
    assert [sum(f"/{digit}/" in path for path in learned) for digit in range(10)] == [4] * 10
    data = replace(teacher.config.data, train_per_class=None)
    of_all = replace(teacher, config=replace(teacher.config, data=data))
    with pytest.raises(DataError, match="trained on all 240 images"):
        label(of_all, f"folder:{scans}/train", tmp_path / "none.csv")


def test_validation_images_are_not_labelled(
    teacher: Run, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would teach what they measure, in a student whose val/ is a copy elsewhere."""
    said = "has a training and a validation side: only the training side is labelled"
    copy = tmp_path / "copy"
    shutil.copytree(scans, copy)
    (copy / "val").rename(copy / "Test")
    (copy / "others").mkdir()
    shutil.copy(next(scans.rglob("*.png")), copy / "others")
    for source, options in ((scans, {"keep_labelled": True}), (copy, {})):
        found = label(teacher, f"folder:{source}", tmp_path / f"{source.name}.csv", threshold=0.0, **options)
        names = [path.relative_to(source).as_posix() for path in sorted((source / "train").rglob("*.png"))]
        assert found.all_labels.images == names
        assert capsys.readouterr().out.splitlines()[0] == f"folder:{source} {said}"
    write_shards(teacher.config.data, tmp_path / "shards", images=50)
    found = label(teacher, f"tar:{tmp_path / 'shards'}", tmp_path / "shards.csv", threshold=0.0)
    assert {image.split("-")[0] for image in found.all_labels.images} == {"train"}
    assert said in capsys.readouterr().out
    # What is not split is labelled whole.
    shutil.rmtree(copy / "train")
    found = label(teacher, f"folder:{copy}", tmp_path / "whole.csv", threshold=0.0)
    assert len(found.all_labels) == 60 + 1
    assert said not in capsys.readouterr().out


def test_labels_take_the_place_of_no_device(teacher: Run, scans: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(RunError, match=r"labels\.csv is no regular file"):
        label(teacher, f"folder:{scans}", tmp_path / "labels.csv")
    assert [path.name for path in tmp_path.glob("*labels*")] == ["labels.csv"]


def test_another_choice_needs_no_network(
    teacher: Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.csv"
    all_labels = label(teacher, f"folder:{scans}", out, threshold=0.0).all_labels
    before = (tmp_path / "labels.all.csv").read_bytes()
    monkeypatch.setattr(module, "_predictions", None)
    middle = float(np.median(all_labels.probabilities))
    found = label(teacher, f"folder:{scans}", out, threshold=middle, per_class=3, fill=True)
    assert (tmp_path / "labels.all.csv").read_bytes() == before
    assert min(float(row[2]) for row in rows(out)) >= middle
    assert set(found.selected.counts().tolist()) <= {0, 3}
    facts = json.loads((tmp_path / "labels.json").read_text())
    assert facts["threshold"] == middle
    assert facts["kept"] == dict(zip("0123456789", found.selected.counts().tolist(), strict=True))
    assert facts["source"] == f"folder:{scans}"
    assert facts["weights"] == weights_hash(teacher.model())


@pytest.mark.parametrize("torn", [b"", b"train/3/0", b'"train/3', 3])
def test_a_labelling_that_was_killed_goes_on(
    torn: bytes | int, teacher: Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"folder:{scans}"
    label(teacher, source, tmp_path / "whole.csv", threshold=0.0)
    original = module._predictions

    def dies(*args: Any) -> Iterator[Any]:
        for count, answer in enumerate(original(*args)):
            if count == 4:
                with pytest.raises(InUseError, match=r"cut\.all\.csv is in use by another process \("):
                    label(teacher, source, tmp_path / "cut.csv", threshold=0.0)
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(module, "_predictions", dies)
    with pytest.raises(KeyboardInterrupt):
        label(teacher, source, tmp_path / "cut.csv", threshold=0.0)
    part = tmp_path / "cut.all.csv.part"
    assert len(rows(part)) == 4 * 16
    assert not (tmp_path / "cut.csv").exists()
    with part.open("ab") as file:
        if isinstance(torn, int):  # some lines of a batch are whole
            whole = (tmp_path / "whole.all.csv").read_bytes().splitlines(keepends=True)
            file.writelines(whole[1 + 4 * 16 :][:torn])
        else:
            file.write(torn)
    made: list[int] = []

    def counts(*args: Any) -> Iterator[Any]:
        for answer in original(*args):
            made.append(len(answer[0]))
            yield answer

    monkeypatch.setattr(module, "_predictions", counts)
    label(teacher, source, tmp_path / "cut.csv", threshold=0.0)
    # The same batches as without the kill: the last bits of an answer depend on its company.
    assert made == [16] * 8 + [200 % 16]
    assert not part.exists()
    for name in (".csv", ".all.csv"):
        assert (tmp_path / f"cut{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()


def test_labels_of_another_teacher_are_not_gone_on_with(teacher: Run, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    label(teacher, f"folder:{scans}", out, threshold=0.0)
    with pytest.raises(
        RunError, match=r"labels.all.csv holds labels made with other source and images; choose"
    ):
        label(teacher, f"folder:{scans}/val", out)
    facts = tmp_path / "labels.all.csv.json"
    facts.write_text(facts.read_text().replace(weights_hash(teacher.model()), "0" * 32))
    with pytest.raises(RunError, match="made with other weights"):
        label(teacher, f"folder:{scans}", out)
    facts.write_text("{")
    with pytest.raises(RunError, match="made with other"):
        label(teacher, f"folder:{scans}", out)


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_processes_label_a_part_each(
    names: tuple[str, str], teacher: Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(teacher, f"folder:{scans}", tmp_path / "one.csv", threshold=0.0)
    monkeypatch.setenv(names[1], "3")
    for rank in (2, 0):
        monkeypatch.setenv(names[0], str(rank))
        assert label(teacher, f"folder:{scans}", tmp_path / "three.csv", threshold=0.0) is None
        assert not (tmp_path / "three.csv").exists()
    monkeypatch.setenv(names[0], "1")
    label(teacher, f"folder:{scans}", tmp_path / "three.csv", threshold=0.0)
    one, three = (rows(tmp_path / f"{name}.csv") for name in ("one", "three"))
    assert [row[:2] for row in one] == [row[:2] for row in three]
    assert [float(row[2]) for row in one] == pytest.approx([float(row[2]) for row in three], rel=1e-4)


def test_images_that_cannot_be_read_are_passed_over(teacher: Run, scans: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for index, path in enumerate(sorted((scans / "val").rglob("*.png"))[:20]):
        (root / f"{index:02d}.png").write_bytes(path.read_bytes())
    for index in (*range(16), 18):  # a whole batch, and one of the next
        (root / f"{index:02d}.png").write_bytes(b"no image")
    found = label(teacher, f"folder:{root}", tmp_path / "labels.csv", threshold=0.0)
    assert found.selected.images == ["16.png", "17.png", "19.png"]
    assert found.unreadable == tuple(f"{index:02d}.png" for index in (*range(16), 18))
    assert found.truths is None
    said = predict(teacher, [root / name for name in found.selected.images], top=1)
    assert [found.selected.classes[target] for target in found.selected.targets] == [
        each.labels[0] for each in said
    ]


def test_half_precision_is_the_teacher_s(teacher: Run, scans: Path, tmp_path: Path) -> None:
    source = f"folder:{scans}/val"
    engine = replace(teacher.config.engine, precision="bf16-mixed", channels_last=True)
    half = replace(teacher, config=replace(teacher.config, engine=engine))
    found = label(half, source, tmp_path / "labels.csv", threshold=0.0, workers=1, batch_size=60)
    pictures = open_unlabelled(source, 1)
    network = teacher.model().to(memory_format=torch.channels_last)
    images = torch.stack([module.eval_transform(teacher.config.data)(pictures.read(i)) for i in range(60)])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = (
            network(images.contiguous(memory_format=torch.channels_last)).float().softmax(-1).max(-1).values
        )
    assert found.all_labels.probabilities == pytest.approx(expected.numpy(), rel=1e-2)
    assert len(set(found.all_labels.probabilities.tolist())) > 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": 1.5}, "threshold is a probability from 0 to 1; got 1.5"),
        ({"fill": True}, "fill repeats images up to per_class"),
        ({"per_class": 0}, "per_class is 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size is 1 or more; got 0"),
        ({"workers": -1}, "workers is 0 or more; got -1"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], sentence: str, teacher: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        label(teacher, "folder:nowhere", tmp_path / "labels.csv", **options)


def test_a_student_that_was_stopped_goes_on_to_the_bit(
    recipe: RunConfig, teacher: Run, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "labels.csv"
    label(teacher, f"folder:{scans}/train", labels, threshold=0.0)
    student = override(
        recipe, f"data.pseudo_labels={labels}", "data.pseudo_ratio=3", "engine.epochs=2",
        "data.augment.flip=0.5", "model.options.drop_path_rate=0.2",
    )  # fmt: skip
    result = train(student, run_dir=tmp_path / "whole")
    assert "40 labelled, 200 pseudo-labelled and 60 validation images" in result.summary
    interrupt(monkeypatch, 15, batch=13)
    with pytest.raises(TrainingInterrupted):
        train(student, run_dir=tmp_path / "cut")
    # The file may move; its content may not change.
    moved = tmp_path / "moved.csv"
    os.replace(labels, moved)
    os.replace(labels.with_suffix(".json"), moved.with_suffix(".json"))
    elsewhere = override(student, f"data.pseudo_labels={moved}")
    train(elsewhere, run_dir=tmp_path / "cut", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    first, *rest = moved.read_text().splitlines(keepends=True)
    moved.write_text("".join([first, *rest[1:]]))
    (tmp_path / "cut/summary.txt").unlink()
    with pytest.raises(RunError, match="began with other pseudo-labels; go on with the same"):
        train(elsewhere, run_dir=tmp_path / "cut", resume=True)
