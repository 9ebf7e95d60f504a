"""`accelerate`: the lambda layers of other packages, anywhere inside a module, replaced by ours."""

from __future__ import annotations

import warnings

from torch import nn

from ..nn.lambda_layer import LambdaLayer
from .accelerated import AcceleratedLayer, DLi14LambdaLayer, LucidrainsLambdaLayer, TimmLambdaLayer

# Known by the class that defines their forward: nothing is imported to recognise them, and a subclass that
# computes something else is left alone.
REPLACEMENTS: dict[tuple[str, str], type[AcceleratedLayer]] = {
    ("timm.layers.lambda_layer", "LambdaLayer"): TimmLambdaLayer,
    ("lambda_networks.lambda_networks", "LambdaLayer"): LucidrainsLambdaLayer,
}
# d-li14/lambda.pytorch is no package: its file lies wherever somebody has put it.
COPIED = ("lambda_layer", "LambdaLayer")


def accelerate(module: nn.Module) -> nn.Module:
    """Replace the lambda layers of timm, lucidrains and d-li14 inside a module by faster ones.

    They are those of timm, of lucidrains/lambda-networks and of d-li14/lambda.pytorch: a class `LambdaLayer`
    in a file `lambda_layer.py`, wherever it lies, that holds what d-li14's does.

    Outputs, gradients and running statistics stay equal up to rounding. The new layers keep the parameters
    and submodules of the old, under the same names: the mode, optimisers made before and `state_dict` stay as
    they are. The way back is a new model of the original kind that loads the `state_dict`.

    Args:
        module: Any module, in any mode, on any device. Layers inside it are replaced in place, a layer in two
            places by one; a module that is such a layer itself stays as it is and shares its weights.

    Returns:
        `module`, or the new layer where `module` is a layer itself. One that has been accelerated before, or
        whose lambda layers are this package's own, comes back unchanged. So does, with a warning, a layer
        whose position convolution somebody hooked into or exchanged: its weights are not all that it does.
        References to the old layers outside of `_modules`, such as a plain list, are not followed.

    Raises:
        ValueError: If there is no lambda layer in it that this function knows.

    Example:
        >>> model = accelerate(timm.create_model("lambda_resnet26t"))
        >>> model(torch.randn(1, 3, 256, 256)).shape
        torch.Size([1, 1000])
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    made: dict[nn.Module | None, nn.Module] = {}
    obstacles: list[str] = []
    for name, layer in module.named_modules():
        replacement = _replacement(layer)
        if replacement is None:
            continue
        obstacle = replacement.obstacle(layer)
        if obstacle is None:
            made[layer] = replacement(layer)
        else:
            obstacles.append(f"{name or type(layer).__name__}: {obstacle}")
    if obstacles:
        warnings.warn(f"accelerate leaves layers as they are; {'; '.join(obstacles)}", stacklevel=2)
    fast = any(isinstance(layer, AcceleratedLayer | LambdaLayer) for layer in module.modules())
    if not (made or fast or obstacles):
        names = [".".join(name) for name in REPLACEMENTS]
        known = " or ".join([*names, f"{'.'.join(COPIED)} of d-li14/lambda.pytorch"])
        found = type(module).__name__
        raise ValueError(f"module must hold a layer that accelerate knows ({known}), but {found} has none")
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children names a child once
            if child in made:
                setattr(parent, name, made[child])
    return made.get(module, module)


def _replacement(layer: nn.Module) -> type[AcceleratedLayer] | None:
    """The class that computes what this layer computes, if there is one."""
    for owner in type(layer).__mro__:
        if "forward" in vars(owner):
            name = (owner.__module__, owner.__qualname__)
            copied = (name[0].rpartition(".")[2], name[1]) == COPIED and DLi14LambdaLayer.recognises(layer)
            return REPLACEMENTS.get(name, DLi14LambdaLayer if copied else None)
    return None
