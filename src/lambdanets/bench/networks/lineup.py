"""Who is measured at which batch, and who takes turns with whom, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lambdanets.bench.measuring import Timing
from lambdanets.bench.passes import Pass
from lambdanets.bench.race import Settings
from lambdanets.bench.records import NONE, Provenance

from .entries import Cost, Entry, absent, cost
from .records import NOT_RUN, Measured, blank

# What a network reaches of a matrix product's speed, for estimates alone: how far a bench is, which batch.
EFFICIENCY = 0.3
START = 2.0  # seconds that a process of its own takes to begin
SHARE_OF_TIME = 3  # a batch is chosen such that so many steps fit into the time of one network and pass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is measured of whom.

    Attributes:
        batch: Images of a pass, halved where memory does not suffice.
        fixed: Whether the batch was asked for; otherwise it is halved as well where steps would be too long.
        largest: Multiply-adds of a forward pass for one image, in units of 10^9, above which a network is
            not run; None for no limit.
        together: How many networks take turns at most.
    """

    batch: int = 8
    fixed: bool = False
    largest: float | None = None
    together: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.largest is not None and not self.largest > 0:
            raise ValueError(f"largest must be greater than 0, got {self.largest}")


@dataclass
class Contender:
    """A network on its way through the bench: its batch, what is known so far, and what is expected."""

    entry: Entry
    cost: Cost
    batch: int
    peak_mib: float = NONE
    notes: list[str] = field(default_factory=list)
    run: Callable[[], object] | None = None
    first: Timing = field(default_factory=Timing)
    rounds: int = 0
    failed: bool = False
    # Seconds that are expected: for the peak, the first step, and all samples together.
    probe: float = 0.0
    step: float = 0.0
    sampling: float = 0.0


def contenders(
    bench: str,
    which: Pass,
    entries: Sequence[Entry],
    settings: Settings,
    limits: Limits,
    rows: dict[tuple[str, ...], Measured],
    where: Provenance,
) -> Iterator[Contender]:
    """Yield those still to be measured; who cannot be gets a row now.

    Args:
        bench: What for; see `Row`.
        which: The pass.
        entries: The networks.
        settings: How they are measured.
        limits: With which batch, and who is left out.
        rows: Rows by key, those of a bench that was cut short; more are put in.
        where: Provenance of the rows made here; its matrix product is the scale of what steps will take.
    """
    for entry in entries:
        empty = blank(bench, entry, which)
        if empty.key in rows:
            continue
        if reason := absent(entry):
            rows[empty.key] = replace(empty, note=f"{NOT_RUN}: {reason}"), where
            continue
        known = cost(entry)
        empty = replace(empty, parameters=known.parameters, macs=known.macs, wanted_batch=limits.batch)
        if limits.largest is not None and known.macs > 1e9 * limits.largest:
            reason = f"{NOT_RUN}: above the {limits.largest:g} GMAC of --largest"
            rows[empty.key] = replace(empty, note=reason), where
            continue
        yield _contender(entry, known, which, settings, limits, where)


def _contender(
    entry: Entry, known: Cost, which: Pass, settings: Settings, limits: Limits, where: Provenance
) -> Contender:
    speed = EFFICIENCY * 1e9 * where.gemm_gflops
    image = 2 * known.macs * (3 if which == "train" else 1) / speed  # seconds
    batch = limits.batch
    while not limits.fixed and batch > 1 and batch * image > settings.max_seconds / SHARE_OF_TIME:
        batch //= 2
    made = Contender(entry=entry, cost=known, batch=batch)
    if batch < limits.batch:
        made.notes.append(f"batch {batch}: steps of {limits.batch} images would take too long")
    made.step = batch * image
    made.probe = START + made.step if settings.memory else 0.0
    made.sampling = min(settings.rounds * made.step, settings.max_seconds)
    return made


def groups(members: Iterator[Contender], limits: Limits) -> Iterator[list[Contender]]:
    """Yield neighbours that take turns."""
    group: list[Contender] = []
    for contender in members:
        group.append(contender)
        if len(group) == limits.together:
            yield group
            group = []
    if group:
        yield group
