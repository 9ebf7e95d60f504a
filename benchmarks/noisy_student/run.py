"""Noisy student by the command line: `python run.py DATA FOLDER COMMIT [--seeds 0 1]`.

DATA is a folder of CIFAR-10 with train/ and val/. For each seed a teacher learns from 400 labels of each
class and labels the other images of train/, and a student of the same size learns from both, with noise. In
the round "plain" the teacher has no noise; in the round "noisy" it has its student's noise and as many steps:
a gain of the student is then due to the pseudo-labels. Runs that are finished in FOLDER are not repeated,
interrupted ones go on. At the end results.csv, curves.csv and runs.json are written here.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from collect import processor  # noqa: E402

LABELS = 400  # of each class
COMMON = ["--set", f"data.train_per_class={LABELS}", "--set", "engine.threads=1", "--set", "data.workers=1"]
NOISE = [
    "--set", "data.augment.rand_augment=rand-m9-n2-mstd0.5",
    "--set", "model.options.drop_rate=0.2", "--set", "model.options.drop_path_rate=0.1",
]  # fmt: skip


@dataclass(frozen=True)
class Round:
    """A teacher and its student, as options; every network but a plain teacher has 2,000 steps.

    Args:
        teacher, student: Options of `train`.
        ratio: Pseudo-labelled images for each labelled one.
        threshold: Smallest probability of an accepted label.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    ratio: int
    threshold: float


# An epoch is the labelled images once: 31 steps of 128 alone, 125 with three others for each, 250 with seven.
ROUNDS = {
    "plain": Round(("--epochs", "40"), ("--epochs", "8", *NOISE), ratio=7, threshold=0.3),
    "noisy": Round(("--epochs", "64", *NOISE), ("--epochs", "16", *NOISE), ratio=3, threshold=0.5),
}
CURVE = ("epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1")


def lambdanets(*words: str) -> None:
    command = [sys.executable, "-m", "lambdanets", *words]
    print(" ".join(["lambdanets", *words]), flush=True)
    subprocess.run(command, check=True)


def train(run: Path, data: str, seed: int, *options: str) -> None:
    if (run / "summary.txt").exists():
        return
    if (run / "checkpoints" / "last.ckpt").exists():
        lambdanets("train", "--resume", str(run))
    else:
        lambdanets(
            "train", "cifar", "--data", data, "--seed", str(seed), "--out", str(run), *COMMON, *options
        )


def one(place: Path, own: Round, data: Path, seed: int) -> None:
    source, labels = f"folder:{data}", place / "labels.csv"
    train(place / "teacher", source, seed, *own.teacher)
    if not labels.exists():
        lambdanets(
            "pseudo-label", str(place / "teacher"), "--data", f"{source}/train", "--out", str(labels),
            "--weights", "last", "--workers", "1", "--threshold", str(own.threshold),
        )  # fmt: skip
    pseudo = ("--set", f"data.pseudo_ratio={own.ratio}", "--set", f"data.pseudo_labels={labels}")
    train(place / "student", source, seed, *own.student, *pseudo)


def right(path: Path) -> tuple[int, float]:
    """Labels in a file, and the part of them that the folders' names confirm."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return len(rows), sum(row["image"].split("/")[0] == row["label"] for row in rows) / len(rows)


def collect(folder: Path, seeds: list[int], commit: str) -> None:
    results, curves, configs = [], [], {}
    for name, seed in product(ROUNDS, seeds):
        place = folder / name / f"seed{seed}"
        every, kept = right(place / "labels.all.csv"), right(place / "labels.csv")
        for step in ("teacher", "student"):
            run = place / step
            configs[f"{name}/seed{seed}/{step}"] = json.loads((run / "config.json").read_text())
            with (run / "metrics.csv").open(newline="") as file:
                history = list(csv.DictReader(file))
            own = {"round": name, "seed": seed, "network": step}
            curves += [own | {column: row[column] for column in CURVE} for row in history]
            results.append(
                own
                | {
                    "top1": history[-1]["val_top1"],
                    "best_top1": max(float(row["val_top1"]) for row in history),
                    "steps": history[-1]["step"],
                    "pseudo_labels": kept[0] if step == "student" else 0,
                    "pseudo_right": f"{kept[1]:.4f}" if step == "student" else "",
                    "all_right": f"{every[1]:.4f}" if step == "student" else "",
                    "images_per_cpu_second": history[-1]["images_per_cpu_second"],
                }
            )
    for name, rows in (("results", results), ("curves", curves)):
        with (HERE / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for config in configs.values():
        # Paths of this machine are left out.
        data = config["data"]
        for key in ("source", "pseudo_labels"):
            data[key] = data[key] and "/".join(Path(data[key]).parts[-2:])
    provenance = {
        "date": date.today().isoformat(),
        "commit": commit,
        "processor": processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "lightning", "lambdanets")},
        "configs": configs,
    }
    (HERE / "runs.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--no-collect", action="store_true", help="train, as one of several side by side")
    words = parser.parse_args()
    for name, number in product(ROUNDS, words.seeds):
        place = words.folder.absolute() / name / f"seed{number}"
        one(place, ROUNDS[name], words.data.absolute(), number)
    if not words.no_collect:
        collect(words.folder, words.seeds, words.commit)
