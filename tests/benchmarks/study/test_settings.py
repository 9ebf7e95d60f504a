"""What a study may change when it goes on, in which order it runs, and how long that takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study import (
    TRUNKS,
    Cell,
    Progress,
    Study,
    StudyFiles,
    cells_of,
    check_engine,
    count_parameters,
    find_images,
    joined,
    settle,
    with_precision,
)
from benchmarks.study.settings import load_study
from benchmarks.study.trunks import StudyContender
from lambdanets.recipes import get_recipe
from lambdanets.train import from_json, override, to_json


@pytest.fixture
def study() -> Study:
    config = get_recipe("digits")
    chosen = TRUNKS["digits"].choose(["conv", "lambda"])
    return Study(trunk="digits", config=config, contenders=chosen, images=find_images(config.data))


def begin(files: StudyFiles) -> None:
    """Leave what a run leaves before its first step."""
    (files.directory / "runs" / "conv-seed0").mkdir(parents=True)
    (files.directory / "runs" / "conv-seed0" / "config.json").write_text("{}")


def test_a_study_survives_its_file(study: Study, tmp_path: Path) -> None:
    assert (study.images.train, study.images.val, study.images.classes) == (1438, 359, 10)
    files = StudyFiles(tmp_path)
    settle(study, files)
    assert load_study(files) == study == from_json(Study, to_json(study))


def test_other_settings_are_refused_by_name(study: Study, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    settle(study, files)
    begin(files)
    other = replace(
        study, config=override(study.config, "optimizer.lr=0.3", "engine.epochs=7", "data.workers=1")
    )
    with pytest.raises(
        ValueError, match=r"optimizer\.lr was 0\.1 and is now 0\.3; engine\.epochs was 30 and"
    ) as told:
        settle(other, files)
    assert "workers" not in str(told.value)
    fewer = replace(study, images=replace(study.images, train=1400))
    with pytest.raises(ValueError, match=r"images\.train was 1438 and is now 1400"):
        settle(fewer, files)
    wider = (replace(study.contenders[0], options={"widths": (8, 8)}),)
    with pytest.raises(
        ValueError, match=r"contender conv was resnet_digits_conv \{\} and is now resnet_digits_conv \{"
    ):
        settle(replace(study, contenders=wider), files)
    assert load_study(files) == study


def test_contenders_may_be_added_and_left_out(study: Study, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    settle(replace(study, contenders=study.contenders[:1]), files)
    begin(files)
    merged = settle(replace(study, contenders=study.contenders[1:]), files)
    assert [contender.name for contender in merged.contenders] == ["conv", "lambda"]


def test_settings_bind_from_the_first_run_on(study: Study, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    settle(
        replace(study, config=override(study.config, "engine.epochs=7", "engine.precision=16-mixed")), files
    )
    settled = settle(replace(study, config=with_precision(study.config, files)), files)
    assert load_study(files) == settled
    assert (settled.config.engine.epochs, settled.config.engine.precision) == (30, "32")


def test_joining_a_study_writes_nothing(study: Study, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path)
    assert joined(study, files) == study
    assert not files.settings.exists()


def test_what_this_machine_cannot_run_is_refused(study: Study) -> None:
    check_engine(override(study.config, "engine.accelerator=cpu"))
    with pytest.raises(ValueError, match=r"the engine settings cannot be used here: .*'nowhere'"):
        check_engine(override(study.config, "engine.accelerator=nowhere"))


def test_rows_without_their_settings_are_refused(study: Study, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("contender\n")
    with pytest.raises(ValueError, match=r"holds cells\.csv but no study\.json"):
        settle(study, StudyFiles(tmp_path))


def test_seeds_are_outermost(study: Study) -> None:
    cells = cells_of(study.contenders, (4, 2))
    assert list(map(str, cells)) == ["conv seed 4", "lambda seed 4", "conv seed 2", "lambda seed 2"]
    config = study.run_config(cells[3])
    assert (config.model.name, config.seed) == ("lambda_resnet_digits", 2)
    assert replace(config, model=study.config.model, seed=study.config.seed) == study.config


def test_contenders_that_cannot_be_built_are_named_before_anything_is_trained(study: Study) -> None:
    bad = (
        StudyContender(name="ghost", title="", model="resnet_digits_ghost"),
        StudyContender(name="odd", title="", model="resnet_digits_conv", options={"depht": 3}),
    )
    both = replace(study, contenders=(*study.contenders, *bad))
    with pytest.raises(ValueError, match="2 of 4 contenders cannot be built here") as told:
        count_parameters(both, ["conv", "lambda", "ghost", "odd"])
    for part in (
        "--contenders conv,lambda:",
        "no model named 'resnet_digits_ghost'",
        "has no option 'depht'",
    ):
        assert part in str(told.value)
    assert count_parameters(study, ["conv"]) == {"conv": 54378}


def test_every_contender_of_a_trunk_has_a_name_of_its_own() -> None:
    for trunk in TRUNKS.values():
        names = [contender.name for contender in trunk.contenders]
        assert len(set(names)) == len(names)
        assert names[0] == "conv"
    with pytest.raises(ValueError, match="there is no contender 'x'; there are conv"):
        TRUNKS["digits"].choose(["x"])


def test_time_left_follows_each_contenders_own_pace() -> None:
    slow, fast = Cell(contender="slow", seed=0), Cell(contender="fast", seed=0)
    later = [Cell(contender=name, seed=1) for name in ("slow", "fast", "new")]
    progress = Progress(cells=[slow, fast, *later], epochs=10, jobs=1)
    assert progress.seconds_left() is None
    progress.running = {slow: [{"seconds": 8.0}, {"seconds": 12.0}], fast: [{"seconds": 2.0}]}
    # slow: 10 s an epoch, 8 and 10 left; fast: 2 s, 9 and 10 left; new: their mean, 6 s, 10 left.
    assert progress.seconds_left() == pytest.approx(18 * 10 + 19 * 2 + 10 * 6)
    assert progress.waiting == later
