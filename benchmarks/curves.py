"""Draw curves.png and curves.svg of an experiment from the CSVs in its folder: `curves.py EXPERIMENT`."""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PURPLE, ORANGE = "#5b4fa8", "#d98324"
# For each experiment: runs with label and colour.
EXPERIMENTS = {
    "cifar10": {
        "lambda_resnet_cifar": ("lambda in the last stage", PURPLE),
        "resnet_cifar_conv": ("3x3 convolutions", ORANGE),
    },
    "imagenette": {
        "with": ("with RandAugment, dropout, label smoothing", PURPLE),
        "without": ("without", ORANGE),
    },
}


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def main(experiment: str) -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    averaged = False
    for name, (label, colour) in EXPERIMENTS[experiment].items():
        data = rows(HERE / experiment / f"{name}.csv")
        averaged |= "raw_top1" in data[0]
        epochs = range(1, len(data) + 1)
        dotted = {"color": colour, "linestyle": ":", "linewidth": 1}
        faint = {"color": colour, "linewidth": 0.8, "alpha": 0.45}
        score = [100 * row["val_top1"] for row in data]
        accuracy.plot(epochs, score, color=colour, label=f"{label}: {score[-1]:.2f} %")
        accuracy.plot(epochs, [100 * row["train_top1"] for row in data], **dotted)
        loss.plot(epochs, [row["val_loss"] for row in data], color=colour, label=label)
        loss.plot(epochs, [row["train_loss"] for row in data], **dotted)
        if "raw_top1" in data[0]:
            accuracy.plot(epochs, [100 * row["raw_top1"] for row in data], **faint)
            loss.plot(epochs, [row["raw_loss"] for row in data], **faint)
    drawn = "validation (solid" + (", faint: without averaging the weights)" if averaged else ")")
    accuracy.set(xlabel="epoch", ylabel="top-1 accuracy, %", title=f"{drawn}, training (dotted)")
    accuracy.legend(frameon=False, loc="lower right", fontsize=8.5)
    loss.set(xlabel="epoch", ylabel="cross entropy", title="the same; training loss with its smoothing")
    for axes in (accuracy, loss):
        axes.title.set_size(9)
        axes.set_xlim(left=1)
    for suffix in ("png", "svg"):
        figure.savefig(HERE / experiment / f"curves.{suffix}", dpi=160)


if __name__ == "__main__":
    main(sys.argv[1])
