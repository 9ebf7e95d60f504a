"""Small annotated sets, written by hand or drawn at random."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Entry = dict[str, Any]


def rectangle(image: int, category: int, left: float, top: float, width: float, height: float) -> Entry:
    right, bottom = left + width, top + height
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [left, top, width, height],
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "area": width * height,
        "iscrowd": 0,
    }


@pytest.fixture
def ground_truth() -> Callable[..., dict[str, list[Entry]]]:
    """Make the ground truth of images of 200x200 pixels, `ground_truth([rectangle, ...], images=2)`.

    A rectangle is (image, category, left, top, width, height) and, where more is to be said, a dict. The
    categories are 3 cat, 7 dog and 20 fish.
    """

    def make(rectangles: list[tuple[Any, ...]], images: int = 2) -> dict[str, list[Entry]]:
        annotations = []
        for number, (*place, last) in enumerate(rectangles, start=1):
            more = last if isinstance(last, dict) else {}
            entry = rectangle(*place) if more else rectangle(*place, last)
            annotations.append({"id": number} | entry | more)
        return {
            "images": [
                {"id": number, "file_name": f"{number}.png", "height": 200, "width": 200}
                for number in range(1, images + 1)
            ],
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in ((3, "cat"), (7, "dog"), (20, "fish"))],
        }

    return make


@pytest.fixture
def found() -> Callable[..., Entry]:
    """Make a result that is a box, `found(score, image, category, left, top, width, height)`."""

    def make(score: float, *place: Any) -> Entry:
        entry = rectangle(*place)
        return {name: entry[name] for name in ("image_id", "category_id", "bbox")} | {"score": score}

    return make


@pytest.fixture
def random_set() -> Callable[[int], tuple[dict[str, list[Entry]], list[dict[str, np.ndarray]]]]:
    """Draw a ground truth with crowds, and detections that are near it, wrong, or nowhere.

    `random_set(seed)` gives the ground truth of 8 images, and for each of them boxes, labels, scores and
    masks as arrays of the shapes that torchvision gives. Ellipses are masks; some scores are equal.
    """

    def make(seed: int) -> tuple[dict[str, list[Entry]], list[dict[str, np.ndarray]]]:
        draw = np.random.default_rng(seed)
        categories = [{"id": n, "name": name} for n, name in ((3, "cat"), (7, "dog"), (20, "fish"))]
        images, annotations, detections = [], [], []
        for number in range(11, 19):
            height, width = (int(side) for side in draw.integers(160, 240, 2))
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            boxes = []
            for _ in range(draw.integers(0, 9)):
                size = np.exp(draw.uniform(np.log(8), np.log(160), 2))
                corner = draw.uniform(0, np.maximum(1, [width, height] - size))
                label = int(draw.integers(1, 3))  # there is no fish
                boxes.append((label, *corner, *size))
                mask = ellipse((height, width), *corner, *size)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[label - 1]["id"],
                        "bbox": [*corner.tolist(), *size.tolist()],
                        "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                        "area": float(mask.sum()),
                        "iscrowd": int(draw.random() < 0.15),
                    }
                )
            rows = [
                (label if draw.random() < 0.85 else 3 - label, left + dx, top + dy, w * dw, h * dh)
                for label, left, top, w, h in boxes
                for dx, dy, dw, dh in (draw.normal((0, 0, 1, 1), (4, 4, 0.1, 0.1)) for _ in range(2))
            ]
            rows += [
                (int(draw.integers(1, 4)), *draw.uniform(0, 90, 2), *draw.uniform(5, 100, 2))
                for _ in range(draw.integers(0, 5))
            ]
            table = np.array(rows).reshape(-1, 5)
            corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:]], 1).clip(0)
            corners = np.minimum(corners, [width, height, width, height])
            drawn = [
                ellipse((height, width), *place[:2], *(place[2:] - place[:2]))[None] for place in corners
            ]
            detections.append(
                {
                    "boxes": corners.astype(np.float32),
                    "labels": table[:, 0].astype(np.int64),
                    "scores": draw.random(len(table)).round(1 + draw.integers(0, 2)).astype(np.float32),
                    "masks": np.array(drawn, np.float32).reshape(-1, 1, height, width),
                }
            )
        return {"images": images, "annotations": annotations, "categories": categories}, detections

    return make


def ellipse(size: tuple[int, int], left: float, top: float, width: float, height: float) -> np.ndarray:
    """The pixels of an image of (height, width) whose centres are within, at least one."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    width, height = max(width, 1), max(height, 1)
    mask = ((x - left) / width - 0.5) ** 2 + ((y - top) / height - 0.5) ** 2 <= 0.25
    mask[min(int(top + height / 2), size[0] - 1), min(int(left + width / 2), size[1] - 1)] = True
    return mask


def run_lengths(mask: np.ndarray) -> list[int]:
    """Down the columns, of background first."""
    line = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    ends = np.flatnonzero(line[1:] != line[:-1])
    return np.diff(ends, prepend=0).tolist()
