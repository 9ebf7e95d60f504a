"""What tests of runs share: that two ended alike, and a signal at a given batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.classifier import Classifier

TIMES = ("_per_second", "_per_cpu_second", "data_wait", "seconds")  # ends of the names of such columns


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, momenta, metrics and counters are equal, to the last bit."""
    for name in ("last", "best"):
        a, b = (load_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for folder in (one, other))
        assert a["global_step"] == b["global_step"]
        assert a["state_dict"].keys() == b["state_dict"].keys()
        for key, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][key]), key
        for key, value in a["optimizer_states"][0]["state"].items():
            for part, tensor in value.items():
                assert torch.equal(tensor, b["optimizer_states"][0]["state"][key][part]), (key, part)
        assert untimed(a["run_state"]["history"]) == untimed(b["run_state"]["history"])
        assert a["run_state"]["best_epoch"] == b["run_state"]["best_epoch"]
    tables = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, other)]
    columns = tables[0][0].split(",")
    kept = [index for index, column in enumerate(columns) if not column.endswith(TIMES)]
    assert [[line.split(",")[i] for i in kept] for line in tables[0]] == [
        [line.split(",")[i] for i in kept] for line in tables[1]
    ]


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.endswith(TIMES)} for row in history]


def interrupt(
    monkeypatch: pytest.MonkeyPatch, number: int, *, batch: int, hook: str = "_record_loss"
) -> None:
    """Send this process a signal during a batch, once."""
    original = getattr(Classifier, hook)

    def wrapped(self: Classifier, *args: Any) -> Any:
        if self.state.batches_done == batch:
            monkeypatch.setattr(Classifier, hook, original)
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(Classifier, hook, wrapped)


@contextmanager
def raised_in_batch(monkeypatch: pytest.MonkeyPatch, module: type, batch: int) -> Iterator[None]:
    """Expect an exception that the training step of a module raises in a batch, as if the run was killed."""
    original = module.step  # pyright: ignore[reportAttributeAccessIssue]

    def step(self: Any, given: Any) -> Any:
        if self.state.batches_done == batch:
            raise KeyError("killed")
        return original(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(module, "step", step)
        with pytest.raises(KeyError, match="killed"):
            yield
