"""MKL's products, oneDNN's, and transforms, on one core: writes a file for the CPU's instruction set.

`python products.py COMMIT`. One thread, CPU seconds, medians; float32, and PyTorch's products in half
precision. Shapes are those of the kernels' products; `gaps` is a right factor whose rows have gaps; the
transforms are two-dimensional, 16 at a time.
"""

import csv
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

SHAPES = ((1024, 1024, 1024), (6272, 196, 64), (1024, 128, 128), (4096, 16, 196))
POINTS = (56, 80, 128)


def seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(7):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")


def measure() -> list[tuple[str, str, float]]:
    rows = []
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k), torch.randn(k, n)
        flops, shape = 2 * m * k * n, f"{m}x{k}x{n}"
        rows.append(("mkl", shape, flops / seconds(lambda a=a, b=b: a @ b)))
        rows.append(("onednn", shape, flops / seconds(lambda a=a, b=b: onednn(a, b))))
    for dtype in (torch.bfloat16, torch.float16):
        a, b = torch.randn(1024, 128).to(dtype), torch.randn(128, 128).to(dtype)
        rate = 2 * 1024 * 128 * 128 / seconds(lambda a=a, b=b: a @ b)
        rows.append((str(dtype).removeprefix("torch."), "1024x128x128", rate))
    a, b = torch.randn(256, 56), torch.randn(56, 2048)[:, :512]
    flops = 2 * 256 * 56 * 512
    rows.append(("onednn, gaps", "256x56x512", flops / seconds(lambda: onednn(a, b))))
    rows.append(("onednn", "256x56x512", flops / seconds(lambda: onednn(a, b.contiguous()))))
    for p in POINTS:
        x = torch.randn(16, p, p // 2 + 1, dtype=torch.complex64)
        flops = 2.5 * p * p * math.log2(p * p) * 16
        rows.append(
            ("irfft2", f"16x{p}x{p}", flops / seconds(lambda x=x, p=p: torch.fft.irfft2(x, s=(p, p))))
        )
    return rows


def main(commit: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    provenance = [torch.__version__, platform.python_version(), date.today().isoformat(), commit]
    path = Path(__file__).parent / f"products-{torch.backends.cpu.get_cpu_capability().lower()}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "shape", "gflops", "torch", "python", "date", "commit"])
        for what, shape, rate in measure():
            writer.writerow([what, shape, f"{rate / 1e9:.3g}", *provenance])
            print(what, shape, f"{rate / 1e9:.3g}")


if __name__ == "__main__":
    main(sys.argv[1])
