"""Annotated images that a small detector can learn: bright shapes of two kinds on dim noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = {3: "disc", 8: "bar"}
COLOURS = {3: (240, 80, 60), 8: (70, 160, 240)}


def write_objects(
    root: Path, *, train: int = 8, val: int = 4, size: int = 64, seed: int = 0, empty: int = 0
) -> Path:
    """Write a COCO folder: train/ and val/ with their annotations; image `empty` of each has no objects."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for side, count in (("train", train), ("val", val)):
        (root / side).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            picture = Image.fromarray(rng.integers(0, 60, (size, size, 3), dtype=np.uint8))
            name = f"{number:03d}.png"
            images.append({"id": number, "file_name": name, "width": size, "height": size})
            for _ in range(0 if number == empty else int(rng.integers(1, 4))):
                entry = shape(picture, rng)
                annotations.append({"id": len(annotations) + 1, "image_id": number} | entry)
            picture.save(root / side / name)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        }
        (root / "annotations" / f"instances_{side}.json").write_text(json.dumps(content))
    return root


def shape(picture: Image.Image, rng: np.random.Generator) -> dict[str, Any]:
    """Draw one of the two kinds somewhere, and return what COCO knows of it."""
    category = int(rng.choice(list(CATEGORIES)))
    side = picture.width
    width, height = (int(value) for value in rng.integers(side // 5, side // 2, 2))
    if category == 3:
        height = width
    left, top = (int(rng.integers(0, side - extent)) for extent in (width, height))
    box = (left, top, left + width - 1, top + height - 1)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    corners = np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])
    if category == 3:
        ImageDraw.Draw(picture).ellipse(box, fill=COLOURS[category])
        middle, radii = np.array([left + width / 2, top + height / 2]), np.array([width / 2, height / 2])
        corners = middle + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        ImageDraw.Draw(picture).rectangle(box, fill=COLOURS[category])
    return {
        "category_id": category,
        "bbox": [left, top, width, height],
        "segmentation": [corners.ravel().round(2).tolist()],
        "area": width * height * (np.pi / 4 if category == 3 else 1),
        "iscrowd": 0,
    }
