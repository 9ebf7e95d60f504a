"""Shares of the time of inference by kind of operation: writes shares.csv.

CPU time of one thread in PyTorch's profiler, after warm-up. Dense convolutions are all that are not
depthwise, 1x1 ones too; lambda layers count their products separately.
`python shares.py COMMIT`, `--help` for the options.
"""

import argparse
import csv
import platform
from collections import defaultdict
from datetime import date
from pathlib import Path

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import lambdanets  # registers the models

MODELS = ("efficientnet_b0:224", "efficientnet_b4:380", "resnet152_rs_se:224", "lambda_resnet152:224")
CALLS = 3
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::thnn_conv2d", "aten::addmm")
PRODUCTS = ("aten::bmm", "aten::mm", "aten::baddbmm")


def kind(name: str, shapes: list[list[int]]) -> str:
    """Return the kind of an operation."""
    if name in CONVOLUTIONS:
        weight = shapes[1] if len(shapes) > 1 else []
        depthwise = len(weight) == 4 and weight[1] == 1 and max(weight[2:]) > 1
        return "depthwise convolutions" if depthwise else "dense convolutions"
    if name.startswith("lambdanets::") or name in PRODUCTS:
        return "lambda layers' products"
    return "batch norms" if "batch_norm" in name else "activations, gates, sums, copies"


def shares(name: str, size: int, batch: int) -> dict[str, float]:
    """Return the share of each kind in the time of a forward pass."""
    model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    spent: dict[str, float] = defaultdict(float)
    with torch.inference_mode():
        for _ in range(CALLS):
            model(images)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            for _ in range(CALLS):
                model(images)
    for event in found.key_averages(group_by_input_shape=True):
        spent[kind(event.key, event.input_shapes)] += event.self_cpu_time_total
    total = sum(spent.values())
    print(f"{name} {size}: {total / CALLS / 1e3:,.0f} ms")
    return {each: time / total for each, time in spent.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="of the measured code")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL:SIZE")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--processor", default=platform.processor())
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = {
        "batch": given.batch, "processor": given.processor, "commit": given.commit,
        "torch": torch.__version__, "timm": timm.__version__, "lambdanets": lambdanets.__version__,
        "date": date.today().isoformat(),
    }  # fmt: skip
    rows = []
    for each in given.models:
        name, size = each.split(":")
        for what, share in sorted(shares(name, int(size), given.batch).items(), key=lambda item: -item[1]):
            rows.append({"model": name, "size": size, "kind": what, "share": f"{share:.4f}", **where})
            print(f"  {share:6.1%} {what}")
    with (Path(__file__).parent / "shares.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
