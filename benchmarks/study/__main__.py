"""`python -m benchmarks.study`: contenders on one trunk, trained alike, with several seeds."""

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro import conf

from benchmarks import study as studies
from lambdanets.cli import main
from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import FAILURE, UsageError, check_name, usage
from lambdanets.cli.options import parse, shown
from lambdanets.recipes import get_recipe
from lambdanets.train import RunConfig, override
from lambdanets.utils.processes import InUseError, locked

from .records import CellRecord
from .running import Progress
from .settings import Cell, Study, StudyFiles
from .trunks import StudyContender, Trunk
from .view import View, format_seconds

SEEDS = (0, 1, 2)
EXTRA = 'pip install "lambdanets[train]"'


def study(
    *,
    trunk: Literal["cifar_half", "cifar", "mini", "digits"] = "cifar_half",
    data: Annotated[str | None, shown("SOURCE", "the recipe's")] = None,
    contenders: Annotated[str | None, shown("NAME,NAME", "all of the trunk")] = None,
    seeds: Annotated[str | None, shown("N,N", "0,1,2")] = None,
    epochs: Annotated[int | None, shown("N", "the trunk's")] = None,
    minutes: Annotated[float | None, shown("N", "as long as the epochs take")] = None,
    subset: Annotated[int | None, shown("N", "all")] = None,
    size: Annotated[int | None, shown("N", "the recipe's")] = None,
    batch_size: Annotated[int | None, shown("N", "the recipe's")] = None,
    precision: Annotated[str | None, shown("32 | bf16-mixed | 16-mixed", "the faster")] = None,
    device: Annotated[Literal["auto", "cpu", "gpu"], conf.arg(metavar="auto | cpu | gpu")] = "auto",
    threads: int = 1,
    jobs: Annotated[int | None, shown("N", "cores / threads; 1 on a GPU")] = None,
    set: Annotated[tuple[str, ...], conf.UseAppendAction, shown("PATH=VALUE")] = (),
    out: Annotated[Path | None, shown("FOLDER", "runs/study-TRUNK")] = None,
    dry_run: bool = False,
    report: bool = False,
) -> int:
    """Train every contender with every seed, each in a process of its own, and compare them.

    The same command goes on where it was stopped: finished cells are never run again, the others continue
    from their checkpoints. Leaves cells.csv (a row for each run), curves.csv (its epochs), study.md and the
    figure, all kept up to date while it runs.

    Args:
        trunk: The network: cifar_half and cifar (32x32 images), mini (photos; every contender, conv too, has
            squeeze-and-excitation in c2 and c3), digits (to try a study).
        data: Images: folder:PATH, torch/cifar10:PATH, ... (`lambdanets list`).
        contenders: Which of them; the others can follow later.
        seeds: Each gives one run to every contender.
        epochs: Passes over the training images.
        minutes: As many epochs as fit into these minutes, at most --epochs, by the time of a few steps; a
            study that goes on keeps its own number.
        subset: Training images of each class, the same for all; the validation images stay.
        size: Height and width of the images.
        batch_size: Images in a step.
        precision: Of the arithmetic, in Lightning's terms; a study that goes on keeps its own.
        device: Where the cells run.
        threads: Of each process.
        jobs: Processes at once.
        set: Any other field of the recipe, such as optimizer.lr=0.1; may be repeated.
        out: The folder of the study.
        dry_run: Train nothing but a few steps of each contender, and estimate the time of the study.
        report: Train nothing; draw report and figure again from the cells.csv in the folder, of --contenders
            and --seeds alone where they are given.
    """
    files = StudyFiles(out or Path(f"runs/study-{trunk}"))
    if report:
        return _report_alone(files, contenders, seeds)
    with usage():
        chosen = _chosen(studies.TRUNKS[trunk], contenders)
        numbers = list(SEEDS) if seeds is None else _seeds(seeds)
        shortcuts = {
            "data.source": data,
            "data.train_per_class": subset,
            "data.image_size": size,
            "data.batch_size": batch_size,
            "engine.epochs": studies.TRUNKS[trunk].epochs if epochs is None else epochs,
            "engine.precision": precision,
            "engine.accelerator": device,
            "engine.devices": 1,
            "engine.threads": threads,
        }
        changes = [f"{path}={value}" for path, value in shortcuts.items() if value is not None]
        if trunk == "mini" and data is None:
            raise UsageError("--trunk mini needs photos: give --data folder:PATH.")
        base: Any = get_recipe(studies.TRUNKS[trunk].recipe)
        options = {**base.model.options, **studies.TRUNKS[trunk].options}
        config = override(replace(base, model=replace(base.model, options=options)), *changes, *set)
        config = replace(config, data=config.data.resolved())
        studies.check_engine(config)
        if precision is None:
            config = studies.with_precision(config, files)
        parallel = _jobs(config, jobs)
    study = Study(trunk=trunk, config=config, contenders=chosen, images=studies.find_images(config.data))
    with usage():
        parameters = studies.count_parameters(study, [contender.name for contender in chosen])
        cells = studies.cells_of(chosen, numbers)
        if minutes is not None and not minutes > 0:
            raise UsageError(f"--minutes is above 0; got {minutes:g}.")
        if minutes is not None and files.begun:
            study = _with_epochs(study, studies.load_study(files).config.engine.epochs)
        if dry_run or (minutes is not None and not files.begun):
            studies.joined(study, files)  # raises before the estimate where the folder holds another study
            begun = time.monotonic()
            found, code = _estimate(study, files, cells, parameters, parallel)
            if minutes is not None and found and not files.begun:
                left_over = minutes - (time.monotonic() - begun) / 60
                study = _with_epochs(study, _within(left_over, minutes, found, study, cells, parallel))
            if dry_run or code:
                return code
        return _run(study, files, cells, parallel)


def _within(
    left_over: float,
    minutes: float,
    found: Mapping[str, studies.Estimate],
    study: Study,
    cells: list[Cell],
    jobs: int,
) -> int:
    epochs = study.config.engine.epochs
    fitting = studies.epochs_within(left_over, found, cells, epochs=epochs, jobs=jobs)
    if not fitting:
        raise UsageError(f"not one epoch of each of {len(cells)} cells fits into {minutes:g} minutes.")
    of_all = f", {epochs} were asked for" if fitting > epochs else f" of {epochs}"
    stdout().print(f"{fitting} epochs{of_all} fit into {minutes:g} minutes, this trial included")
    return min(fitting, epochs)


def _with_epochs(study: Study, epochs: int) -> Study:
    """Return the study with other epochs, of which the warm-up is a quarter at most."""
    warmup = min(study.config.schedule.warmup_epochs, epochs // 4)
    changes = (f"engine.epochs={epochs}", f"schedule.warmup_epochs={warmup}")
    return replace(study, config=override(study.config, *changes))


def _chosen(trunk: Trunk, names: str | None) -> tuple[StudyContender, ...]:
    if names is None:
        return trunk.contenders
    return trunk.choose(_names(names, [contender.name for contender in trunk.contenders]))


def _names(text: str, known: Sequence[str]) -> list[str]:
    words = _words(text)
    if not words:
        raise UsageError(f"--contenders takes names with commas between them, not {text!r}.")
    for word in words:
        check_name("contender", word, known)
    return words


def _seeds(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(re.fullmatch(r"\d+", word) for word in words):
        raise UsageError(
            f"--seeds takes whole numbers with commas between them, such as 0,1,2; not {text!r}."
        )
    numbers = list(dict.fromkeys(map(int, words)))
    if max(numbers) >= 2**63:
        raise UsageError(f"--seeds takes numbers below 2**63, not {max(numbers)}.")
    return numbers


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _jobs(config: RunConfig, asked: int | None) -> int:
    if asked is not None:
        if asked < 1:
            raise UsageError(f"--jobs is 1 or more; got {asked}.")
        return asked
    if config.engine.accelerator != "cpu" and torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (config.engine.threads or cores))


def _run(study: Study, files: StudyFiles, cells: list[Cell], jobs: int) -> int:
    files.directory.mkdir(parents=True, exist_ok=True)
    with locked(files.lock, f"the study in {files.directory}"):
        study = studies.settle(study, files)
        with View(study, stdout()) as view:
            written = 0

            def watch(progress: Progress) -> None:
                nonlocal written
                view.show(progress)
                if len(progress.done) > written:
                    written = len(progress.done)
                    _write(studies.read(files.cells), files)

            try:
                progress = studies.run(study, files, cells, jobs=jobs, watch=watch)
            except (KeyboardInterrupt, SystemExit):
                view.close()
                done = len(studies.read(files.cells))
                stderr().print(f"lambdanets: stopped; {done} cells are finished. The same command goes on.")
                raise
    _show(studies.read(files.cells))
    _print_written(files)
    for failure in progress.failed.values():
        stderr().print(f"lambdanets: {failure.cell} failed: {failure.reason} (see {failure.log})")
    return FAILURE if progress.failed else 0


def _estimate(
    study: Study, files: StudyFiles, cells: list[Cell], parameters: dict[str, int], jobs: int
) -> tuple[Mapping[str, studies.Estimate], int]:
    """Show the estimated time of the open cells; return the estimates and the exit code."""
    rows = {record.cell for record in studies.read(files.cells)}
    open_cells = [cell for cell in cells if cell not in rows]
    names = list(dict.fromkeys(cell.contender for cell in open_cells))
    with View(study, stdout(), timing=True) as view:
        found, failed = studies.estimate(study, names, jobs=jobs, watch=view.show)
    made = table(contender="left", model="left", parameters="right", images_per_second="right",
                 per_CPU_s="right",
                 a_cell="right", cells_left="right", why_not="wrap")  # fmt: skip
    total = 0.0
    for contender in study.contenders:
        number = sum(cell.contender == contender.name for cell in open_cells)
        one = found.get(contender.name)
        total += number * one.seconds if one else 0.0
        made.add_row(
            contender.name,
            contender.model,
            f"{parameters[contender.name]:,}",
            f"{one.images_per_second:,.0f}" if one else "-",
            f"{one.images_per_cpu_second:,.0f}" if one else "-",
            format_seconds(one.seconds) if one else "-",
            str(number),
            failed[contender.name].reason if contender.name in failed else "",
        )
    images = f"{study.images.train:,} images, {study.config.engine.epochs} epochs"
    draw(stdout(), f"{len(open_cells)} of {len(cells)} cells are left; {images}, {jobs} at once", made)
    if any(one.images_per_cpu_second > 1.3 * one.images_per_second for one in found.values()):
        stdout().print("the machine is busy with other work; alone, the cells would be faster")
    how = f"a few steps of each in precision {study.config.engine.precision}; nothing was kept"
    stdout().print(f"about {format_seconds(total / jobs)} in all, from {how}")
    return found, FAILURE if failed else 0


def _report_alone(files: StudyFiles, contenders: str | None, seeds: str | None) -> int:
    with usage():
        if files.results():
            # A running study restores the tables itself.
            with suppress(InUseError), locked(files.lock, f"the study in {files.directory}"):
                studies.restore(files)
        records = studies.read(files.cells)
        if not records:
            raise UsageError(f"{files.cells} holds no finished cells: there is nothing to report.")
        if contenders is not None:
            names = _names(contenders, list(dict.fromkeys(record.contender for record in records)))
            records = [record for record in records if record.contender in names]
        if seeds is not None:
            numbers, known = _seeds(seeds), sorted({record.seed for record in records})
            if unknown := [number for number in numbers if number not in known]:
                raise UsageError(
                    f"no finished cell has seed {unknown[0]}; there are {', '.join(map(str, known))}."
                )
            records = [record for record in records if record.seed in numbers]
    _write(records, files)
    _show(records)
    _print_written(files)
    return 0


def _write(records: Sequence[CellRecord], files: StudyFiles) -> None:
    try:
        figures = studies.draw_figures(records, files.directory)
    except ModuleNotFoundError as error:
        figures = []
        print(f"no figure without {error.name}: {EXTRA}", file=sys.stderr)
    files.report.write_text(studies.markdown(records, [figure.name for figure in figures]), encoding="utf-8")


def _show(records: Sequence[CellRecord]) -> None:
    if not records:
        return
    console, made = stdout(), studies.summary_table(records)
    rows = table(**{name: "left" if place == 0 else "right" for place, name in enumerate(made.headings)})
    for column in rows.columns:
        column.no_wrap = False  # a number cut off in a narrow terminal would be another number
    for cells in made.rows:
        rows.add_row(*cells)
    draw(console, made.title, rows)
    for note in made.notes:
        console.print(note, style="dim")


def _print_written(files: StudyFiles) -> None:
    names = [path.name for path in (files.cells, files.curves, files.report) if path.exists()]
    names += [name for name in ("study.png", "study.svg") if (files.directory / name).exists()]
    stdout().print(f"\nin {files.directory}: {', '.join(names)}", soft_wrap=True)


def run(words: list[str]) -> int:
    """Run the words after `python -m benchmarks.study` and return the exit code."""
    return parse(study, prog="python -m benchmarks.study", words=words)()


if __name__ == "__main__":
    sys.exit(main(run=run))
