"""Cell nuclei, lambda layers beside convolutions: `python nuclei.py DATA FOLDER COMMIT [--models ...]`.

DATA is a folder with annotations/instances_train.json and instances_val.json. Every network is trained by the
recipe `nuclei`, with the same seed and as many steps, by the command line. Runs that are finished in FOLDER
are not repeated, interrupted ones go on; so several may run side by side, each with its own --models and
--no-collect. At the end nuclei.csv (the best weights, by the verb eval), curves.csv and nuclei.json are
written here, or to --results, with a figure of the curves, and the sheet of drawn predictions and the
precision-recall curves of each.
"""

import argparse
import csv
import json
import platform
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import matplotlib
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import lambdanets

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from collect import processor  # noqa: E402

MODELS = ("lambda_resnet_mini", "resnet_mini_conv")
LOOKS = (
    ("lambda_resnet_mini", "lambda layers", "#5b4fa8"),
    ("resnet_mini_conv", "3x3 convolutions", "#d98324"),
)
FIGURES = [
    f"{kind}_{name}"
    for kind in ("box", "mask")
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar300")
]
PACKAGES = ("torch", "torchvision", "timm", "lightning")


def train(run: Path, data: Path, model: str, threads: int, changes: list[str]) -> None:
    if (run / "summary.txt").exists():
        return
    command = [sys.executable, "-m", "lambdanets", "train"]
    if (run / "checkpoints" / "last.ckpt").exists():
        command += ["--resume", str(run)]
    else:
        command += ["nuclei", "--model", model, "--data", f"coco:{data}", "--out", str(run)]
        settings = [f"engine.threads={threads}", f"data.images={data}", *changes]
        command += [word for setting in settings for word in ("--set", setting)]
    print(" ".join(command[3:]), flush=True)
    subprocess.run(command, check=True)


def measured(run: Path) -> dict[str, float]:
    file = run / "figures.json"
    if not file.exists():
        words = ["eval", str(run), "--workers", "0", "--json", str(file)]
        subprocess.run([sys.executable, "-m", "lambdanets", *words], check=True)
    return json.loads(file.read_text())


def collect(folder: Path, models: list[str], commit: str, results: Path) -> None:
    best, curves, configs = [], [], {}
    for model in models:
        run = folder / model
        with (run / "metrics.csv").open(newline="") as file:
            history = list(csv.DictReader(file))
        config = json.loads((run / "config.json").read_text())
        config["data"] |= {"source": "coco:nuclei-dsb2018", "images": None}  # no path of this machine
        configs[model] = config
        top = max((row for row in history if row["val_mask_ap"]), key=lambda row: float(row["val_mask_ap"]))
        minutes = round(sum(float(row["seconds"]) for row in history) / 60, 1)
        found = {name: value for name, value in measured(run).items() if name in FIGURES}
        # Of a size that no object has there is none.
        figures = {name: None if value is None else round(value, 6) for name, value in found.items()}
        pace = history[-1]["images_per_cpu_second"]
        best.append(
            {"model": model, "epoch": top["epoch"], "minutes": minutes, "images_per_cpu_second": pace}
            | figures
        )
        curves += [{"model": model} | row for row in history]
        shutil.copy(run / "precision_recall.png", results / f"{model}-precision_recall.png")
        with Image.open(run / "sheet.png") as sheet:
            sheet.convert("RGB").save(results / f"{model}-sheet.jpg", quality=88)
    for name, rows in (("nuclei", best), ("curves", curves)):
        with (results / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(curves, results)
    on_gpu = torch.cuda.is_available() and all(
        config["engine"]["accelerator"] != "cpu" for config in configs.values()
    )
    provenance = {
        "date": date.today().isoformat(),
        "commit": commit,
        "processor": torch.cuda.get_device_name() if on_gpu else processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "lambdanets": lambdanets.__version__,
        "configs": configs,
    }
    (results / "nuclei.json").write_text(json.dumps(provenance, indent=1) + "\n")


def draw(curves: list[dict[str, str]], folder: Path) -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for model, label, colour in LOOKS:
        rows = [row for row in curves if row["model"] == model]
        if not rows:
            continue
        epochs, losses = zip(*((int(row["epoch"]), float(row["train_loss"])) for row in rows), strict=True)
        right.plot(epochs, losses, color=colour, label=label)
        rows = [row for row in rows if row["val_mask_ap"]]
        epochs = [int(row["epoch"]) for row in rows]
        for figure_of, line in (("val_mask_ap", "-"), ("val_mask_ap50", ":")):
            values = [100 * float(row[figure_of]) for row in rows]
            left.plot(epochs, values, line, marker="o", markersize=3, color=colour)
    left.set(ylim=(0, 100), xlabel="epoch", ylabel="mask AP50 (dotted) and AP (%)")
    right.set(ylim=(0, None), xlabel="epoch", ylabel="training loss")
    right.legend(frameon=False)
    figure.savefig(folder / "curves.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commit")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe, for trials")
    parser.add_argument("--results", type=Path, default=HERE, help="the folder of rows and figures")
    parser.add_argument("--no-collect", action="store_true", help="train, as one of several side by side")
    words = parser.parse_args()
    for model in words.models:
        train(words.folder / model, words.data.absolute(), model, words.threads, words.set)
    if not words.no_collect:
        collect(words.folder, words.models, words.commit, words.results)


if __name__ == "__main__":
    main()
