"""Where a run is: the little that must survive a kill besides weights and optimiser."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from torch import Tensor

from lambdanets.train.errors import RunError
from lambdanets.train.typed import decode


@dataclass(kw_only=True)
class RunState:
    """Progress of a run, in plain numbers; stored inside every checkpoint.

    Attributes:
        batches_done: batches trained on since the start of the run, on one device.
        batches_per_epoch: of the training loader.
        sums: of what training measures, and its images, in the epoch so far over all devices.
        train_seconds, wait_seconds, epoch_seconds: of the epoch so far, over all sessions.
        cpu_seconds: of the processor, in all threads of the process that trains, over the training batches.
        history: one finished epoch each: the rows of `metrics.csv`.
        best_epoch: the best so far by its validation; 0 is none yet.
        best_confusion: of a classifier, of shape (classes, classes), truth by prediction.
        fingerprint: of the names and classes of the images on both sides, "" where the source has none.
        weights_digest: SHA-256 of the file of weights that the run started from, "" where it had none.
    """

    batches_done: int = 0
    batches_per_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    epoch_seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_confusion: Tensor | None = None
    fingerprint: str = ""
    weights_digest: str = ""

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, from 0, and the batches already done in it: where the training data continues."""
        return divmod(self.batches_done, max(self.batches_per_epoch, 1))

    @property
    def seconds(self) -> float:
        """Time spent on finished epochs and the current one."""
        return sum(row["seconds"] for row in self.history) + self.epoch_seconds

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; empty before there is one."""
        return next((row for row in self.history if row["epoch"] == self.best_epoch), {})

    def start_epoch(self) -> None:
        """Clear the running sums."""
        self.sums = {}
        self.train_seconds = self.wait_seconds = self.epoch_seconds = self.cpu_seconds = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain types and tensors, as a checkpoint that loads with `weights_only=True` needs."""
        return asdict(self)

    @classmethod
    def misfit(cls, plain: Mapping[str, Any]) -> str:
        """Return which field is of another type than `to_dict` gives, or ""."""
        for name, kind in get_type_hints(cls).items():
            try:
                if name in plain:
                    decode(kind, plain[name], f"run_state.{name}")
            except ValueError as error:
                return str(error)
        return ""

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "RunState":
        """The state that `to_dict` gave.

        Raises:
            RunError: another version of this package gave it, which kept other things.
        """
        if plain.keys() != {each.name for each in fields(cls)}:
            raise RunError(
                "the checkpoint is of another version of lambdanets, which kept other things of a run: "
                "continue the run with the version that began it"
            )
        return cls(**plain)
