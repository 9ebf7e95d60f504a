"""`load_weights`: trained weights, ours or of others, into a model: exactly, or with one sentence why not."""

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

from ..nn.lambda_layer import LambdaLayer
from ..nn.positions import crop_table, resize_table
from .accelerated import LucidrainsLambdaLayer, TimmLambdaLayer
from .conversion import converted, of_d_li14
from .registry import list_models
from .weight_files import OtherClassesError, WeightsError, find_weights, read_weights
from .zoo import CONFIGS

Head = Literal["same", "replace"]
Positions = Literal["same", "resize", "middle"]
COUNTER = "num_batches_tracked"


def load_weights(
    model: nn.Module, source: str | Path, *, head: Head = "same", positions: Positions = "same"
) -> tuple[str, ...]:
    """Load trained weights into a model, whole, or raise and leave the model as it was.

    The weights are those of this model, accelerated or not, or of one whose lambda layers are those of
    lucidrains/lambda-networks or d-li14/lambda.pytorch where this one has ours. `resnet50_lambda` with
    `position_bias=True, pool_padding=True` is the LambdaResNet-50 of d-li14.

    Args:
        model: A model of this package, of timm, or any module with a lambda layer of ours or of timm.
        source: A file (safetensors, or a state_dict that `torch.save` wrote; nothing in it is run), a folder
            (of a run, or as on the hub), or hf-hub:OWNER/NAME.
        head: "same", or "replace": a classifier for another number of classes is left out, and the model
            keeps its own; weights with a head go into a model without.
        positions: What happens to position tables of another size: they must be the "same"; "resize"
            interpolates a global table to the model's grid; "middle" takes the entries of the same offsets,
            and zeros where there are none.

    Returns:
        The names of the model's tensors that were left as they are: those of a replaced head.

    Raises:
        WeightsError: The weights cannot be found or read, or do not fit.

    Example:
        >>> model = create_model("lambda_resnet152", num_classes=37)
        >>> load_weights(model, "runs/imagenet", head="replace")
        ('fc.weight', 'fc.bias')
    """
    weights, kept = weights_for(model, source, head=head, positions=positions)
    model.load_state_dict({**weights, **{name: model.state_dict()[name] for name in kept}})
    return kept


def weights_for(
    model: nn.Module, source: str | Path, *, head: Head = "same", positions: Positions = "same"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What `load_weights` would load and what it would leave; the model may be without memory.

    Raises:
        WeightsError: As `load_weights`.
    """
    for name, value, known in (("head", head, Head), ("positions", positions, Positions)):
        if value not in known.__args__:
            raise WeightsError(f"{name} must be one of {', '.join(known.__args__)}, got {value!r}")
    target = model.state_dict()
    theirs = _as_named_here(read_weights(find_weights(source)), target)
    weights = converted(theirs, model)
    kept = _without_head(weights, target, model) if head == "replace" else ()
    _fit_tables(weights, target, model, positions)
    _check(weights, target.keys() - set(kept), target, model, source, theirs)
    check_finite(weights, model, source)
    _check_shared(weights, model, source)
    return weights, kept


def check_finite(weights: Mapping[str, Tensor], model: nn.Module, source: str | Path) -> None:
    """Raise WeightsError where parameters, or statistics of norms, are NaN or infinite.

    Args:
        weights: By name, as the model's `state_dict` has them.
        model: Tells parameters from other buffers, such as masks, which may hold infinity.
        source: Where the weights come from.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in weights.items():
        counts = name in parameters or name.endswith(("running_mean", "running_var"))
        if counts and not tensor.isfinite().all():
            number = int((~tensor.isfinite()).sum())
            raise WeightsError(
                f"the weights of {source} cannot be used: {number:,} of the {tensor.numel():,} elements of "
                f"{name} are NaN or infinite"
            )


def _as_named_here(weights: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what all names begin with and the model's do not; add the counters that old files lack.

    A network inside another module is saved as `model.NAME`, `net.NAME`, `backbone.NAME` and so on. Files of
    PyTorch 0.4 and older have no `num_batches_tracked`: as in PyTorch, these start at zero.
    """
    prefix = _common(weights).removesuffix(_common(target))
    named = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    weights = named if named.keys() & target.keys() else weights
    if not any(name.endswith(COUNTER) for name in weights):
        means = {name for name in weights if name.endswith(".running_mean")}
        counters = [f"{name.removesuffix('running_mean')}{COUNTER}" for name in means]
        weights |= {name: torch.zeros((), dtype=torch.long) for name in counters if name in target}
    return weights


def _common(names: Iterable[str]) -> str:
    """Return the modules that all names begin with, with a dot behind each."""
    paths = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "".join(f"{parts[0]}." for parts in same)


def _classifiers(model: nn.Module) -> list[str]:
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _without_head(weights: dict[str, Tensor], target: dict[str, Tensor], model: nn.Module) -> tuple[str, ...]:
    """Take a head of another number of classes out of weights; the names that the model keeps its own of."""
    kept = []
    for classifier in _classifiers(model):
        names = [f"{classifier}.weight", f"{classifier}.bias"]
        have, need = ([tensors[n].shape[:1] for n in names if n in tensors] for tensors in (weights, target))
        if have != need:
            kept += [name for name in names if name in target]
            for name in names:
                weights.pop(name, None)
    return tuple(kept)


def _tables(model: nn.Module) -> Iterator[tuple[str, int, bool]]:
    """Position tables of lambda layers: name, axes of offsets, and whether they are global."""
    for name, layer in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(layer, LambdaLayer) and layer.positions is not None:
            yield f"{prefix}positions", layer.rank, not layer.local
        elif isinstance(layer, TimmOriginal | TimmLambdaLayer) and layer.conv_lambda is None:
            yield f"{prefix}pos_emb", 2, True
        elif isinstance(layer, LucidrainsLambdaLayer) and not layer.local_contexts:
            yield f"{prefix}rel_pos_emb", 2, True


def _fit_tables(
    weights: dict[str, Tensor], target: dict[str, Tensor], model: nn.Module, positions: Positions
) -> None:
    for name, rank, everywhere in _tables(model):
        if name not in weights or weights[name].shape == target[name].shape:
            continue
        table, need = weights[name], tuple(target[name].shape)
        if table.ndim != len(need) or tuple(table.shape[rank:]) != need[rank:]:
            continue  # of another layer, which the comparison of shapes will say
        have, wanted = tuple(table.shape[:rank]), need[:rank]
        if positions == "same":
            raise WeightsError(
                f"{name} has embeddings for {_by(have)} offsets, and the model's for {_by(wanted)}; "
                "positions='resize' interpolates a global table, 'middle' takes those of the same offsets"
            )
        if positions == "resize" and not everywhere:
            raise WeightsError(
                f"{name} is local, with a scope of {_by(wanted)} here and {_by(have)} there: it serves every "
                "image size and is not interpolated; positions='middle' takes those of the same offsets"
            )
        if positions == "middle":
            weights[name] = crop_table(table, wanted)
        else:  # timm's tables have no axis of intra-depth
            wide = table if table.ndim == rank + 2 else table[..., None]
            weights[name] = resize_table(wide, wanted).view(need)


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _check(
    weights: dict[str, Tensor],
    needed: set[str],
    target: dict[str, Tensor],
    model: nn.Module,
    source: str | Path,
    theirs: dict[str, Tensor],
) -> None:
    """Raise WeightsError unless weights are what is needed, by name and shape."""
    what = _name(model)
    missing = [name for name in target if name in needed and name not in weights]
    unknown = [name for name in weights if name not in needed]
    if missing or unknown:
        said = []
        if missing:
            said.append(
                f"{len(missing)} of its {len(target)} tensors are missing (the first is {missing[0]})"
            )
        if unknown:
            said.append(f"{len(unknown)} are unknown (the first is {unknown[0]})")
        hint = _nested(theirs, target) or likeness(theirs)
        raise WeightsError(f"the weights in {source} are not those of {what}: {' and '.join(said)}{hint}")
    for name, tensor in weights.items():
        dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not dense or (tensor.is_complex() and not target[name].is_complex()):
            raise WeightsError(
                f"the weights in {source} cannot be used: {name} is sparse, quantised, complex or without "
                "elements; save the plain numbers"
            )
    for name in target:
        if name in needed and weights[name].shape != target[name].shape:
            have, need = tuple(weights[name].shape), tuple(target[name].shape)
            if name.rpartition(".")[0] in _classifiers(model) and have[1:] == need[1:]:
                raise OtherClassesError(source, have[0], need[0])
            raise WeightsError(
                f"the weights in {source} are not those of {what} with its options: {name} has the shape "
                f"{have}, the model needs {need}{likeness(theirs)}"
            )


def _check_shared(weights: dict[str, Tensor], model: nn.Module, source: str | Path) -> None:
    """Raise WeightsError where a tensor that layers share differs between them."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(parameter, name)
        shared = other != name and name in weights and other in weights
        if shared and not torch.equal(weights[name], weights[other]):
            raise WeightsError(
                f"{other} and {name} are one tensor in {_name(model)}, and two that differ in {source}"
            )


def _nested(weights: dict[str, Tensor], target: dict[str, Tensor]) -> str:
    """Say that a part of the names would be the model's without what they begin with."""
    parts = Counter(name.partition(".")[0] for name in weights if name.partition(".")[2] in target)
    if not parts:
        return ""
    listing = " and ".join(f"{number} in {part!r}" for part, number in parts.items())
    return f"; it has {listing} under the model's names: save the state_dict of one of these by itself"


def _name(model: nn.Module) -> str:
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def likeness(weights: dict[str, Tensor]) -> str:
    """`; they look like those of NAME` where a model with lambda layers has these tensors, else nothing."""
    if of_d_li14(weights):
        return (
            "; they look like those of d-li14/lambda.pytorch, for which there is "
            "create_model('resnet50_lambda', position_bias=True, pool_padding=True)"
        )
    depths = _depths(weights)
    ours = [name for name in list_models() if name not in CONFIGS or CONFIGS[name].depths == depths]
    theirs = [name for name in timm.list_models(["lambda*", "lamhalo*"]) if name not in list_models()]
    for name in [*ours, *theirs]:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        head = tuple(f"{classifier}." for classifier in _classifiers(model))
        # These differ with the images, and not with the model.
        free = {table for table, _, _ in _tables(model)} | {f"{model.pretrained_cfg['first_conv']}.weight"}
        if _shapes(model.state_dict(), head, free) == _shapes(weights, head, free):
            return f"; they look like those of {name if name in ours else f'timm ({name})'}"
    return ""


def _depths(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage, of a ResNet."""
    blocks = {tuple(name.split(".")[:2]) for name in weights if name.startswith("layer")}
    stages = sorted({stage for stage, *_ in blocks})
    return tuple(sum(block[0] == stage for block in blocks) for stage in stages)


def _shapes(
    tensors: dict[str, Tensor], head: tuple[str, ...], free: set[str]
) -> dict[str, tuple[int, ...] | None]:
    return {
        name: None if name in free else tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.startswith(head)
    }
