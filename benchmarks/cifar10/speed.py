"""Training steps of both networks in turn, one thread, batch 128: writes speed.csv. `python speed.py COMMIT`.

CPU seconds of this process rather than wall time, as other programs ran on the machine.
"""

import csv
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import lambdanets

NAMES = ("lambda_resnet_cifar", "resnet_cifar_conv")
ROUNDS = 15


def main(commit: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    form = torch.channels_last
    images = torch.randn(128, 3, 32, 32).to(memory_format=form)
    targets = torch.randint(10, (128,))
    networks = {name: lambdanets.create_model(name).to(memory_format=form).train() for name in NAMES}
    optimisers = {name: torch.optim.SGD(network.parameters(), lr=0.01) for name, network in networks.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(ROUNDS + 2):
        for name, network in networks.items():
            for precision in ("float32", "bfloat16"):
                start = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                    logits = network(images)
                cross_entropy(logits.float(), targets).backward()
                optimisers[name].step()
                optimisers[name].zero_grad()
                if turn >= 2:
                    seconds.setdefault((name, precision), []).append(time.process_time() - start)
    with open(Path(__file__).parent / "speed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        head = "model precision images_per_cpu_second q20 q80 torch python date commit"
        writer.writerow(head.split())
        for (name, precision), times in seconds.items():
            low, *_, high = statistics.quantiles(times, n=5)
            figures = [round(128 / t, 1) for t in (statistics.median(times), high, low)]
            versions = [torch.__version__, platform.python_version(), date.today().isoformat(), commit]
            writer.writerow([name, precision, *figures, *versions])


if __name__ == "__main__":
    main(sys.argv[1])
