"""Accuracy of drawing masks: `python masks.py COMMIT NAME=DATA ...`, each DATA in COCO's layout.

The annotated masks of the validation side are pooled to 28x28 over their boxes, as the targets of
torchvision's loss, and drawn again: by torchvision and by this package. A perfect mask head would lose as
much. Writes masks.csv: COCO's mask AP of both.
"""

import csv
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from lambdanets.data import CocoConfig, CocoSet, open_coco_split
from lambdanets.detection import score, to_results
from lambdanets.detection.network import placed

HERE = Path(__file__).parent
FIGURES = ("mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large")


def torchvisions(found: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    return found | {"masks": paste_masks_in_image(found["masks"], found["boxes"], size) > 0.5}


def ours(found: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    return placed(found, size, size)


def taught(data: CocoSet, index: int) -> tuple[dict[str, Tensor], tuple[int, int], int]:
    """The objects of an image as a perfect detector finds them, its size and its id."""
    image, target = data.original(index)
    own = target["iscrowd"] == 0
    boxes, masks = (target[name].as_subclass(Tensor)[own] for name in ("boxes", "masks"))
    found = {"boxes": boxes, "labels": target["labels"][own], "scores": torch.ones(len(boxes))}
    pooled = project_masks_on_boxes(masks, boxes, torch.arange(len(boxes)), 28)
    return found | {"masks": pooled[:, None]}, tuple(image.shape[-2:]), target["image_id"]


def main() -> None:
    commit, *sets = sys.argv[1:]
    rows = []
    for each in sets:
        name, _, folder = each.partition("=")
        data = open_coco_split(CocoConfig(source=f"coco:{folder}", images=folder), "val")
        for drawing, draw in (("torchvision", torchvisions), ("lambdanets", ours)):
            results = []
            for index in range(len(data)):
                found, size, number = taught(data, index)
                if len(found["boxes"]):
                    results += to_results([draw(found, size)], [number], data.category_ids)
            figures = score(data.ground_truth(), results, masks=True, max_detections=400).figures()
            rows.append(
                {"set": name, "images": len(data), "objects": len(results), "drawing": drawing}
                | {figure: f"{figures[figure]:.4f}" for figure in FIGURES}
                | {"date": date.today().isoformat(), "commit": commit, "python": platform.python_version()}
                | {package: version(package) for package in ("torch", "torchvision")}
            )
    with (HERE / "masks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
