"""Training on real images on a GPU: operators on one trunk over three seeds, and a detector of cell nuclei.

    python benchmarks/gpu/training.py study DATA --short [--minutes 8] [--trunk mini]
    python benchmarks/gpu/training.py nuclei DATA --short [--minutes 8]

DATA is an archive, a folder that holds one, or a folder of images (train/ and val/; for the nuclei
annotations/). `study` is `python -m benchmarks.study` with convolutions, squeeze-and-excitation, global
attention and lambda layers; `nuclei` is benchmarks/detection/nuclei.py. --short estimates how many epochs fit
into --minutes and trains for so many; without it the recipe's own are trained. The same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from common import MINUTES, ROOT, Parser, begin, stop

NEEDED = (
    "torch", "timm", "lightning", "torchmetrics", "torchvision", "tensorboard", "matplotlib", "scipy", "rich",
    "tyro",
)  # fmt: skip
CONTENDERS, SEEDS = "conv,se,attention,lambda", "0,1,2"
DETECTORS = ("lambda_resnet_mini", "resnet_mini_conv")
# For `--quick`: a few steps of everything.
FEW = ("engine.max_batches=2", "engine.max_val_batches=1")


def unpacked(place: Path, names: tuple[str, ...], into: Path) -> Path:
    """Return the folder that holds these names: the place itself, or what its archive unpacks to.

    An archive that was unpacked before is not unpacked again.
    """
    if holder := _holder(place, names):
        return holder
    archives = [place] if place.is_file() else sorted(place.glob("*.tar*"))
    if len(archives) != 1:
        stop(f"{place} is no archive, holds {len(archives)} of them, and has no {' and '.join(names)}")
    target = into / archives[0].name.partition(".tar")[0]
    whole = target / ".whole"
    if not whole.exists():
        print(f"unpacking {archives[0].name} to {target}", flush=True)
        with tarfile.open(archives[0]) as archive:
            archive.extractall(target, filter="data")
        whole.touch()
    holder = _holder(target, names)
    if holder is None:
        stop(f"{archives[0]} has no folder with {' and '.join(names)}")
    return holder


def _holder(place: Path, names: tuple[str, ...]) -> Path | None:
    folders = [place, *sorted(place.iterdir())] if place.is_dir() else []
    return next((each for each in folders if all((each / name).exists() for name in names)), None)


def run_module(name: str, *words: object) -> int:
    """Run `python -m name words...` and return its exit status."""
    return subprocess.run([sys.executable, "-m", name, *map(str, words)], check=False).returncode


def study(words: argparse.Namespace, out: Path) -> int:
    if words.draw:
        return run_module("benchmarks.study", "--report", "--out", words.draw)
    data = unpacked(words.data, ("train", "val"), words.unpack)
    chosen = ["--trunk", words.trunk, "--contenders", words.contenders, "--seeds", words.seeds]
    if words.quick:
        chosen = ["--trunk", "cifar_half", "--contenders", "conv,lambda", "--seeds", "0"]
        chosen += ["--subset", "20", "--epochs", "1"]
        chosen += [word for change in (*FEW, "schedule.warmup_epochs=0") for word in ("--set", change)]
    if words.short:
        chosen += ["--minutes", str(words.minutes)]
    if words.epochs:
        chosen += ["--epochs", str(words.epochs)]
    if words.jobs:
        chosen += ["--jobs", str(words.jobs)]
    device = "gpu" if words.device == "cuda" else "cpu"
    return run_module(
        "benchmarks.study", "--data", f"folder:{data}", *chosen, "--device", device, "--out", out
    )


def nuclei(words: argparse.Namespace, out: Path) -> int:
    if words.draw:
        sys.path.insert(0, str(ROOT / "benchmarks/detection"))
        from nuclei import draw

        with (words.draw / "curves.csv").open(newline="") as file:
            draw(list(csv.DictReader(file)), words.draw)
        return 0
    from lambdanets.bench.records import commit
    from lambdanets.recipes import get_recipe

    data = unpacked(words.data, ("annotations",), words.unpack)
    changes = [f"engine.accelerator={'gpu' if words.device == 'cuda' else 'cpu'}", "engine.devices=1"]
    models = DETECTORS
    if words.quick:
        models = DETECTORS[:1]
        changes += [*FEW, "engine.epochs=1", "data.image_size=64", "data.workers=0"]
    else:
        epochs = words.epochs or get_recipe("nuclei").engine.epochs
        if words.short:
            epochs = min(epochs, epochs_within(words.minutes, data, changes, out))
        changes.append(f"engine.epochs={epochs}")
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks/detection/nuclei.py"), str(data), str(out)]
    command += [commit(), "--results", str(results), "--models", *models, "--set", *changes]
    return subprocess.run(command, check=False).returncode


def epochs_within(minutes: float, data: Path, changes: list[str], out: Path) -> int:
    """Train and validate one epoch, and return how many of each detector fit into the rest.

    Every epoch is taken to be validated, as this one is; the recipe validates every fifth. Who goes on keeps
    the number of the run that has begun.
    """
    begun = out / DETECTORS[0] / "config.json"
    if begun.exists():
        return json.loads(begun.read_text())["engine"]["epochs"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "trial"
        trial = [*changes, "engine.epochs=1", "schedule.warmup_epochs=0", f"data.images={data}"]
        options = [word for change in trial for word in ("--set", change)]
        if run_module("lambdanets", "train", "nuclei", "--data", f"coco:{data}", "--out", run, *options):
            stop("the trial epoch failed")
        with (run / "metrics.csv").open(newline="") as file:
            (epoch,) = csv.DictReader(file)
    took, seconds = time.monotonic() - start, float(epoch["seconds"])
    left = 60 * minutes - took - len(DETECTORS) * (took - seconds)
    epochs = int(left / seconds / len(DETECTORS))
    if epochs < 1:
        stop(f"not one epoch of each detector fits into {minutes:g} minutes")
    print(f"{epochs} epochs fit into {minutes:g} minutes, the trial of {took:.0f} s included", flush=True)
    return epochs


def main() -> int:
    parser = Parser(__doc__, "FOLDER")
    parser.add_argument("what", choices=("study", "nuclei"))
    parser.add_argument("data", type=Path, nargs="?", help="an archive, its folder, or a folder of images")
    parser.add_argument("--short", action="store_true", help="as many epochs as fit into --minutes")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--epochs", type=int, help="so many, with --short at most so many")
    parser.add_argument("--unpack", type=Path, default=Path("runs/gpu-data"), help="where archives go")
    parser.add_argument(
        "--trunk", choices=("cifar_half", "cifar", "mini"), default="cifar", help="of a study"
    )
    parser.add_argument("--contenders", default=CONTENDERS, help=f"of a study (default: {CONTENDERS})")
    parser.add_argument("--seeds", default=SEEDS, help=f"of a study (default: {SEEDS})")
    parser.add_argument("--jobs", type=int, help="runs of a study at once (default: 1 on a GPU)")
    words = parser.parse_args()
    needed = (*NEEDED, "pycocotools") if words.what == "nuclei" else NEEDED
    begin(words, needed=needed, wanted={})
    if words.data is None and words.draw is None:
        parser.error("DATA is missing: where the images are")
    out = (words.out or Path(f"runs/gpu-{words.what}")).absolute()
    return {"study": study, "nuclei": nuclei}[words.what](words, out)


if __name__ == "__main__":
    sys.exit(main())
