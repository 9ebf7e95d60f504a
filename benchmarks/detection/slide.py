"""A slide of thirty images against the images one by one: `python slide.py RUN /data/nuclei COMMIT [last]`.

The first thirty validation images of 256x256 pixels become a slide of 5 rows and 6 columns. The detector of a
run processes the images one by one, the slide in tiles, and the slide shrunk as a whole. Writes slide.csv:
the objects from a score of 0.5 on, their precision, recall and F1 against the annotated masks (IoU 0.5), and
how many of the correct objects of the single images each way finds.
"""

import csv
import json
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lambdanets.detection import load_run, predict
from lambdanets.detection.masks import encode_mask

HERE = Path(__file__).parent
ROWS, COLUMNS, SIDE = 5, 6, 256
THRESHOLD, IOU = 0.5, 0.5


def placed(encoded: Any, number: int) -> Any:
    """The mask of an image at the position of the image in the slide."""
    row, column = divmod(number, COLUMNS)
    mask = coco_mask.decode(encoded).astype(bool)
    return encode_mask(mask, row * SIDE, column * SIDE, ROWS * SIDE, COLUMNS * SIDE)


def partners(first: list[Any], second: list[Any]) -> list[tuple[int, int]]:
    """Pairs of masks that overlap, each mask in one pair, those that overlap most first."""
    overlaps = np.asarray(coco_mask.iou(first, second, [0] * len(second))).reshape(len(first), len(second))
    pairs = np.argwhere(overlaps > IOU)
    left, right, chosen = set(), set(), []
    for i, j in pairs[np.argsort(-overlaps[pairs[:, 0], pairs[:, 1]], kind="stable")].tolist():
        if i not in left and j not in right:
            left.add(i)
            right.add(j)
            chosen.append((i, j))
    return chosen


def main() -> None:
    run, root, commit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    weights = "last" if sys.argv[4:] == ["last"] else "best"
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    images = [each for each in content["images"] if (each["width"], each["height"]) == (SIDE, SIDE)]
    images = images[: ROWS * COLUMNS]
    position = {each["id"]: number for number, each in enumerate(images)}
    truth = [
        placed(coco_mask.frPyObjects(each["segmentation"], SIDE, SIDE), position[each["image_id"]])
        for each in content["annotations"]
        if each["image_id"] in position
    ]
    slide = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE))
    for number, each in enumerate(images):
        row, column = divmod(number, COLUMNS)
        slide.paste(Image.open(root / each["file_name"]).convert("RGB"), (column * SIDE, row * SIDE))
    opened = load_run(run)
    rows, single = [], set[int]()
    with tempfile.TemporaryDirectory() as folder:
        slide.save(Path(folder) / "slide.png")
        for way, paths, tile in (
            ("images one by one", [root / each["file_name"] for each in images], "off"),
            ("slide in tiles", [Path(folder) / "slide.png"], "auto"),
            ("slide shrunk as a whole", [Path(folder) / "slide.png"], "off"),
        ):
            started = time.process_time()
            found = list(predict(opened, paths, threshold=THRESHOLD, weights=weights, tile=tile))
            seconds = time.process_time() - started
            masks = [
                encoded if len(paths) == 1 else placed(encoded, number)
                for number, each in enumerate(found)
                for encoded in each.objects["masks"].segmentations
            ]
            correct = {index for index, _ in partners(truth, masks)}
            single = single or correct
            rows.append(
                {"way": way, "images": len(paths), "passes": sum(each.tiles for each in found)}
                | {"annotated": len(truth), "found": len(masks), "correct": len(correct)}
                | {"precision": f"{len(correct) / max(1, len(masks)):.4f}"}
                | {"recall": f"{len(correct) / len(truth):.4f}"}
                | {"f1": f"{2 * len(correct) / (len(truth) + len(masks)):.4f}"}
                | {"of_single": f"{len(correct & single) / len(single):.4f}", "cpu_seconds": f"{seconds:.1f}"}
                | {"date": date.today().isoformat(), "commit": commit, "python": platform.python_version()}
                | {package: version(package) for package in ("torch", "torchvision")}
            )
            print(rows[-1])
    with (HERE / "slide.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
