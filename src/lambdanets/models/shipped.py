"""Trained networks in the package: each is the folder of a run, with int8 weights and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "trained"
WEIGHTS = "weights.safetensors"


def shipped_models() -> list[str]:
    """Return the names of the trained networks in the package.

    Example:
        >>> "lambda_resnet_digits" in shipped_models()
        True
    """
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def shipped_run(name: str) -> Path | None:
    """Return the run folder of a trained network in the package; None if there is none of this name.

    Args:
        name: Name of the network, such as "lambda_resnet_cifar" or "nuclei".
    """
    folder = FOLDER / name
    return folder if folder.parent == FOLDER and (folder / "config.json").is_file() else None


def card_title(name: str) -> str:
    """Return what a trained network in the package recognises, the first line of its model card.

    Args:
        name: Name of the network.
    """
    heading = (FOLDER / name / "README.md").read_text(encoding="utf-8").partition("\n")[0]
    return heading.partition(": ")[2]


def find_run(word: str | Path) -> Path:
    """Return the folder of a run, which a trained network in the package has too.

    Args:
        word: The folder, or the name of a trained network in the package; a file or folder of that name in
            the working directory has precedence.
    """
    path = Path(word).expanduser()
    return path if path.exists() else shipped_run(str(word)) or path


def shipped_classes(name: str) -> tuple[str, ...]:
    """Return the class names of a trained network in the package, in the order of the logits."""
    return tuple(json.loads((FOLDER / name / "classes.json").read_text(encoding="utf-8")))


def shipped_cfg(name: str) -> dict[str, Any]:
    """Return the part of timm's `pretrained_cfg` on the trained weights of a classifier.

    Args:
        name: Name of the model.

    Returns:
        Entries for `generate_default_cfgs`; none if the package has no trained weights of the model.
    """
    folder = shipped_run(name)
    if folder is None:
        return {}
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"]
    classes = shipped_classes(name)
    cfg: dict[str, Any] = {"file": str(folder / WEIGHTS), "num_classes": len(classes)}
    if "image_size" in data:
        cfg["input_size"] = (data["in_chans"], data["image_size"], data["image_size"])
    return cfg | {key: data[key] for key in ("mean", "std", "crop_pct", "interpolation") if key in data}
