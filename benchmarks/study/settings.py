"""Settings that all cells of a study share, checks of them, and the folder of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lambdanets import bench
from lambdanets.data import DataConfig, open_splits
from lambdanets.train import ModelConfig, RunConfig, from_json, to_json
from lambdanets.train.optim import create_optimizer
from lambdanets.train.serialization import encode, flatten

from .trunks import StudyContender

# Settings that may differ when a study goes on: the place of the images and how they are read. Unlike a
# single run, a study keeps its number of threads, which speed and last bits depend on.
MAY_DIFFER = {
    "data.source", "data.workers", "data.check", "data.cache", "data.download",
    "engine.save_minutes", "engine.save_steps",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Images:
    """Number of images of each split and of classes, and the hash of the image names."""

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
    """The settings of all cells; a cell adds its contender and its seed.

    Attributes:
        trunk: A key of `TRUNKS`.
        config: The configuration of all runs, without model and seed.
        contenders: All contenders of the study so far.
        images: The content of `config.data` at the start.
    """

    trunk: str
    config: RunConfig
    contenders: tuple[StudyContender, ...]
    images: Images

    def contender(self, name: str) -> StudyContender:
        """Return the contender with this name."""
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
        """Whether a run has begun; before that, settings may change."""
        return self.cells.exists() or any(self.directory.glob("runs/*/config.json"))

    def run(self, cell: Cell) -> Path:
        """Return the run folder of a cell, as `lambdanets train` writes it."""
        return self.directory / "runs" / f"{cell.contender}-seed{cell.seed}"

    def result(self, cell: Cell) -> Path:
        """Return the file with the result of a finished cell, which becomes a row of the tables."""
        return self.run(cell) / "cell.json"

    def results(self) -> list[Path]:
        """Return the result files of all finished cells, in the order in which they finished."""
        found = sorted(self.directory.glob("runs/*/cell.json"))
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def log(self, cell: Cell) -> Path:
        """Return the file with the output of a cell's process."""
        return self.run(cell).with_suffix(".log")


def cells_of(contenders: Sequence[StudyContender], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells, seeds outermost: an interrupted study has all contenders of its first seeds."""
    return [Cell(contender=contender.name, seed=seed) for seed in seeds for contender in contenders]


def find_images(data: DataConfig) -> Images:
    """Return the images of a study by their names, without decoding any.

    Raises:
        DataError: There are none.
    """
    splits = open_splits(replace(data, check=False, cache=False))
    return Images(
        train=len(splits.train),
        val=len(splits.val),
        classes=len(splits.classes),
        fingerprint=splits.fingerprint,
    )


def with_precision(config: RunConfig, files: StudyFiles) -> RunConfig:
    """Return the configuration in the precision of the study in the folder, else in the faster one.

    A CPU without bfloat16 arithmetic emulates it, many times slower than float32.
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
    """Write the settings of a study to its folder, and return `joined`.

    Raises:
        ValueError: The folder holds a study with other settings, or rows without their settings.
    """
    merged = joined(study, files)
    from lambdanets.train.checkpoint import write_text  # imports Lightning, which a report does not need

    write_text(files.settings, to_json(merged))
    return merged


def joined(study: Study, files: StudyFiles) -> Study:
    """Return the study with the contenders of the study in its folder added, which has the same settings.

    Contenders and seeds may be added, as no cell depends on others. Before a run has begun, the settings may
    change too.

    Raises:
        ValueError: The folder holds a study with other settings, or rows without their settings.
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
    """Return the study in a folder.

    Raises:
        ValueError: Its settings cannot be read.
    """
    try:
        return from_json(Study, files.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{files.settings} cannot be used: {error}") from error


def differences(stored: Study, now: Study) -> list[str]:
    """Return the differing settings of two studies, each as a clause with both values."""
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


def check_engine(config: RunConfig) -> None:
    """Check that Lightning can run these settings on this machine.

    Raises:
        RunError: It cannot.
    """
    from lambdanets.train.trainer import make_trainer, quiet_lightning, trainer_placement

    with quiet_lightning():
        make_trainer(**trainer_placement(config.engine), logger=False, enable_checkpointing=False)


def count_parameters(study: Study, contenders: Sequence[str]) -> dict[str, int]:
    """Build every contender on the meta device, run it on an image, and return its number of parameters.

    Raises:
        ValueError: Some contenders cannot be built; the error names each with its reason.
    """
    counted: dict[str, int] = {}
    reasons: list[str] = []
    for name in contenders:
        config = study.run_config(Cell(contender=name, seed=0))
        size = config.data.image_size
        try:
            with torch.device("meta"), torch.no_grad():
                network = config.network(study.images.classes).eval()
                create_optimizer(network, config.optimizer)
                counted[name] = sum(parameter.numel() for parameter in network.parameters())
                network(torch.empty(1, config.data.in_chans, size, size))
        except NotImplementedError:
            continue  # an operator without a meta kernel: no evidence against the contender
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            reasons.append(f"{name}: {reason}")
    if reasons:
        buildable = [name for name in contenders if not any(text.startswith(f"{name}: ") for text in reasons)]
        hint = f"; leave them out with --contenders {','.join(buildable)}" if buildable else ""
        raise ValueError(f"{len(reasons)} of {len(contenders)} contenders cannot be built here{hint}: "
                         + "; ".join(reasons))  # fmt: skip
    return counted
