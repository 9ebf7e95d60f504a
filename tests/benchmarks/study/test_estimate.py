"""How many epochs fit into some minutes."""

import pytest

from benchmarks.study import Cell, Estimate, epochs_within

FAST = Estimate(images_per_second=100.0, images_per_cpu_second=50.0, seconds=80.0, start=10.0)
SLOW = Estimate(images_per_second=80.0, images_per_cpu_second=40.0, seconds=100.0, start=10.0)


@pytest.mark.parametrize(
    ("minutes", "jobs", "epochs"),
    [
        (2, 1, 1),  # 4 cells, 10 s each to begin and 20 s an epoch
        (6, 1, 4),
        (10, 1, 7),
        (2, 2, 2),
        (2, 3, 2),  # two turns, as with 2
        (2, 4, 5),
        (0.5, 1, 0),
    ],
)
def test_epochs_that_fit(minutes: float, jobs: int, epochs: int) -> None:
    cells = [Cell(contender=name, seed=seed) for seed in (0, 1) for name in ("fast", "slow")]
    assert epochs_within(minutes, {"fast": FAST, "slow": SLOW}, cells, epochs=5, jobs=jobs) == epochs
