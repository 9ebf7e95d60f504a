"""A small set of images with several labels each, and average precision by its definition."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("left", "round", "top")


def write_labelled(root: Path, number: int = 60) -> Path:
    """Write images whose left half, top half or middle is bright, and a table of these labels."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    lines = ["path,label"]
    for index in range(number):
        pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
        labels = [name for name, bit in zip(NAMES, rng.random(3) < (0.5, 0.2, 0.4), strict=True) if bit]
        pixels[:, :4] += 90 * np.uint8("left" in labels)
        pixels[:4] += 60 * np.uint8("top" in labels)
        pixels[3:5, 3:5] += 40 * np.uint8("round" in labels)
        Image.fromarray(pixels).save(root / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{';'.join(labels)}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def average_precision(scores: np.ndarray, truths: np.ndarray) -> float:
    """Sum precision times the rise of the recall over all thresholds, from the highest score down."""
    total = before = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = truths[chosen].sum() / truths.sum()
        total += truths[chosen].mean() * (recall - before)
        before = recall
    return total


def f1(chosen: np.ndarray, truths: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall."""
    hits = (chosen & (truths > 0)).sum()
    return float(2 * hits / (chosen.sum() + truths.sum()))
