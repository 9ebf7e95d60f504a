"""Fine-tuning against training from scratch, on classes that the weights have not seen.

`finetune.py DATA FOLDER COMMIT` needs CIFAR-10 as DATA/train/CLASS/*.jpg and DATA/val/CLASS/*.jpg. It links
the images of seven classes and of the other three into FOLDER, trains the weights on the seven if
FOLDER/seven-run (4 epochs) or FOLDER/seven-long (14 epochs) has none, and appends a row to finetune.csv for
each run on the three; runs with a row are not repeated. `--report`
prints the table and draws the figure from finetune.csv alone.
"""

import argparse
import csv
import itertools
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lambdanets.recipes import get_recipe
from lambdanets.train import RunConfig, override, train
from lambdanets.train.initial_weights import start_from
from lambdanets.utils.allocator import keep_freed_memory

HERE = Path(__file__).parent
NEW = ("horse", "ship", "truck")
SEEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog")
IMAGES = (20, 100, 500)  # training images of each class
SEEDS = (0, 1, 2)
STEPS, BATCH = 100, 30
RUNS = {4: "seven-run", 14: "seven-long"}  # folder of the weights by their epochs
ARMS = {
    "from scratch": ("model.weights=None", "model.head_epochs=0", "optimizer.layer_decay=None"),
    "all layers alike": ("model.head_epochs=0", "optimizer.layer_decay=None"),
    "head epochs": ("optimizer.layer_decay=None",),
    "layer decay": ("model.head_epochs=0",),
    "head epochs and layer decay": (),
}


def link_classes(data: Path, folder: Path, classes: tuple[str, ...]) -> Path:
    """Return a folder of links to the images of some classes."""
    for side, name in itertools.product(("train", "val"), classes):
        link = folder / side / name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / side / name).resolve())
    return folder


def pretrain(source: Path, run: Path, epochs: int) -> None:
    """Train the weights on the seven classes: the recipe `cifar`, shortened."""
    length = (f"engine.epochs={epochs}", f"engine.validate_every={epochs}")
    settings = (f"data.source=folder:{source}", *length, "engine.threads=1", "data.workers=0")
    train(override(get_recipe("cifar"), *settings), run_dir=run)


def configurations(source: Path, folder: Path) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Yield the first columns and the configuration of each run."""
    scratch, alike, head, decay, both = ARMS
    cells = [
        *itertools.product((4,), SEEDS, IMAGES, (both, scratch)),
        *itertools.product((4,), SEEDS, IMAGES, (alike,)),
        *itertools.product((14,), SEEDS[:1], IMAGES, (both, alike, head, decay)),
        *itertools.product((14,), SEEDS[1:], IMAGES, (both, alike)),
    ]
    for pretrained_epochs, seed, images, arm in cells:
        epochs = STEPS // (len(NEW) * images // BATCH)
        config, _ = start_from(get_recipe("finetune"), str(folder / RUNS[pretrained_epochs]))
        config = override(
            config,
            f"data.source=folder:{source}",
            f"data.train_per_class={images}",
            f"data.batch_size={BATCH}",
            "data.workers=0",
            f"engine.epochs={epochs}",
            f"model.head_epochs={-(-epochs // 10)}",
            "optimizer.layer_decay=0.7",
            f"engine.validate_every={epochs}",
            "engine.threads=1",
            f"seed={seed}",
            *ARMS[arm],
        )
        columns = {"arm": arm, "images_per_class": images, "seed": seed, "epochs": epochs}
        yield {"pretrained_epochs": pretrained_epochs} | columns, config


def measure(data: Path, folder: Path, commit: str) -> None:
    """Carry out the runs without a row, and append a row for each."""
    keep_freed_memory()
    pretrained = {}
    for epochs, name in RUNS.items():
        if not (folder / name / "weights.safetensors").exists():
            pretrain(link_classes(data, folder / "seven", SEEN), folder / name, epochs)
        with (folder / name / "metrics.csv").open(newline="") as file:
            pretrained[epochs] = [row["val_top1"] for row in csv.DictReader(file) if row["val_top1"]][-1]
    names = ("pretrained_epochs", "arm", "images_per_class", "seed")
    done = {tuple(row[name] for name in names) for row in read()}
    for columns, config in configurations(link_classes(data, folder / "three", NEW), folder):
        if tuple(str(columns[name]) for name in names) in done:
            continue
        begin = time.process_time()
        name = "-".join(map(str, columns.values())).replace(" ", "_").replace(",", "")
        last = train(config, run_dir=folder / "runs" / name).history[-1]
        row = columns | {
            "steps": int(last["step"]),
            "train_loss": f"{last['train_loss']:.4f}",
            "val_loss": f"{last['val_loss']:.4f}",
            "val_top1": f"{last['val_top1']:.4f}",
            "pretrained_top1": pretrained[columns["pretrained_epochs"]],
            "cpu_seconds": f"{time.process_time() - begin:.1f}",
            "threads": 1,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": date.today(),
            "commit": commit,
        }
        path = HERE / "finetune.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)


def read() -> list[dict[str, str]]:
    path = HERE / "finetune.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


Cells = dict[tuple[int, str, int], list[float]]


def scores() -> Cells:
    """Return the accuracies in percent of all seeds, by epochs of the weights, arm and images per class."""
    cells: Cells = {}
    for row in read():
        score = 100 * float(row["val_top1"])
        # A run from scratch is the same beside all weights.
        for weights in RUNS if row["arm"] == "from scratch" else (int(row["pretrained_epochs"]),):
            cells.setdefault((weights, row["arm"], int(row["images_per_class"])), []).append(score)
    return cells


def table() -> str:
    """Return the means over seeds as a Markdown table."""
    cells = scores()
    head = f"| epochs of the weights | images per class | {' | '.join(ARMS)} |"
    lines = [head, "|---:|---:|" + "---|" * len(ARMS)]
    for weights, images in itertools.product(RUNS, IMAGES):
        texts = []
        for arm in ARMS:
            each = cells.get((weights, arm, images), [])
            seeds = f"{len(each)} seed{'s' * (len(each) != 1)}"
            texts.append(f"{statistics.mean(each):.1f} % ({seeds})" if each else "")
        lines.append(f"| {weights} | {images} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Draw the accuracy against the number of images: means as lines, seeds as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = scores()
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, both = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
    for axes, weights in zip(both, RUNS, strict=True):
        for arm, colour in zip(ARMS, ("#d98324", "#3f8f6b", "#b8475b", "#3a7ca5", "#5b4fa8"), strict=True):
            measured = [images for images in IMAGES if (weights, arm, images) in cells]
            means = [statistics.mean(cells[weights, arm, images]) for images in measured]
            axes.plot(measured, means, color=colour, label=arm)
            for images in measured:
                each = cells[weights, arm, images]
                axes.plot([images] * len(each), each, "o", color=colour, markersize=4)
        axes.set_xscale("log")
        axes.set_xticks(IMAGES, [str(images) for images in IMAGES], minor=False)
        axes.minorticks_off()
        axes.set(xlabel="training images of each class", title=f"weights of {weights} epochs")
    both[0].set_ylabel("accuracy on 3,000 test images, %")
    handles, labels = both[1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    figure.savefig(HERE / "finetune.png", dpi=160)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--report", action="store_true")
    words = parser.parse_args()
    if words.report:
        print(table(), end="")
        draw()
    else:
        measure(words.data, words.folder, words.commit)
