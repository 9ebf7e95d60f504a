"""timm's lambda networks as they are, accelerated, and with bare projections: writes accelerate.csv.

The last is the bound: each lambda layer reduced to one 1x1 projection. The three take turns, and differences
in cost are medians over the turns. A case whose outputs or gradients differ ends the run.
`python accelerate.py COMMIT`, `--help` for the options.
"""

import argparse
import copy
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import timm
import torch
from timm.layers.lambda_layer import LambdaLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lambdanets
from lambdanets.models import to_channels_last

MODELS = ("lambda_resnet26t", "lambda_resnet50ts", "lambda_resnet26rpt_256")
SIZES = (128, 224, 256, 320)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative, root mean square
WARM_UP = 2


def networks(name: str, size: int) -> dict[str, nn.Module]:
    """The three networks of a case: one set of weights, away from where they start, residuals awake."""
    options = {"img_size": size} if "rpt" in name else {}  # a relative table is made for one size
    original = timm.create_model(name, **options)
    for part in original.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    bound = copy.deepcopy(original)
    for parent in list(bound.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, LambdaLayer):
                projection = nn.Conv2d(child.qkv.in_channels, child.num_heads * child.dim_v, 1, bias=False)
                setattr(parent, child_name, nn.Sequential(projection, child.pool))
    accelerated = lambdanets.accelerate(copy.deepcopy(original))
    return {"original": original, "accelerated": accelerated, "bound": bound}


def step(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A training pass; gradients are left in the parameters."""
    network.zero_grad()
    logits = network(images)
    cross_entropy(logits, targets).backward()
    return logits


def difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def refuse_if_different(original: nn.Module, accelerated: nn.Module, images: Tensor, targets: Tensor) -> None:
    """Compare outputs in both modes, and gradients in float64: batch norms amplify the rounding of float32.

    Copies are compared, since a training pass updates statistics, on two images.
    """
    images, targets = images[:2], targets[:2]
    for dtype, tolerance in TOLERANCE.items():
        pair = [copy.deepcopy(network).to(dtype).eval() for network in (accelerated, original)]
        with torch.inference_mode():
            found = {"output in evaluation": difference(*(network(images.to(dtype)) for network in pair))}
        logits = [step(network.train(), images.to(dtype), targets) for network in pair]
        found["output in training"] = difference(*logits)
        if dtype == torch.float64:
            gradients = [torch.cat([p.grad.flatten() for p in network.parameters()]) for network in pair]
            found["gradient"] = difference(*gradients)
        for name, value in found.items():
            if not value < tolerance:
                raise SystemExit(f"no speed without correctness: {name} differs by {value:.1e} in {dtype}")


def run_of(mode: str, network: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A forward pass without gradients, or a whole training step."""
    if mode == "eval":
        network.eval()

        def run() -> None:
            with torch.inference_mode():
                network(images)
    else:
        network.train()
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)

        def run() -> None:
            step(network, images, targets)
            optimiser.step()

    return run


def measure(
    runs: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if turn >= WARM_UP:
                times[name].append(1e3 * (clock() - start))
    return times


def row_of(times: dict[str, list[float]]) -> dict[str, str]:
    """Medians with their 20 % and 80 % quantiles, the speed-ups, and the part of the cost that is gone."""
    row = {}
    for name, values in times.items():
        low, *_, high = statistics.quantiles(values, n=5)
        row |= {f"{name}_ms": f"{statistics.median(values):.4g}", f"{name}_q20": f"{low:.4g}"}
        row[f"{name}_q80"] = f"{high:.4g}"
    original, accelerated, bound = (statistics.median(times[n]) for n in ("original", "accelerated", "bound"))
    row["speed_up"], row["speed_up_bound"] = f"{original / accelerated:.3f}", f"{original / bound:.3f}"
    removed, cost = (
        statistics.median(a - b for a, b in zip(times["original"], times[other], strict=True))
        for other in ("accelerated", "bound")
    )
    row["cost_removed"] = f"{removed / cost:.3f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the commit that is measured")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--modes", nargs="+", default=("eval", "train"), choices=("eval", "train"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="weights and images in this format")
    parser.add_argument("--clock", default="process", choices=("process", "wall"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quantiles need that")
    torch.set_num_threads(options.threads)
    clock = {"process": time.process_time, "wall": time.perf_counter}[options.clock]
    provenance = {
        "layout": "channels_last" if options.channels_last else "contiguous",
        "clock": options.clock,
        "threads": options.threads,
        "rounds": options.rounds,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "commit": options.commit,
    }
    rows = []
    for name in options.models:
        for size in options.sizes:
            torch.manual_seed(0)
            images, targets = torch.randn(options.batch, 3, size, size), torch.randint(1000, (options.batch,))
            made = networks(name, size)
            if options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
                made = {variant: to_channels_last(network) for variant, network in made.items()}
            refuse_if_different(made["original"], made["accelerated"], images, targets)
            for mode in options.modes:
                runs = {variant: run_of(mode, network, images, targets) for variant, network in made.items()}
                row = row_of(measure(runs, options.rounds, clock))
                case = {"model": name, "size": size, "batch": options.batch, "mode": mode}
                rows.append({**case, **row, **provenance})
                print(
                    f"{name:<24}{size:>4} {mode:<6}{row['original_ms']:>7} -> {row['accelerated_ms']:>7} ms, "
                    f"bound {row['bound_ms']:>7}: {row['speed_up']}x of {row['speed_up_bound']}x, "
                    f"{float(row['cost_removed']):.0%} of the cost removed",
                    flush=True,
                )
                with open(options.out, "w", newline="") as file:  # after every case: a long run may be cut
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
