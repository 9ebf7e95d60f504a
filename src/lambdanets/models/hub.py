"""`save_for_hub`: a model as the folder that the Hugging Face hub holds of a model of timm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

from lambdanets.utils.files import replacing

from .tensor_files import write_safetensors
from .weight_files import WeightsError


def save_for_hub(
    model: nn.Module,
    folder: str | Path,
    *,
    labels: Sequence[str] = (),
    images: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model.safetensors` and timm's `config.json`: weights, architecture, options, labels, images.

    Once this package is imported, the folder opens with `create_model("local-dir:FOLDER", pretrained=True)`,
    ours or timm's, and with `AutoModel`, `AutoModelForImageClassification` and `pipeline` of transformers;
    under the name OWNER/NAME where it has been uploaded (hf-hub:OWNER/NAME for timm). The pipeline makes
    every image RGB: it needs a model of three channels.

    Args:
        model: A model made by `create_model`, ours or timm's, accelerated or not.
        folder: Made if it is not there; files of the same names in it are replaced.
        labels: Names of the classes, in the order of the logits.
        images: What the model was trained on, in timm's words: `input_size` (channels, height, width),
            `mean`, `std`, `crop_pct`, `interpolation`; what is left out is as the model's default has it.

    Returns:
        The folder.

    Raises:
        WeightsError: The model does not say how it was made, or has another number of classes than labels.

    Example:
        >>> save_for_hub(create_model("lambda_resnet_cifar"), "hub/cifar", images={"crop_pct": 0.9})
    """
    cfg: Any = getattr(model, "pretrained_cfg", None)
    made: Any = getattr(model, "_model_args", None)
    if not cfg or made is None:
        raise WeightsError(
            f"{type(model).__name__} does not say how it was made; save_for_hub takes models of create_model "
            "(timm 1.0.31 or newer keeps their options)"
        )
    if labels and len(labels) != model.num_classes:
        raise WeightsError(
            f"labels must name the {model.num_classes} classes of the model, got {len(labels)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"pretrained_cfg": dict(images or {})} | ({"label_names": list(labels)} if labels else {})
    with replacing(folder / "model.safetensors") as weights:
        write_safetensors(weights, model.state_dict(), {"format": "pt"})
    with replacing(folder / "config.json") as described:
        save_config_for_hf(model, str(described), model_config=config)
        content = json.loads(described.read_text(encoding="utf-8"))
        # transformers gives timm the number of classes by itself; twice is an error.
        content.get("model_args", {}).pop("num_classes", None)
        described.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder
