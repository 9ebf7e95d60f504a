"""What a study is: settings that all its cells share, and the folder where they and the results are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lambdanets import bench
from lambdanets.data import DataConfig, open_splits
from lambdanets.train import ModelConfig, RunConfig, from_json, to_json
from lambdanets.train.serialization import encode, flatten

from .contenders import Contender

# What may differ when a study goes on: where the images lie and how they are read. Unlike a single run, it
# keeps its number of threads, which speed and last bits depend on.
MAY_DIFFER = {
    "data.source", "data.workers", "data.check", "data.cache", "data.download",
    "engine.save_minutes", "engine.save_steps",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many images there are on each side, of how many classes, and the hash of their names."""

    train: int
    val: int
    classes: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    contender: str
    seed: int

    def __str__(self) -> str:
        return f"{self.contender} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every cell of a study is a function of, beside its contender and its seed.

    Attributes:
        trunk: a name of `TRUNKS`.
        config: the run that all cells share; each brings its own model and seed.
        contenders: all that have been asked for so far.
        images: what `config.data` held at the start.
    """

    trunk: str
    config: RunConfig
    contenders: tuple[Contender, ...]
    images: Images

    def contender(self, name: str) -> Contender:
        """Return the contender of a name."""
        return next(contender for contender in self.contenders if contender.name == name)

    def run_config(self, cell: Cell) -> RunConfig:
        """Return the complete configuration of a cell; options of the recipe's model go to all."""
        contender = self.contender(cell.contender)
        options = {**self.config.model.options, **contender.options}
        return replace(self.config, model=ModelConfig(name=contender.model, options=options), seed=cell.seed)


@dataclass(frozen=True)
class StudyFiles:
    """The paths inside the folder of a study."""

    directory: Path

    @property
    def settings(self) -> Path:
        return self.directory / "study.json"

    @property
    def cells(self) -> Path:
        return self.directory / "cells.csv"

    @property
    def curves(self) -> Path:
        return self.directory / "curves.csv"

    @property
    def report(self) -> Path:
        return self.directory / "study.md"

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"

    @property
    def begun(self) -> bool:
        """Whether a run has begun; before that, settings bind nobody."""
        return self.cells.exists() or any(self.directory.glob("runs/*/config.json"))

    def run(self, cell: Cell) -> Path:
        """The run folder of a cell, as `lambdanets train` leaves it."""
        return self.directory / "runs" / f"{cell.contender}-seed{cell.seed}"

    def result(self, cell: Cell) -> Path:
        """What the process of a cell leaves when it has finished; it becomes a row of the tables."""
        return self.run(cell) / "cell.json"

    def results(self) -> list[Path]:
        """The results of all cells that have finished, in the order of their ends."""
        found = sorted(self.directory.glob("runs/*/cell.json"))
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def log(self, cell: Cell) -> Path:
        """What the process of a cell printed."""
        return self.run(cell).with_suffix(".log")


def cells_of(contenders: Sequence[Contender], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells, seeds outermost: a study that is cut short has whole rounds."""
    return [Cell(contender=contender.name, seed=seed) for seed in seeds for contender in contenders]


def find_images(data: DataConfig) -> Images:
    """Find the images of a study by their names, without decoding any.

    Raises:
        DataError: there are none.
    """
    splits = open_splits(replace(data, check=False, cache=False))
    return Images(
        train=len(splits.train),
        val=len(splits.val),
        classes=len(splits.classes),
        fingerprint=splits.fingerprint,
    )


def with_precision(config: RunConfig, files: StudyFiles) -> RunConfig:
    """Return the configuration in the precision of the study that goes on, else in the faster one.

    A processor without bfloat16 arithmetic emulates it, many times slower than float32.
    """
    precision = config.engine.precision
    if files.settings.is_file() and files.begun:
        precision = load_study(files).config.engine.precision
    elif precision == "bf16-mixed" and (config.engine.accelerator == "cpu" or not torch.cuda.is_available()):
        speeds = [
            bench.measure_machine(dtype, "cpu", side=256, times=3)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        precision = "bf16-mixed" if speeds[1].gflops_cpu > speeds[0].gflops_cpu else "32"
    return replace(config, engine=replace(config.engine, precision=precision))


def settle(study: Study, files: StudyFiles) -> Study:
    """Keep the settings of a study in its folder, where they are new or as they were, and return `joined`.

    Raises:
        ValueError: the folder holds a study with other settings, or rows without their settings.
    """
    merged = joined(study, files)
    from lambdanets.train.checkpoint import write_text  # brings Lightning, which a report can do without

    write_text(files.settings, to_json(merged))
    return merged


def joined(study: Study, files: StudyFiles) -> Study:
    """Return the study with all contenders that its folder knows, once the settings are known to be the same.

    Contenders and seeds may be added: no cell depends on which others there are. Before a run has begun,
    the settings may change too.

    Raises:
        ValueError: the folder holds a study with other settings, or rows without their settings.
    """
    if not files.settings.is_file():
        if files.cells.exists():
            raise ValueError(
                f"{files.directory} holds {files.cells.name} but no {files.settings.name}, which its rows "
                "were made with: draw them with --report, or choose another --out"
            )
        return study
    if not files.begun:
        return study
    stored = load_study(files)
    if changed := differences(stored, study):
        raise ValueError(
            f"the study in {files.directory} has other settings: {'; '.join(changed)}. Cells are "
            "compared with one another: give the same settings, or choose another --out"
        )
    known = {contender.name for contender in stored.contenders}
    added = [contender for contender in study.contenders if contender.name not in known]
    return replace(study, contenders=(*stored.contenders, *added))


def load_study(files: StudyFiles) -> Study:
    """Return the study whose settings a folder holds.

    Raises:
        ValueError: they cannot be read.
    """
    try:
        return from_json(Study, files.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{files.settings} cannot be used: {error}") from error


def differences(stored: Study, now: Study) -> list[str]:
    """Return what differs between two studies, each as a clause with both values."""
    was, new = (
        {"trunk": each.trunk, **flatten(each.config), **flatten(each.images, "images.")}
        for each in (stored, now)
    )
    found = [
        f"{name} was {was[name]!r} and is now {new[name]!r}"
        for name in was
        if was[name] != new[name] and name not in MAY_DIFFER
    ]
    before = {contender.name: contender for contender in stored.contenders}
    for contender in now.contenders:
        old = before.get(contender.name)
        if old is not None and (old.model, encode(old.options)) != (
            contender.model,
            encode(contender.options),
        ):
            found.append(
                f"contender {contender.name} was {old.model} {json.dumps(encode(old.options))} and is now "
                f"{contender.model} {json.dumps(encode(contender.options))}"
            )
    return found
