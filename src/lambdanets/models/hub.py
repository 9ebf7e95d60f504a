"""`save_for_hub`: a model as the folder that the Hugging Face hub holds of a model of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

from .weight_files import WeightsError


def save_for_hub(
    model: nn.Module,
    folder: str | Path,
    *,
    labels: Sequence[str] = (),
    images: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model.safetensors` and timm's `config.json`: weights, architecture, options, labels, images.

    `create_model("local-dir:FOLDER", pretrained=True)` loads it, timm's too once this package is imported;
    hf-hub:OWNER/NAME does where the folder has been uploaded.

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
    from safetensors.torch import save

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
    # The format knows no shared memory: a table that layers share stands under the name of each.
    tensors = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()
    }
    # Written by Python: a file of safetensors' own is closed to everybody else, whatever the umask says.
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    config = {"pretrained_cfg": dict(images or {})} | ({"label_names": list(labels)} if labels else {})
    save_config_for_hf(model, str(folder / "config.json"), model_config=config)
    return folder
