"""Draw curves.png and curves.svg from the CSVs of this folder: `python plot.py`."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RUNS = {
    "lambda_resnet_cifar": ("lambda in the last stage", "#5b4fa8"),
    "resnet_cifar_conv": ("3x3 convolutions", "#d98324"),
}


def rows(name: str) -> list[dict[str, float]]:
    with open(HERE / f"{name}.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def main() -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, (label, colour) in RUNS.items():
        data = rows(name)
        epochs = range(1, len(data) + 1)
        dotted = {"color": colour, "linestyle": ":", "linewidth": 1}
        score = [100 * row["val_top1"] for row in data]
        accuracy.plot(epochs, score, color=colour, label=f"{label}: {score[-1]:.2f} %")
        accuracy.plot(epochs, [100 * row["train_top1"] for row in data], **dotted)
        loss.plot(epochs, [row["val_loss"] for row in data], color=colour, label=label)
        loss.plot(epochs, [row["train_loss"] for row in data], **dotted)
    accuracy.set(xlabel="epoch", ylabel="top-1 accuracy, %", title="validation (solid), training (dotted)")
    accuracy.axhline(90, color="0.8", linewidth=0.8, zorder=0)
    accuracy.legend(frameon=False, loc="lower right")
    loss.set(
        xlabel="epoch", ylabel="cross entropy", title="validation (solid), training with smoothing (dotted)"
    )
    for axes in (accuracy, loss):
        axes.title.set_size(10)
        axes.set_xlim(left=1)
    for suffix in ("png", "svg"):
        figure.savefig(HERE / f"curves.{suffix}", dpi=160)


if __name__ == "__main__":
    main()
