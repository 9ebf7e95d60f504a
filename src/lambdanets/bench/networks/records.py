"""The rows of a bench of networks: one for each network and pass, with what is published beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lambdanets.bench.passes import Pass
from lambdanets.bench.records import NONE, Provenance, read_rows, write_rows

from .entries import Entry, sides

IMAGES = 1024  # of a training step in the paper's latencies
NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network in one pass.

    Attributes:
        bench: What it was measured for: "models", "race", "table4", "table13" or "table14".
        title: What tables call it.
        family: The curve that it is a point of, or "".
        model: Name of the network.
        options: What its config was given, in words.
        size: Of the images, 224 or 160x224.
        mode: "train" or "eval".
        batch: Images of the pass that was measured; 0 where none was.
        wanted_batch: Images that were asked for; `batch` is smaller where memory or time did not suffice.
        parameters: How many; 0 where the network is absent.
        macs: Multiply-adds of a forward pass for one image.
        group: Those of one number took turns.
        note: Why nothing was measured, or how the numbers differ from the others'; "" is the rule.
        wall_ms: Median by the clock for the whole batch; with its quantiles `wall_q20` and `wall_q80`.
        cpu_ms: The same by processor time, of all threads.
        samples: How many.
        peak_mib: All that the network, its batch and its pass add to a process of their own, on a GPU to what
            PyTorch has allocated there.
        maps_gib: Maps or position tables as the paper's Table 4 counts them, by formula.
        published_source: Where the following are from; nothing of them is measured here.
        published_top1: Accuracy on ImageNet, percent.
        published_parameters_m: Millions of parameters.
        published_examples_per_s: Inference on 8 TPUv3 cores, float32; 0: out of memory.
        published_seconds: A training step of 1024 images on 8 TPUv3 cores, bfloat16.
        published_memory: GB as the paper counts them.
    """

    bench: str
    title: str
    family: str
    model: str
    options: str
    size: str
    mode: str
    batch: int = 0
    wanted_batch: int = 0
    parameters: int = 0
    macs: int = 0
    group: int = 0
    note: str = ""
    wall_ms: float = NONE
    wall_q20: float = NONE
    wall_q80: float = NONE
    cpu_ms: float = NONE
    cpu_q20: float = NONE
    cpu_q80: float = NONE
    samples: int = 0
    peak_mib: float = NONE
    maps_gib: float = NONE
    published_source: str = ""
    published_top1: float = NONE
    published_parameters_m: float = NONE
    published_examples_per_s: float = NONE
    published_seconds: float = NONE
    published_memory: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two rows the same measurement."""
        return self.title, self.model, self.options, self.size, self.mode

    @property
    def images_per_s(self) -> float:
        """Measured throughput, nan where nothing was measured."""
        return 1e3 * self.batch / self.wall_ms if self.samples else NONE

    @property
    def ms_per_image(self) -> float:
        return self.wall_ms / self.batch if self.samples else NONE

    @property
    def seconds(self) -> float:
        """Measured seconds for 1024 images."""
        return self.ms_per_image * IMAGES / 1e3

    @property
    def spread(self) -> float:
        """Half of what lies between the quantiles, as a fraction of the median."""
        return (self.wall_q80 - self.wall_q20) / 2 / self.wall_ms if self.samples > 1 else NONE


def blank(bench: str, entry: Entry, which: Pass) -> Row:
    """Return the row of a network in a pass before it is measured, with what is published about it."""
    row = Row(
        bench=bench,
        title=entry.title,
        family=entry.family,
        model=entry.model,
        options=entry.settings,
        size=sides(entry.size),
        mode=which,
        maps_gib=NONE if entry.maps_gib is None else entry.maps_gib,
    )
    said = entry.published
    if said is None:
        return row
    return replace(
        row,
        published_source=said.source,
        published_top1=_or_none(said.top1),
        published_parameters_m=_or_none(said.parameters_m),
        published_examples_per_s=_or_none(said.examples_per_s),
        published_seconds=_or_none(said.seconds),
        published_memory=said.memory,
    )


def _or_none(value: float | None) -> float:
    return NONE if value is None else value


Measured = tuple[Row, Provenance]


def by_processor(measured: Iterable[Measured]) -> list[Measured]:
    """Return rows whose times are the processor's, of all threads, in place of those by the clock."""
    return [
        (replace(row, wall_ms=row.cpu_ms, wall_q20=row.cpu_q20, wall_q80=row.cpu_q80), where)
        for row, where in measured
    ]


def write(path: Path, rows: Iterable[Measured]) -> None:
    """Write all rows, each with its own provenance: a bench may go on another day."""
    write_rows(path, Row, rows)


def read(path: Path, bench: str) -> list[Measured]:
    """Read what `write` wrote.

    Raises:
        ValueError: The file is no such table, has no rows, or is of another bench.
    """
    rows: list[Measured] = read_rows(path, Row, f"lambdanets bench {bench}")
    if (other := rows[0][0].bench) != bench:
        raise ValueError(
            f"{path} was measured by `lambdanets bench {other}`, not by `lambdanets bench {bench}`"
        )
    return rows
