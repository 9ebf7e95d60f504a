"""Interoperation with the lambda layers of timm, lucidrains/lambda-networks and d-li14/lambda.pytorch.

`accelerate` replaces their layers inside a model by faster ones with the same parameters (`layers`).
`convert` translates the weights of their layers into those of `LambdaLayer2d`, and back.

To support another package, add a subclass of `AcceleratedLayer` to `layers` and register it in
`REPLACEMENTS`.
"""

from __future__ import annotations

import warnings

from torch import nn

from lambdanets.nn import LambdaLayer

from .layers import AcceleratedLayer, DLi14LambdaLayer, LucidrainsLambdaLayer, TimmLambdaLayer

REPLACEMENTS: dict[tuple[str, str], type[AcceleratedLayer]] = {
    ("timm.layers.lambda_layer", "LambdaLayer"): TimmLambdaLayer,
    ("lambda_networks.lambda_networks", "LambdaLayer"): LucidrainsLambdaLayer,
}
"""Replacement by module and class name of the class that defines `forward`.

Keys are names, so the other packages are not imported. A subclass that overrides `forward` has another key.
"""
D_LI14 = ("lambda_layer", "LambdaLayer")
"""File and class name of d-li14/lambda.pytorch, which is not a package: users copy the file anywhere."""


def accelerate(module: nn.Module) -> nn.Module:
    """Replace lambda layers of other implementations inside a module by faster ones with the same weights.

    The supported layers are those of timm, of lucidrains/lambda-networks, and of d-li14/lambda.pytorch: a
    class `LambdaLayer` in any file named `lambda_layer.py` that has the submodules and attributes of
    d-li14's.

    Outputs, gradients and running statistics stay equal up to rounding. The new layers keep the parameters
    and submodules of the old ones under the same names, so the mode, existing optimisers and `state_dict`
    remain valid. To go back, load the `state_dict` into a new model of the original kind.

    Args:
        module: Any module, in any mode, on any device. Layers inside it are replaced in place; a layer that
            occurs in several places is replaced by a single one. A module that is itself such a layer is left
            as it is and shares its weights with the layer that is returned.

    Returns:
        `module`, or the new layer where `module` is itself such a layer. A module that was accelerated
        before, or whose lambda layers are those of this package, is returned unchanged. References to the old
        layers that are not submodules, such as a plain list, are not updated.

    Raises:
        ValueError: If `module` contains no lambda layer of a supported implementation.

    Warns:
        UserWarning: If a layer stays as it is because its position convolution has hooks or was replaced.

    Example:
        >>> model = accelerate(timm.create_model("lambda_resnet26t"))
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    replaced: dict[nn.Module | None, nn.Module] = {}
    unsupported: list[str] = []
    for name, layer in module.named_modules():
        replacement = find_replacement(layer)
        if replacement is None:
            continue
        reason = replacement.unsupported_reason(layer)
        if reason is None:
            replaced[layer] = replacement(layer)
        else:
            unsupported.append(f"{name or type(layer).__name__}: {reason}")
    if unsupported:
        warnings.warn(f"accelerate leaves layers as they are; {'; '.join(unsupported)}", stacklevel=2)
    fast = any(isinstance(layer, AcceleratedLayer | LambdaLayer) for layer in module.modules())
    if not (replaced or fast or unsupported):
        supported = [".".join(name) for name in REPLACEMENTS]
        known = " or ".join([*supported, f"{'.'.join(D_LI14)} of d-li14/lambda.pytorch"])
        found = type(module).__name__
        raise ValueError(
            f"module must contain a lambda layer that accelerate supports ({known}), but {found} has none"
        )
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children would omit repeated children
            if child in replaced:
                setattr(parent, name, replaced[child])
    return replaced.get(module, module)


def find_replacement(layer: nn.Module) -> type[AcceleratedLayer] | None:
    """Return the class that computes the same as the lambda layer of another package, None for others."""
    for owner in type(layer).__mro__:
        if "forward" in vars(owner):
            name = (owner.__module__, owner.__qualname__)
            copied = (name[0].rpartition(".")[2], name[1]) == D_LI14 and DLi14LambdaLayer.recognises(layer)
            return REPLACEMENTS.get(name, DLi14LambdaLayer if copied else None)
    return None
