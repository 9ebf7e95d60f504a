"""The two tables of a study: a row for each finished cell, and its epochs. All else is drawn from them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from lambdanets.bench.records import cell, parse

from .settings import Cell, StudyFiles


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished cell.

    Attributes:
        contender, title, seed: which cell, and the contender's title in tables.
        trunk, recipe, model, options: what was trained; options as JSON.
        parameters: how many.
        epochs, image_size, batch_size: of the run.
        lr: the optimizer's learning rate, at its highest.
        data: name of the source, without the folders around it.
        train_images, val_images, classes, fingerprint: what the source held; the fingerprint is of a folder.
        top1: validation accuracy of the last epoch's weights, as a fraction.
        best_top1, best_epoch: of the best epoch; it is chosen on these very images, and therefore flattered.
        train_top1, train_loss, val_loss: of the last epoch.
        images_per_second: in training, by the clock, over all epochs.
        images_per_cpu_second: by processor time of all threads; other programs do not change it much.
        seconds: of all epochs with their validations, by the clock.
        peak_mib: peak of the resident memory of the process that ended the cell, libraries and images
            included; nan where that process found the training done.
        peak_gpu_mib: peak of what PyTorch allocated on the GPU.
        threads, jobs: of the process, and processes at once.
        precision, device, processor, system, load: where and how.
        lambdanets, commit, torch, timm, python, date: with what, and when.
    """

    contender: str
    title: str
    seed: int
    trunk: str
    recipe: str
    model: str
    options: str
    parameters: int
    epochs: int
    image_size: int
    batch_size: int
    lr: float
    data: str
    train_images: int
    val_images: int
    classes: int
    fingerprint: str
    top1: float
    best_top1: float
    best_epoch: int
    train_top1: float
    train_loss: float
    val_loss: float
    images_per_second: float
    images_per_cpu_second: float
    seconds: float
    peak_mib: float
    peak_gpu_mib: float
    threads: int
    jobs: int
    precision: str
    device: str
    processor: str
    system: str
    load: float
    lambdanets: str
    commit: str
    torch: str
    timm: str
    python: str
    date: str

    @property
    def cell(self) -> Cell:
        return Cell(contender=self.contender, seed=self.seed)


def read(path: Path) -> list[Record]:
    """Read the rows of a `cells.csv`; none where there is no such file.

    Raises:
        ValueError: it is another table.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [parse(Record, row) for row in csv.DictReader(file)]
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a table of `lambdanets bench study`: {error!r}") from error


def words(record: Record) -> dict[str, str]:
    """Return the row of a record; `bench.records.parse` gives it back."""
    return {field.name: str(cell(getattr(record, field.name))) for field in fields(Record)}


def append(files: StudyFiles, record: Record, history: Iterable[Mapping[str, float]]) -> None:
    """Add a finished cell to both tables; each is replaced as a whole, so that no reader finds half of one.

    The curves come first: a cell whose row is there is never run again.

    Args:
        files: of the study.
        record: the cell's row.
        history: its epochs.
    """
    which = {"contender": record.contender, "seed": str(record.seed)}
    epochs = [{**which, **{name: f"{value:.6g}" for name, value in epoch.items()}} for epoch in history]
    _extend(files.curves, which, epochs)
    _extend(files.cells, which, [words(record)])


def _extend(path: Path, which: Mapping[str, str], added: list[dict[str, str]]) -> None:
    from lambdanets.train.checkpoint import write_text  # brings Lightning, which a report can do without

    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            kept = [row for row in rows if any(row[name] != value for name, value in which.items())]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(added[0]), lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*kept, *added])
    write_text(path, text.getvalue())
