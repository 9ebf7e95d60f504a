"""Fine-tuning against training from scratch, on classes that the weights have not seen.

`finetune.py DATA FOLDER COMMIT` needs CIFAR-10 as DATA/train/CLASS/*.jpg and DATA/val/CLASS/*.jpg. It links
the images of seven classes and of the other three into FOLDER, trains the weights on the seven if
FOLDER/seven-run has none, and appends a row to finetune.csv for each run on the three; runs with a row are
not repeated. `--report` prints the table and draws the figure from finetune.csv alone.
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
ARMS = {
    "from the weights": (),
    "from scratch": ("model.weights=None", "model.head_epochs=0", "optimizer.layer_decay=None"),
    "from the weights, all layers alike": ("model.head_epochs=0", "optimizer.layer_decay=None"),
}


def link_classes(data: Path, folder: Path, classes: tuple[str, ...]) -> Path:
    """Return a folder of links to the images of some classes."""
    for side, name in itertools.product(("train", "val"), classes):
        link = folder / side / name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / side / name).resolve())
    return folder


def pretrain(source: Path, run: Path) -> None:
    """Train the weights on the seven classes: the recipe `cifar`, shortened."""
    settings = ("engine.epochs=4", "engine.threads=1", "data.workers=0", "engine.validate_every=4")
    train(override(get_recipe("cifar"), f"data.source=folder:{source}", *settings), run_dir=run)


def configurations(source: Path, weights: Path) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Yield the first columns and the configuration of each run."""
    first, second, third = ARMS
    cells = [
        *itertools.product(SEEDS, IMAGES, (first, second)),
        *itertools.product(SEEDS, IMAGES, (third,)),
    ]
    for seed, images, arm in cells:
        epochs = STEPS // (len(NEW) * images // BATCH)
        config, _ = start_from(get_recipe("finetune"), str(weights))
        config = override(
            config,
            f"data.source=folder:{source}",
            f"data.train_per_class={images}",
            f"data.batch_size={BATCH}",
            "data.workers=0",
            f"engine.epochs={epochs}",
            f"model.head_epochs={-(-epochs // 10)}",
            f"engine.validate_every={epochs}",
            "engine.threads=1",
            f"seed={seed}",
            *ARMS[arm],
        )
        yield {"arm": arm, "images_per_class": images, "seed": seed, "epochs": epochs}, config


def measure(data: Path, folder: Path, commit: str) -> None:
    """Carry out the runs without a row, and append a row for each."""
    keep_freed_memory()
    run = folder / "seven-run"
    if not (run / "weights.safetensors").exists():
        pretrain(link_classes(data, folder / "seven", SEEN), run)
    with (run / "metrics.csv").open(newline="") as file:
        pretrained = [row for row in csv.DictReader(file) if row["val_top1"]][-1]
    done = {(row["arm"], row["images_per_class"], row["seed"]) for row in read()}
    for columns, config in configurations(link_classes(data, folder / "three", NEW), run):
        if (columns["arm"], str(columns["images_per_class"]), str(columns["seed"])) in done:
            continue
        begin = time.process_time()
        name = "-".join(map(str, columns.values())).replace(" ", "_").replace(",", "")
        last = train(config, run_dir=folder / "runs" / name).history[-1]
        row = columns | {
            "steps": int(last["step"]),
            "train_loss": f"{last['train_loss']:.4f}",
            "val_loss": f"{last['val_loss']:.4f}",
            "val_top1": f"{last['val_top1']:.4f}",
            "pretrained_top1": pretrained["val_top1"],
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


Cells = dict[tuple[str, int], list[float]]


def scores() -> Cells:
    """Return the accuracies in percent of all seeds, by arm and images per class."""
    cells: Cells = {}
    for row in read():
        score = 100 * float(row["val_top1"])
        cells.setdefault((row["arm"], int(row["images_per_class"])), []).append(score)
    return cells


def table() -> str:
    """Return the means over seeds as a Markdown table, with the arms that have rows."""
    cells = scores()
    arms = [arm for arm in ARMS if any(arm == key for key, _ in cells)]
    lines = [f"| images per class | {' | '.join(arms)} |", "|---:|" + "---|" * len(arms)]
    for images in IMAGES:
        texts = []
        for arm in arms:
            each = cells.get((arm, images), [])
            seeds = f"{len(each)} seed{'s' * (len(each) != 1)}"
            texts.append(f"{statistics.mean(each):.1f} % ({seeds})" if each else "not run")
        lines.append(f"| {images} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Draw the accuracy against the number of images: means as lines, seeds as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = scores()
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for arm, colour in zip(ARMS, ("#5b4fa8", "#d98324", "#3f8f6b"), strict=True):
        if not (measured := [images for images in IMAGES if (arm, images) in cells]):
            continue
        means = [statistics.mean(cells[arm, images]) for images in measured]
        axes.plot(measured, means, color=colour, label=arm)
        for images in measured:
            axes.plot([images] * len(cells[arm, images]), cells[arm, images], "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_xticks(IMAGES, [str(images) for images in IMAGES], minor=False)
    axes.minorticks_off()
    axes.set(
        xlabel="training images of each class",
        ylabel="accuracy on 3,000 test images, %",
        title="Three classes that the weights have not seen",
    )
    axes.legend(frameon=False, fontsize=9)
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
