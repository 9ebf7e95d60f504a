"""The two tables of a study, from which reports are drawn: a row for each finished cell, and its epochs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lambdanets.bench.records import cell, parse
from lambdanets.utils.files import parse_json

from .settings import Cell, StudyFiles


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One finished cell.

    Attributes:
        contender, title, seed: The cell, and the title of the contender in tables.
        trunk, recipe, model, options: The trained network; options as JSON.
        parameters: Number of parameters.
        epochs, image_size, batch_size: Of the run.
        lr: Highest learning rate of the optimizer.
        data: Name of the source, without the folders around it.
        train_images, val_images, classes, fingerprint: Content of the source; the fingerprint is of a folder.
        top1: Validation accuracy of the last epoch's weights, as a fraction.
        best_top1, best_epoch: Of the best epoch; it is chosen on the same images, so the accuracy is biased.
        train_top1, train_loss, val_loss: Of the last epoch.
        images_per_second: In training, by wall time, over all epochs.
        images_per_cpu_second: By CPU time of all threads; other programs do not change it much.
        seconds: Wall time of all epochs with their validations.
        peak_mib: Peak of the resident memory of the process that finished the cell, libraries and images
            included; NaN where the training was finished before.
        peak_gpu_mib: Peak of what PyTorch allocated on the GPU.
        threads, jobs: Threads of the process, and processes at once.
        precision, device, processor, system, load: Hardware and precision.
        lambdanets, commit, torch, timm, python, date: Versions and time.
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


def read(path: Path) -> list[CellRecord]:
    """Read the rows of a `cells.csv`, the last one of each cell; none where the file does not exist.

    Raises:
        ValueError: The file is another table, or a line of it is damaged.
    """
    lines = _cell_lines(path)
    for line in lines:
        if line.damage:
            raise line.error()
    records = [parse(CellRecord, line.row) for line in lines]
    return list({record.cell: record for record in records}.values())


def to_cells(record: CellRecord) -> dict[str, str]:
    """Return the cells of a record; `bench.records.parse` is the inverse."""
    return {field.name: str(cell(getattr(record, field.name))) for field in fields(CellRecord)}


def restore(files: StudyFiles) -> None:
    """Add the results of runs that both tables lack, and remove damaged and duplicate lines.

    Each table is replaced as a whole, and only where it changes: a reader never finds half of one. The curves
    come first: a cell with a row is never run again.

    Args:
        files: Of the study; the caller holds its lock.

    Raises:
        ValueError: A result is damaged, or a line whose run has no result.
    """
    results = {record.cell: (record, epochs) for record, epochs in map(_result, files.results())}
    cell_lines, curve_lines = _cell_lines(files.cells), _lines(files.curves, ("contender", "seed", "epoch"))
    for line in (*cell_lines, *curve_lines):
        if line.damage and not any(line.may_be_of(cell) for cell in results):
            raise line.error()
    rows = {line.which: line.row for line in cell_lines if not line.damage}
    curves: dict[tuple[str, str], list[dict[str, str]]] = {}
    for line in curve_lines:
        if not line.damage:
            curves.setdefault(line.which, []).append(line.row)
    for record, epochs in results.values():
        which = record.contender, str(record.seed)
        rows.setdefault(which, to_cells(record))
        if [row["epoch"] for row in curves.get(which, [])] != [row["epoch"] for row in epochs]:
            curves[which] = epochs
    _replace(files.curves, curve_lines, [row for epochs in curves.values() for row in epochs])
    _replace(files.cells, cell_lines, list(rows.values()))


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of a table with its readable cells, and the reason why it is damaged, or ""."""

    path: Path
    number: int
    row: dict[str, str]
    damage: str

    @property
    def which(self) -> tuple[str, str]:
        return self.row["contender"], self.row["seed"]

    def may_be_of(self, cell: Cell) -> bool:
        """Return whether the readable part fits a cell."""
        contender, seed = self.row.get("contender", ""), self.row.get("seed", "")
        return cell.contender.startswith(contender) and str(cell.seed).startswith(seed)

    def error(self) -> ValueError:
        return ValueError(
            f"{self.path}, line {self.number}, is damaged ({self.damage}): delete the line; what a cell.json "
            "in runs still has comes back when the study goes on, and cells without a row are run again"
        )


def _cell_lines(path: Path) -> list[_Line]:
    lines = _lines(path, [field.name for field in fields(CellRecord)])
    return [line if line.damage else replace(line, damage=_damage(line.row)) for line in lines]


def _damage(row: dict[str, str]) -> str:
    try:
        parse(CellRecord, row)
    except ValueError as error:
        return str(error)
    return ""


def _lines(path: Path, columns: Sequence[str]) -> list[_Line]:
    if not path.exists():
        return []
    found: list[_Line] = []
    try:
        # A line at a time, as no cell holds a line break: a quote that is never closed damages one row.
        texts = path.read_text(encoding="utf-8").split("\n")
        names, *rows = [next(csv.reader([text]), []) for text in texts]
        if missing := [name for name in columns if name not in names and rows]:
            raise ValueError(f"it has no column {missing[0]!r}")
        if names and not rows:
            found.append(_Line(path=path, number=1, row={}, damage="it ends early"))
        for number, values in enumerate(rows, 2):
            if not values:
                continue
            damage = "it ends early" if number == len(texts) else ""
            if len(values) != len(names):
                damage = f"it has {len(values)} values, not {len(names)}"
            row = dict(zip(names, values, strict=False))
            found.append(_Line(path=path, number=number, row=row, damage=damage))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not a table of a study: {error}") from error
    return found


def _result(path: Path) -> tuple[CellRecord, list[dict[str, str]]]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        record = parse(CellRecord, found["row"])
        which = {"contender": record.contender, "seed": str(record.seed)}
        return record, [
            {**which, **{name: f"{value:.6g}" for name, value in epoch.items()}} for epoch in found["epochs"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete the folder {path.parent}, and a cell without a row is "
            "run again"
        ) from error


def _replace(path: Path, lines: Sequence[_Line], rows: Sequence[dict[str, str]]) -> None:
    if [line.row for line in lines] == rows and not any(line.damage for line in lines):
        return
    from lambdanets.train.checkpoint import write_text  # imports Lightning, which a report does not need

    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
