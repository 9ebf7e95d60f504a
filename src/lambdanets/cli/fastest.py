"""The forms in which networks are fastest on a CPU, as measured: the advice of `lambdanets show`.

`fastest.csv` is written by `benchmarks/models/cpu.py --draw`; without rows there is no advice.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from lambdanets.bench.records import parse

FILE = Path(__file__).with_suffix(".csv")
MODES = {"eval": "Inference", "train": "Training"}
FORMS = {
    "contiguous": "with PyTorch's defaults",
    "channels-last": "in channels-last format",
    "kept memory": "in channels-last format with freed memory kept",
    "bfloat16": "in channels-last format with bfloat16 autocast and freed memory kept",
    "compiled": "in channels-last format with torch.compile",
    "compiled bfloat16": "in channels-last format with torch.compile and bfloat16 autocast",
    "onnxruntime": "as an ONNX file in onnxruntime",
}


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """The fastest form of one case.

    Attributes:
        model: Name of the network.
        size: Height and width of the images.
        mode: "eval" or "train".
        batch: Images of a pass.
        bfloat16: 1 for CPUs with bfloat16 instructions, 0 for others, where bfloat16 is emulated.
        form: A key of `FORMS`.
        images_per_s: Its throughput.
        speed_up: Its throughput divided by that of PyTorch's defaults.
    """

    model: str
    size: int
    mode: str
    batch: int
    bfloat16: int
    form: str
    images_per_s: float
    speed_up: float


def advice(model: str, *, bfloat16: bool) -> list[str]:
    """Return sentences on the fastest forms of a network on a CPU; none if it was not measured.

    Args:
        model: Name of the network.
        bfloat16: Whether the CPU has bfloat16 instructions.
    """
    if not FILE.exists():
        return []
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    found: list[Fastest] = [parse(Fastest, row) for row in rows if row["bfloat16"] == str(int(bfloat16))]
    sentences = []
    for mode, title in MODES.items():
        parts = [
            f"{FORMS[each.form]} at batch {each.batch} ({each.images_per_s:g} images/s, "
            f"{each.speed_up:g} times PyTorch's defaults)"
            for each in found
            if each.mode == mode
        ]
        if parts:
            sentences.append(f"{title} on a CPU is fastest {' and '.join(parts)}.")
    if sentences:
        row = rows[0]
        sentences.append(
            f"Measured at {row['size']} pixels, threads={row['threads']}, on: {row['processor'].strip()}."
        )
    return sentences
