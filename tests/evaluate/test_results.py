import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lambdanets.data import DataConfig
from lambdanets.evaluate.measurement import Evaluation
from lambdanets.evaluate.results import ClassRow, append_row, check_table, class_rows, timm_row, write_classes
from lambdanets.evaluate.scoring import Scores
from lambdanets.evaluate.target import EvalTarget
from lambdanets.train import EngineConfig, RunError

HEADER = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation"
# As timm publishes it.
LARGEST = "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k,448,90.054,9.946,99.056,0.944,305.08,1.000,bicubic"
PUBLISHED = f"{HEADER}\n{LARGEST}\n"


@pytest.fixture
def target() -> EvalTarget:
    return EvalTarget(
        name="flat",
        weights="best weights",
        network=nn.Linear(1000, 1234),
        classes=("n01440764", "cat", "dog"),
        data=DataConfig(image_size=256, crop_pct=0.95),
        engine=EngineConfig(),
        built_for=224,
    )


@pytest.fixture
def evaluation(target: EvalTarget) -> Evaluation:
    counts = {"images": [8, 0, 3], "top1": [3, 0, 1], "top5": [6, 0, 3], "guessed": [4, 2, 5]}
    arrays = {name: np.array(values) for name, values in counts.items()}
    calibration = np.zeros((3, 15))
    calibration[:, 4] = 5, 1, 1.5
    calibration[:, 13] = 6, 3, 5.4
    scores = Scores(**arrays, calibration=calibration, loss_sum=22.0, seconds=5.5)
    return Evaluation(scores=scores, data=target.data, choices=3)


def test_figures(evaluation: Evaluation) -> None:
    assert evaluation.scores.figures() == {
        "loss": 2.0,
        "top1": 4 / 11,
        "top5": 9 / 11,
        "balanced_accuracy": pytest.approx((3 / 8 + 1 / 3) / 2),
        "macro_precision": pytest.approx((3 / 4 + 1 / 5) / 2),
        "macro_f1": pytest.approx((2 * 3 / 12 + 2 * 1 / 8) / 2),
        "calibration_error": pytest.approx((0.5 + 2.4) / 11),
        "images": 11,
        "images_per_second": 2.0,
    }


def test_a_row_of_timms_table(target: EvalTarget, evaluation: Evaluation, tmp_path: Path) -> None:
    row = timm_row(target, evaluation, label="runs/flat")
    line = "runs/flat,256,36.364,63.636,81.818,18.182,1.24,0.950,bicubic\n"  # 1000 x 1234 + 1234 weights
    append_row(tmp_path / "new" / "table.csv", row)
    assert (tmp_path / "new" / "table.csv").read_text() == f"{HEADER}\n{line}"
    for published in (PUBLISHED, PUBLISHED.rstrip("\n")):
        (tmp_path / "table.csv").write_text(published)
        append_row(tmp_path / "table.csv", row)
        append_row(tmp_path / "table.csv", row)
        assert (tmp_path / "table.csv").read_text() == PUBLISHED + line + line
    (tmp_path / "empty.csv").touch()
    append_row(tmp_path / "empty.csv", row)
    assert (tmp_path / "empty.csv").read_text() == f"{HEADER}\n{line}"


def test_a_row_goes_into_an_older_table(target: EvalTarget, evaluation: Evaluation, tmp_path: Path) -> None:
    older = "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation,note"
    (tmp_path / "table.csv").write_text(f"{older}\n")
    append_row(tmp_path / "table.csv", timm_row(target, evaluation, label="flat"))
    line = "flat,36.364,63.636,81.818,18.182,1.24,256,0.950,bicubic,"
    assert (tmp_path / "table.csv").read_text() == f"{older}\n{line}\n"


def test_a_row_by_real_labels(target: EvalTarget, evaluation: Evaluation) -> None:
    judged = replace(evaluation, real={"top1": 0.5, "top5": 0.75, "images": 8})
    row = timm_row(target, judged, label="flat")
    assert [row[name] for name in ("top1", "top1_err", "top5", "top5_err")] == [
        "50.000",
        "50.000",
        "75.000",
        "25.000",
    ]


@pytest.mark.parametrize("text", ["class,name,images,top1,top5\n", "\n", "model,img_size,top1\nx,1,2\n"])
def test_another_table_is_left_alone(
    target: EvalTarget, evaluation: Evaluation, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(RunError, match=r"table\.csv is no table of timm's results"):
        check_table(file)
    with pytest.raises(RunError, match="is no table"):
        append_row(file, timm_row(target, evaluation, label="flat"))
    assert file.read_text() == text


def test_classes_without_images_have_no_row(
    target: EvalTarget, evaluation: Evaluation, tmp_path: Path
) -> None:
    rows = class_rows(evaluation.scores, target.classes)
    assert rows == [
        ClassRow(
            name="n01440764", description="tench, Tinca tinca", images=8, top1=3 / 8, top5=0.75,
            precision=0.75, f1=0.5,
        ),
        ClassRow(
            name="dog", description="dog", images=3, top1=pytest.approx(1 / 3), top5=1.0,
            precision=0.2, f1=0.25,
        ),
    ]  # fmt: skip
    write_classes(tmp_path / "new" / "classes.csv", rows)
    with (tmp_path / "new" / "classes.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "name", "images", "top1", "top5", "precision", "recall", "f1"],
            ["n01440764", "tench, Tinca tinca", "8", "0.375", "0.75", "0.75", "0.375", "0.5"],
            ["dog", "dog", "3", "0.333333", "1", "0.2", "0.333333", "0.25"],
        ]
