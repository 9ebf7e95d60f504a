"""The layer at sizes that other implementations cannot run: time and peak memory.

`python large.py COMMIT`

Writes large.csv: seconds of a forward or a training step (the first one, without the creation of weights and
input), and the peak of the process's resident memory.
"""

import csv
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

import lambdanets

CASES = ("2d 256x256 train", "2d 512x512 eval", "1d 65536 train", "1d 262144 eval")
CHANNELS, THREADS = 64, 2


def one(rank: str, grid: str, mode: str) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    sizes = tuple(map(int, grid.split("x")))
    layer = {"1d": lambdanets.LambdaLayer1d, "2d": lambdanets.LambdaLayer2d}[rank](CHANNELS, grid=sizes)
    layer.train(mode == "train")
    x = torch.randn(1, CHANNELS, *sizes, requires_grad=mode == "train")
    start = time.perf_counter()
    if mode == "train":
        layer(x).sum().backward()
    else:
        with torch.inference_mode():
            layer(x)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.3g},{peak:.3g}")


def main(commit: str) -> None:
    provenance = [torch.__version__, platform.python_version(), date.today().isoformat(), commit]
    with open(Path(__file__).parent / "large.csv", "w", newline="") as file:
        writer = csv.writer(file)
        head = "case channels threads seconds peak_gib torch python date commit"
        writer.writerow(head.split())
        for case in CASES:
            found = subprocess.run(
                [sys.executable, __file__, *case.split()], capture_output=True, check=True, text=True
            )
            writer.writerow([case, CHANNELS, THREADS, *found.stdout.strip().split(","), *provenance])
            print(case, found.stdout.strip(), flush=True)


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 2 else main(sys.argv[1])
