"""Overfit 16 images of COCO: `python overfit.py DATA FOLDER COMMIT`.

DATA is a folder in COCO's layout. The 16 are the images of train2017 with the most forms of annotations
(crowds, both kinds of run lengths, polygons, none at all), by their ids; a detector trains on them and is
evaluated on them, which shows only that data, network, losses and figures fit together. A run that is
finished in FOLDER is not repeated. At the end overfit.csv, overfit.json and the sheet of the 16, with
annotated beside detected objects, are written here.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from collect import processor  # noqa: E402

COUNT = 16
SETTINGS = {
    "data.image_size": 512,
    "data.crop": "false",
    "data.scale": "1,1",
    "data.flip": 0,
    "data.batch_size": 2,
    "data.workers": 1,
    "model.norms": "batch",
    "model.bn_momentum": 0.1,
    "model.fpn_channels": 96,
    "model.anchor_sizes": "12,24,48,96,192",
    "model.box_dim": 256,
    "model.mask_dim": 128,
    "model.mask_convs": 4,
    "model.rpn_post_nms_top_n_train": 500,
    "model.box_batch_size_per_image": 128,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.lr_batch": "None",
    "optimizer.weight_decay": 0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 5,
    "engine.sync_batchnorm": "false",
    "engine.precision": "bf16-mixed",
    "engine.channels_last": "true",
    "engine.clip_grad": 5,
    "validation.sheet": 16,
}


def subset(data: Path, target: Path) -> tuple[int, list[str]]:
    """Write the annotations of the 16 images as both sides of a folder; how many objects, and the files."""
    content = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    own: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        own[entry["image_id"]].append(entry)
    ranked = sorted(own, key=lambda number: (-len(forms(own[number])), number))
    chosen = set(ranked[:COUNT])
    few = content | {
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in chosen],
    }
    (target / "annotations").mkdir(parents=True, exist_ok=True)
    for side in ("train", "val"):
        (target / "annotations" / f"instances_{side}.json").write_text(json.dumps(few))
    return len(few["annotations"]), [image["file_name"] for image in few["images"]]


def forms(entries: list[dict]) -> set[str]:
    found = {"none"} if not entries else set()
    for entry in entries:
        mask = entry["segmentation"]
        kind = (
            "polygons" if isinstance(mask, list) else "text" if isinstance(mask["counts"], str) else "numbers"
        )
        found |= {kind, *(["crowd"] if entry["iscrowd"] else [])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commit")
    parser.add_argument("--model", default="lambda_resnet_mini")
    parser.add_argument("--epochs", type=int, default=280)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    source, run = words.folder / "sixteen", words.folder / "run"
    objects, names = subset(words.data, source)
    images = words.data if "/" in names[0] else words.data / "train2017"  # COCO's own names are bare
    settings = SETTINGS | {
        "data.images": images,
        "engine.epochs": words.epochs,
        "engine.threads": words.threads,
        "engine.validate_every": 25,
    }
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "lambdanets", "train"]
    if (run / "checkpoints" / "last.ckpt").exists():
        command += ["--resume", str(run)]
    else:
        command += ["coco", "--model", words.model, "--data", f"coco:{source}", "--out", str(run), *changes]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    with (run / "metrics.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    columns = ["epoch", "step", "train_loss", *(name for name in history[0] if name.startswith("val_"))]
    with (HERE / "overfit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in history if row["val_mask_ap"])
    provenance = {
        "date": date.today().isoformat(),
        "commit": words.commit,
        "processor": processor(),
        "python": platform.python_version(),
        "model": words.model,
        "images": COUNT,
        "objects": objects,
        "minutes": round(sum(float(row["seconds"]) for row in history) / 60, 1),
        **{
            package: version(package)
            for package in ("torch", "torchvision", "timm", "lightning", "lambdanets")
        },
        "settings": {name: str(value) for name, value in settings.items() if name != "data.images"},
    }
    (HERE / "overfit.json").write_text(json.dumps(provenance, indent=1) + "\n")
    for page in sorted(run.glob("sheet*.png")):
        with Image.open(page) as sheet:
            sheet.convert("RGB").save(
                HERE / page.with_suffix(".jpg").name.replace("sheet", "overfit"), quality=88
            )


if __name__ == "__main__":
    main()
