"""Conversion of weights between `LambdaLayer2d` and the lambda layers of other implementations.

The conversions are exact. lucidrains and d-li14 order the channels of keys and values by intra-depth first
(u, k), `LambdaLayer2d` by intra-depth last (k, u).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.models.weight_files import WeightsError
from lambdanets.nn import LambdaLayer
from lambdanets.nn.blocks import Bottleneck
from lambdanets.utils.text import join_some

LUCIDRAINS, D_LI14 = "lucidrains/lambda-networks", "d-li14/lambda.pytorch"
_NORM_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NORMS = {f"{norm}.{field}" for norm in ("norm_q", "norm_v") for field in _NORM_FIELDS}
_PROJECTIONS = {"to_q.weight", "to_k.weight", "to_v.weight"} | _NORMS
_NAMES_OF_LUCIDRAINS = (_PROJECTIONS | {"pos_conv.weight", "pos_conv.bias"}, _PROJECTIONS | {"rel_pos_emb"})
_NAMES_OF_D_LI14 = {"conv_qkv.weight", "lambda_conv.weight", "lambda_conv.bias"} | _NORMS


@dataclass(frozen=True)
class _ForeignLayer:
    """Weights of a layer of lucidrains or d-li14.

    Attributes:
        owner: The implementation.
        queries: Weight of the projection to queries, `[h * k, dim, 1, 1]`.
        keys: Weight of the projection to keys, `[u * k, dim, 1, 1]`.
        values: Weight of the projection to values, `[u * v, dim, 1, 1]`.
        table: Position table, `[*offsets, k, u]`.
        bias: Bias of the position lambdas, `[k]`, or None.
    """

    owner: str
    queries: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    bias: Tensor | None


def convert_weights(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert the layers of lucidrains and d-li14 in a state_dict to those of this package.

    Only layers that are a `LambdaLayer` in `model` are converted. The fused projection of d-li14 is split;
    the weight of the position convolution becomes the position table, its bias the `position_bias`.

    Args:
        weights: Tensors by name. Tensors that belong to no such layer are returned unchanged.
        model: The model that will load the weights.

    Returns:
        Tensors by the names of `model`.

    Raises:
        WeightsError: If a layer of the model, or its block, does not compute the same function as theirs.
    """
    result = dict(weights)
    unsupported: dict[str, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, LambdaLayer):
            continue
        prefix = f"{name}." if name else ""
        state = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
        foreign = _recognise(state)
        if foreign is None:
            continue
        for reason in _unsupported_reasons(foreign, layer, model, name):
            unsupported.setdefault(reason, []).append(name or "the layer")
        for key in state:
            del result[prefix + key]
        result |= {prefix + key: tensor for key, tensor in _convert_layer(foreign, state, layer).items()}
    if unsupported:
        listing = "; ".join(
            f"{reason} ({join_some(names, 1, form=str)})" for reason, names in unsupported.items()
        )
        raise WeightsError(f"layers of another implementation do not convert exactly: {listing}")
    return result


def contains_d_li14(weights: dict[str, Tensor]) -> bool:
    """Return whether weights contain layers of d-li14/lambda.pytorch."""
    suffixes = ("conv_qkv.weight", "lambda_conv.weight")
    return all(any(name.endswith(suffix) for name in weights) for suffix in suffixes)


def _recognise(state: dict[str, Tensor]) -> _ForeignLayer | None:
    """Return the weights of a layer of lucidrains or d-li14, None if the names are of neither."""
    names = state.keys()
    if names in _NAMES_OF_LUCIDRAINS:
        projections = (state["to_q.weight"], state["to_k.weight"], state["to_v.weight"])
        if "rel_pos_emb" in names:
            return _ForeignLayer(LUCIDRAINS, *projections, state["rel_pos_emb"], None)
        table = state["pos_conv.weight"].squeeze(2).permute(2, 3, 0, 1)
        return _ForeignLayer(LUCIDRAINS, *projections, table, state["pos_conv.bias"])
    if names == _NAMES_OF_D_LI14:
        dim_k, dim_u = state["lambda_conv.weight"].shape[:2]
        sizes = [len(state["norm_q.weight"]), dim_k * dim_u, len(state["norm_v.weight"])]
        table = state["lambda_conv.weight"].squeeze(2).permute(2, 3, 0, 1)
        queries, keys, values = state["conv_qkv.weight"].split(sizes)
        return _ForeignLayer(D_LI14, queries, keys, values, table, state["lambda_conv.bias"])
    return None


def _unsupported_reasons(
    foreign: _ForeignLayer, layer: LambdaLayer, model: nn.Module, name: str
) -> list[str]:
    """Return the differences in computation that names and shapes of the tensors do not show."""
    reasons = []
    if foreign.bias is not None and layer.position_bias is None and foreign.bias.any():
        reasons.append(
            f"the position convolution of {foreign.owner} has a bias, which needs position_bias=True"
        )
    if layer.normalize != "softmax":
        reasons.append(f"{foreign.owner} has normalize='softmax', the model normalize={layer.normalize!r}")
    if max(layer.dilation) > 1:
        reasons.append(f"{foreign.owner} has no dilation, the model has dilation={layer.dilation}")
    block = model.get_submodule(name.rpartition(".")[0]) if name else None
    pool = block.pool if isinstance(block, Bottleneck) else None
    if foreign.owner == D_LI14 and isinstance(pool, nn.AvgPool2d) and not pool.count_include_pad:
        reasons.append(
            f"the pooling of {D_LI14} counts zeros beyond the border, which needs pool_padding=True"
        )
    return reasons


def _convert_layer(foreign: _ForeignLayer, state: dict[str, Tensor], layer: LambdaLayer) -> dict[str, Tensor]:
    """Return a layer's weights by the names of `LambdaLayer2d`."""
    dim_u = foreign.table.shape[-1]

    def intra_depth_last(tensor: Tensor) -> Tensor:
        """Reorder the channels from (u, c) to (c, u); return a number as it is."""
        return tensor.unflatten(0, (dim_u, -1)).transpose(0, 1).flatten(0, 1) if tensor.ndim else tensor

    result = {
        "to_queries.weight": foreign.queries,
        "to_keys.weight": intra_depth_last(foreign.keys),
        "to_values.weight": intra_depth_last(foreign.values),
        "positions": foreign.table,
    }
    for field in _NORM_FIELDS:
        result[f"norm_queries.{field}"] = state[f"norm_q.{field}"]
        result[f"norm_values.{field}"] = intra_depth_last(state[f"norm_v.{field}"])
    if layer.position_bias is not None:
        zeros = foreign.table.new_zeros(foreign.table.shape[-2])
        result["position_bias"] = zeros if foreign.bias is None else foreign.bias
    return result


@torch.no_grad()
def copy_to_lucidrains(layer: LambdaLayer, other: Any) -> None:
    """Copy the weights of a layer into one of lambda-networks, so that both compute the same.

    Args:
        layer: The source. Its `position_bias` is not copied.
        other: The target, with the same sizes; the bias of its position convolution becomes zero.
    """
    k, v, u = layer.dim_k, layer.dim_v, layer.dim_u
    other.to_q.weight.copy_(layer.to_queries.weight)
    if layer.to_keys is not None:
        other.to_k.weight.copy_(_intra_depth_first(layer.to_keys.weight, k, u))
    other.to_v.weight.copy_(_intra_depth_first(layer.to_values.weight, v, u))
    other.norm_q.load_state_dict(layer.norm_queries.state_dict())
    other.norm_v.load_state_dict(
        {
            name: _intra_depth_first(tensor, v, u) if tensor.ndim else tensor
            for name, tensor in layer.norm_values.state_dict().items()
        }
    )
    if layer.positions is None:
        return
    if other.local_contexts:
        other.pos_conv.weight.copy_(layer.positions.permute(3, 2, 0, 1)[:, :, None].transpose(0, 1))
        other.pos_conv.bias.zero_()
    else:
        other.rel_pos_emb.copy_(layer.positions)


@torch.no_grad()
def copy_to_timm(layer: LambdaLayer, other: Any) -> None:
    """Copy the weights of a layer into timm's `LambdaLayer`, so that both compute the same.

    Args:
        layer: The source, with dim_u = 1. Its `position_bias` is not copied.
        other: The target, with the same sizes; the bias of its position convolution becomes zero.
    """
    keys = [] if layer.to_keys is None else [layer.to_keys.weight]
    other.qkv.weight.copy_(torch.cat([layer.to_queries.weight, *keys, layer.to_values.weight]))
    other.norm_q.load_state_dict(layer.norm_queries.state_dict())
    other.norm_v.load_state_dict(layer.norm_values.state_dict())
    if layer.positions is None:
        return
    if other.conv_lambda is not None:
        other.conv_lambda.weight.copy_(layer.positions[..., 0].movedim(-1, 0)[:, None, :, :, None])
        other.conv_lambda.bias.zero_()
    else:
        other.pos_emb.copy_(layer.positions[..., 0])


def _intra_depth_first(weight: Tensor, depth: int, u: int) -> Tensor:
    return weight.unflatten(0, (depth, u)).transpose(0, 1).flatten(0, 1)
