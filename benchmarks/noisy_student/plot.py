"""Draw noisy_student.png and .svg from results.csv and curves.csv of this folder: `python plot.py`."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
BATCH = 128  # images of a step
NETWORKS = {
    ("plain", "teacher"): ("teacher", "0.62"),
    ("plain", "student"): ("its student", "#5b4fa8"),
    ("noisy", "teacher"): ("teacher with its student's noise and length", "#d98324"),
    ("noisy", "student"): ("its student", "#1a7f4b"),
}
TICKS = ("teacher", "student", "teacher\nwith noise", "student")


def rows(name: str) -> list[dict[str, str]]:
    with open(HERE / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    results, curves = rows("results"), rows("curves")
    seeds = sorted({row["seed"] for row in results}, key=int)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1.5, 1), sharey=True
    )
    for network, (label, colour) in NETWORKS.items():
        for seed in seeds:
            own = [row for row in curves if (row["round"], row["network"], row["seed"]) == (*network, seed)]
            left.plot(
                [int(float(row["step"])) * BATCH / 1000 for row in own],
                [100 * float(row["val_top1"]) for row in own],
                color=colour,
                linewidth=1.4,
                label=label if seed == seeds[0] else None,
            )
    last = {
        network: {
            row["seed"]: 100 * float(row["top1"])
            for row in results
            if (row["round"], row["network"]) == network
        }
        for network in NETWORKS
    }
    for place, name in enumerate(("plain", "noisy")):
        for seed in seeds:
            pair = [last[name, network][seed] for network in ("teacher", "student")]
            right.plot([2 * place, 2 * place + 1], pair, color="0.8", zorder=0)
    means = {network: sum(values.values()) / len(values) for network, values in last.items()}
    for place, (network, (_, colour)) in enumerate(NETWORKS.items()):
        values = list(last[network].values())
        right.scatter([place] * len(values), values, color=colour, s=28)
        gain = means[network] - means[network[0], "teacher"]
        at = (place, max(values))
        words = f"{means[network]:.1f} %" + (f"\n{gain:+.1f} points" if network[1] == "student" else "")
        right.annotate(words, at, (0, 8), textcoords="offset points", ha="center")
    left.set(xlabel="training images, thousands", ylabel="top-1 accuracy on the validation images, %")
    left.set_title("after every epoch, a line for each seed")
    left.legend(frameon=False, loc="lower right", fontsize=9)
    left.set_xlim(left=0)
    bottom, top = left.get_ylim()
    left.set_ylim(bottom, top + 0.12 * (top - bottom))  # space for the text above the highest point
    right.set_xticks(range(len(NETWORKS)), TICKS)
    right.set_xlim(-0.5, len(NETWORKS) - 0.5)
    right.set_title("last epoch: mean, and gain over its teacher")
    for axes in (left, right):
        axes.title.set_size(10)
    for suffix in ("png", "svg"):
        figure.savefig(HERE / f"noisy_student.{suffix}", dpi=160)


if __name__ == "__main__":
    main()
