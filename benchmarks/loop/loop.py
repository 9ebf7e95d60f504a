"""The overhead of `train` over a bare loop of PyTorch: writes loop.csv. `python loop.py COMMIT`.

A step of `train` and a bare one (forward, backward, optimiser, and the average where there is one) take turns
in one process, on batches in memory: the bare step is done where `train` fetches a batch. Times are
CPU seconds of this process, as other programs may run on the machine; pin it to one core (`taskset -c 0`).

The time that `train` adds does not depend on the number of images: it is the median of the differences within
a pair, at batches of two, where the noise of large steps does not hide it. The overhead is this time over the
median bare step of the recipe's batch.
"""

import argparse
import csv
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import lambdanets
from lambdanets.data import Splits
from lambdanets.recipes import cifar
from lambdanets.train import RunConfig, engine, module, override
from lambdanets.train.optim import create_optimizer

CASES = (("lambda_resnet_cifar", 32, 128), ("lambda_resnet50", 128, 16))  # model, image size, batch
FEW = 2  # images of the batches at which the difference is measured
WARMUP = 5


class Turns(Dataset):
    """Repeats one batch; before each, a bare step is done and both are timed."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int, bare: Callable[[], None]) -> None:
        self.batch, self.steps, self.bare = batch, steps, bare
        self.left: tuple[float, float] | None = None
        self.times: list[
            tuple[float, float, float, float]
        ] = []  # CPU and wall seconds of train, then of bare

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        entered = now()
        self.bare()
        done = now()
        if self.left is not None:
            train = [a - b for a, b in zip(entered, self.left, strict=True)]
            bare = [a - b for a, b in zip(done, entered, strict=True)]
            self.times.append((*train, *bare))  # pyright: ignore[reportArgumentType]
        self.left = now()
        return self.batch


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def bare_step(config: RunConfig, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """Return the training step of a plain PyTorch loop."""
    network = config.network(10).to(memory_format=torch.channels_last).train()
    optimiser = create_optimizer(network, config.optimizer)
    averaged = config.network(10).to(memory_format=torch.channels_last)
    pairs = zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
    moving = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
    means, news = [mean for mean, _ in moving], [new for _, new in moving]
    images, targets = batch

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.engine.precision == "bf16-mixed"):
            loss = cross_entropy(network(images), targets, label_smoothing=config.loss.label_smoothing)
        loss.backward()
        optimiser.step()
        if config.engine.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(means, news, 1 - config.engine.ema)

    return step


def random_batch(config: RunConfig) -> tuple[Tensor, Tensor]:
    size, count = config.data.image_size, config.data.batch_size
    images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
    return images, torch.randint(10, (count,))


def measure_bare(config: RunConfig, steps: int) -> list[float]:
    """Return the CPU seconds of bare steps of the recipe's batch."""
    step = bare_step(config, random_batch(config))
    times = [now()[0]]
    for _ in range(WARMUP + steps):
        step()
        times.append(now()[0])
    return [after - before for before, after in pairwise(times)][WARMUP:]


def measure(config: RunConfig, steps: int) -> list[tuple[float, float, float, float]]:
    """Return CPU and wall seconds of steps of `train` and of the bare ones before them."""
    batch = random_batch(config)
    turns = Turns(batch, steps, bare_step(config, batch))
    splits: Any = Splits(turns, [batch], tuple(map(str, range(10))), "")  # pyright: ignore
    engine.open_splits = lambda *args, **options: splits
    module.train_loader = lambda *args, **options: DataLoader(turns, batch_size=None)
    module.eval_loader = lambda *args, **options: DataLoader([batch], batch_size=None)  # pyright: ignore
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        engine.train(config, run_dir=Path(folder) / "run")
    return turns.times[WARMUP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="of the measured code")
    parser.add_argument("--steps", type=int, default=200, help="pairs of small steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare-steps", type=int, default=20, help="bare steps of the recipe's batch")
    parser.add_argument("--models", nargs="+", default=[name for name, _, _ in CASES])
    parser.add_argument("--precisions", nargs="+", default=["32", "bf16-mixed"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("loop.csv"))
    given = parser.parse_args()
    torch.manual_seed(0)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = {
        "threads": 1, "cores": cores, "processor": (names or [platform.processor()])[0],
        "commit": given.commit, "torch": torch.__version__, "lightning": lightning.__version__,
        "lambdanets": lambdanets.__version__, "python": platform.python_version(),
        "date": date.today().isoformat(),
    }  # fmt: skip
    rows = []
    for name, size, batch in CASES:
        for precision in given.precisions:
            for ema in (None, 0.999):
                if name not in given.models:
                    continue
                config = override(
                    cifar(), f"model.name={name}", f"data.image_size={size}", f"data.batch_size={batch}",
                    f"engine.ema={ema}", f"engine.precision={precision}", "engine.epochs=1",
                    f"engine.max_batches={given.steps}", "engine.threads=1", "engine.accelerator=cpu",
                    "engine.save_minutes=None",
                )  # fmt: skip
                torch.set_num_threads(1)
                bare = 1e3 * statistics.median(measure_bare(config, given.bare_steps))
                small = override(config, f"data.batch_size={FEW}")
                times = [pair for _ in range(given.rounds) for pair in measure(small, given.steps)]
                added, low, high = middle([1e3 * (train - own) for train, _, own, _ in times])
                clock, _, _ = middle([1e3 * (train - own) for _, train, _, own in times])
                rows.append(
                    {
                        "model": name,
                        "size": size,
                        "batch": batch,
                        "precision": precision,
                        "ema": ema,
                        "pairs": len(times),
                        "bare_cpu_ms": f"{bare:.2f}",
                        "small_bare_cpu_ms": f"{1e3 * statistics.median(own for _, _, own, _ in times):.2f}",
                        "added_cpu_ms": f"{added:.3f}",
                        "added_q20": f"{low:.3f}",
                        "added_q80": f"{high:.3f}",
                        "added_clock_ms": f"{clock:.3f}",
                        "overhead": f"{added / bare:.4f}",
                        **where,
                    }
                )
                print({key: rows[-1][key] for key in list(rows[-1])[:13]}, flush=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def middle(values: list[float]) -> tuple[float, float, float]:
    """The median with q20 and q80."""
    low, *_, high = statistics.quantiles(values, n=5)
    return statistics.median(values), low, high


if __name__ == "__main__":
    main()
