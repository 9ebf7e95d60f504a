"""Loading of trained weights, from this package or others, into a model: complete, or an error is raised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers.lambda_layer import LambdaLayer as TimmOriginal
from torch import Tensor, nn

from lambdanets.nn import LambdaLayer
from lambdanets.nn.positions import crop_table, resize_table

from .freezing import classifier_names
from .interop.convert import contains_d_li14, convert_weights
from .interop.layers import LucidrainsLambdaLayer, TimmLambdaLayer
from .registry import list_models
from .weight_files import OtherClassesError, WeightsError, find_weights, read_weights
from .zoo import CONFIGS

Head = Literal["same", "replace"]
Positions = Literal["same", "resize", "middle"]
BATCH_COUNTER = "num_batches_tracked"


def load_weights(
    model: nn.Module, source: str | Path, *, head: Head = "same", positions: Positions = "same"
) -> tuple[str, ...]:
    """Load trained weights into a model; if they do not match, raise and leave the model unchanged.

    The weights are those of the same model, accelerated or not, or of a model with the lambda layers of
    lucidrains/lambda-networks or d-li14/lambda.pytorch in place of those of this package. `resnet50_lambda`
    with `position_bias=True, pool_padding=True` is the LambdaResNet-50 of d-li14.

    Args:
        model: A model of this package or of timm, or any module that contains a lambda layer of either.
        source: A file (safetensors, or a state_dict that `torch.save` wrote; none of its code is run), a
            folder (of a run, or as on the hub), or hf-hub:OWNER/NAME.
        head: Treatment of a classifier with another number of classes: "same" raises; "replace" ignores that
            of the weights, and the model keeps its own. With "replace", a model without a classifier loads
            weights with one.
        positions: Treatment of position tables of another size: "same" raises; "resize" interpolates a global
            table to the model's grid; "middle" copies the entries of the same offsets, and sets those of
            other offsets to zero.

    Returns:
        Names of the model's tensors that keep their values: those of a replaced head.

    Raises:
        WeightsError: If the weights cannot be found or read, or do not match the model.
        OSError: If the file cannot be read.

    Example:
        >>> folder = save_for_hub(create_model("lambda_resnet_digits"), "digits")
        >>> model = create_model("lambda_resnet_digits", num_classes=3)
        >>> load_weights(model, folder, head="replace")
        ('fc.weight', 'fc.bias')
    """
    weights, kept = weights_for(model, source, head=head, positions=positions)
    model.load_state_dict({**weights, **{name: model.state_dict()[name] for name in kept}})
    return kept


def weights_for(
    model: nn.Module, source: str | Path, *, head: Head = "same", positions: Positions = "same"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors that `load_weights` would load, and the names of those it would keep.

    Args:
        model: See `load_weights`; it may be on the meta device.
        source: See `load_weights`.
        head: See `load_weights`.
        positions: See `load_weights`.

    Raises:
        WeightsError: See `load_weights`.
    """
    for name, value, known in (("head", head, Head), ("positions", positions, Positions)):
        if value not in known.__args__:
            raise WeightsError(f"{name} must be one of {', '.join(known.__args__)}, got {value!r}")
    target = model.state_dict()
    loaded = _rename(read_weights(find_weights(source)), target)
    weights = convert_weights(loaded, model)
    kept = _without_head(weights, target, model) if head == "replace" else ()
    _resize_tables(weights, target, model, positions)
    _check(weights, target.keys() - set(kept), target, model, source, loaded)
    check_finite(weights, model, source)
    _check_shared(weights, model, source)
    return weights, kept


def check_finite(weights: Mapping[str, Tensor], model: nn.Module, source: str | Path) -> None:
    """Raise WeightsError if parameters, or statistics of norms, are NaN or infinite.

    Args:
        weights: Tensors by name, as in the model's `state_dict`.
        model: The model. Its buffers other than statistics, such as masks, may contain infinity.
        source: Source of the weights, for the error.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in weights.items():
        must_be_finite = name in parameters or name.endswith(("running_mean", "running_var"))
        if not must_be_finite:
            continue
        # PyTorch has no `isfinite` for float8.
        finite = (tensor.float() if tensor.itemsize == 1 else tensor).isfinite()
        if not finite.all():
            number = int((~finite).sum())
            raise WeightsError(
                f"the weights of {source} cannot be used: {number:,} of the {tensor.numel():,} elements of "
                f"{name} are NaN or infinite"
            )


def _rename(weights: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix that all names in the weights have and those of the model lack; add missing counters.

    A network inside another module is saved as `model.NAME`, `net.NAME`, `backbone.NAME` and so on. Files of
    PyTorch 0.4 and older have no `num_batches_tracked`; as in PyTorch, these counters start at zero.
    """
    prefix = _common_prefix(weights).removesuffix(_common_prefix(target))
    named = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    weights = named if named.keys() & target.keys() else weights
    if not any(name.endswith(BATCH_COUNTER) for name in weights):
        means = {name for name in weights if name.endswith(".running_mean")}
        counters = [f"{name.removesuffix('running_mean')}{BATCH_COUNTER}" for name in means]
        weights |= {name: torch.zeros((), dtype=torch.long) for name in counters if name in target}
    return weights


def _common_prefix(names: Iterable[str]) -> str:
    """Return the longest common prefix of the names that ends with a dot; empty if there is none."""
    paths = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "".join(f"{parts[0]}." for parts in same)


def _without_head(weights: dict[str, Tensor], target: dict[str, Tensor], model: nn.Module) -> tuple[str, ...]:
    """Remove a head of another number of classes from `weights`; return the names that the model keeps."""
    kept = []
    for classifier in classifier_names(model):
        names = [f"{classifier}.weight", f"{classifier}.bias"]
        classes, needed = (
            [tensors[name].shape[:1] for name in names if name in tensors] for tensors in (weights, target)
        )
        if classes != needed:
            kept += [name for name in names if name in target]
            for name in names:
                weights.pop(name, None)
    return tuple(kept)


def _tables(model: nn.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield the position tables of lambda layers: name, number of axes, and whether they are global."""
    for name, layer in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(layer, LambdaLayer) and layer.positions is not None:
            yield f"{prefix}positions", layer.rank, not layer.local
        elif isinstance(layer, TimmOriginal | TimmLambdaLayer) and layer.conv_lambda is None:
            yield f"{prefix}pos_emb", 2, True
        elif isinstance(layer, LucidrainsLambdaLayer) and not layer.local_contexts:
            yield f"{prefix}rel_pos_emb", 2, True


def _resize_tables(
    weights: dict[str, Tensor], target: dict[str, Tensor], model: nn.Module, positions: Positions
) -> None:
    """Replace position tables in `weights` whose size differs from the model's, as `positions` demands."""
    for name, rank, is_global in _tables(model):
        if name not in weights or weights[name].shape == target[name].shape:
            continue
        table, target_shape = weights[name], tuple(target[name].shape)
        if table.ndim != len(target_shape) or tuple(table.shape[rank:]) != target_shape[rank:]:
            continue  # k or u differs, which `_check` reports
        have, needed = tuple(table.shape[:rank]), target_shape[:rank]
        if positions == "same":
            raise WeightsError(
                f"{name} has embeddings for {_sizes(have)} offsets, and the model's for {_sizes(needed)}; "
                "positions='resize' interpolates a global table, 'middle' takes those of the same offsets"
            )
        if positions == "resize" and not is_global:
            raise WeightsError(
                f"{name} is local, with a scope of {_sizes(needed)} here and {_sizes(have)} there: it serves "
                "every image size and is not interpolated; positions='middle' takes those of the same offsets"
            )
        if positions == "middle":
            weights[name] = crop_table(table, needed)
        else:  # the tables of timm have no axis u
            with_u = table if table.ndim == rank + 2 else table[..., None]
            weights[name] = resize_table(with_u, needed).view(target_shape)


def _sizes(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _check(
    weights: dict[str, Tensor],
    needed: set[str],
    target: dict[str, Tensor],
    model: nn.Module,
    source: str | Path,
    loaded: dict[str, Tensor],
) -> None:
    """Raise WeightsError unless the weights have the names and shapes that are needed.

    Args:
        weights: The weights after all conversions.
        needed: Names of the tensors to load.
        target: The model's state_dict.
        model: The model.
        source: Source of the weights, for the error.
        loaded: The weights before the conversions, for hints in the error.
    """
    architecture = _architecture_name(model)
    missing = [name for name in target if name in needed and name not in weights]
    unknown = [name for name in weights if name not in needed]
    if missing or unknown:
        differences = []
        if missing:
            differences.append(
                f"{len(missing)} of its {len(target)} tensors are missing (the first is {missing[0]})"
            )
        if unknown:
            differences.append(f"{len(unknown)} are unknown (the first is {unknown[0]})")
        hint = _nested_hint(loaded, target) or similar_model_hint(loaded)
        raise WeightsError(
            f"the weights in {source} are not those of {architecture}: {' and '.join(differences)}{hint}"
        )
    for name, tensor in weights.items():
        dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not dense or (tensor.is_complex() and not target[name].is_complex()):
            raise WeightsError(
                f"the weights in {source} cannot be used: {name} is sparse, quantised, complex or without "
                "elements; save it as a dense, real-valued tensor"
            )
    for name in target:
        if name in needed and weights[name].shape != target[name].shape:
            have, need = tuple(weights[name].shape), tuple(target[name].shape)
            if name.rpartition(".")[0] in classifier_names(model) and have[1:] == need[1:]:
                raise OtherClassesError(source, have[0], need[0])
            raise WeightsError(
                f"the weights in {source} are not those of {architecture} with its options: {name} has the "
                f"shape {have}, the model needs {need}{similar_model_hint(loaded)}"
            )


def _check_shared(weights: dict[str, Tensor], model: nn.Module, source: str | Path) -> None:
    """Raise WeightsError if the weights differ between layers that share a tensor in the model."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(parameter, name)
        shared = other != name and name in weights and other in weights
        if shared and not torch.equal(weights[name], weights[other]):
            raise WeightsError(
                f"{other} and {name} are one tensor in {_architecture_name(model)}, and two that differ in "
                f"{source}"
            )


def _nested_hint(weights: dict[str, Tensor], target: dict[str, Tensor]) -> str:
    """Return a hint if submodules of the weights have names of the model's tensors, else ""."""
    submodules = Counter(name.partition(".")[0] for name in weights if name.partition(".")[2] in target)
    if not submodules:
        return ""
    listing = " and ".join(f"{number} in {name!r}" for name, number in submodules.items())
    return f"; it has {listing} under the model's names: save the state_dict of one of these alone"


def _architecture_name(model: nn.Module) -> str:
    """Return the model's name in timm's registry, or else its class."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def similar_model_hint(weights: dict[str, Tensor]) -> str:
    """Return a hint that names a model with lambda layers and the same tensors, or ""."""
    if contains_d_li14(weights):
        return (
            "; they look like those of d-li14/lambda.pytorch, for which there is "
            "create_model('resnet50_lambda', position_bias=True, pool_padding=True)"
        )
    depths = _depths(weights)
    ours = [name for name in list_models() if name not in CONFIGS or CONFIGS[name].depths == depths]
    of_timm = [name for name in timm.list_models(["lambda*", "lamhalo*"]) if name not in list_models()]
    for name in [*ours, *of_timm]:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        head = tuple(f"{classifier}." for classifier in classifier_names(model))
        # Shapes that are not compared: they depend on the size and the channels of the images.
        free = {table for table, _, _ in _tables(model)} | {f"{model.pretrained_cfg['first_conv']}.weight"}
        if _shapes(model.state_dict(), head, free) == _shapes(weights, head, free):
            return f"; they look like those of {name if name in ours else f'timm ({name})'}"
    return ""


def _depths(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks of each stage of a ResNet."""
    blocks = {tuple(name.split(".")[:2]) for name in weights if name.startswith("layer")}
    stages = sorted({stage for stage, *_ in blocks})
    return tuple(sum(block[0] == stage for block in blocks) for stage in stages)


def _shapes(
    tensors: dict[str, Tensor], head: tuple[str, ...], free: set[str]
) -> dict[str, tuple[int, ...] | None]:
    """Return shapes by name without the head; None for the tensors in `free`."""
    return {
        name: None if name in free else tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.startswith(head)
    }
