"""Lambda layers of other implementations, as weights by name, turned into those of `LambdaLayer2d`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lambdanets.utils.text import join_some

from ..nn.blocks import Bottleneck
from ..nn.lambda_layer import LambdaLayer
from .weight_files import WeightsError

LUCIDRAINS, D_LI14 = "lucidrains/lambda-networks", "d-li14/lambda.pytorch"
_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NORMS = {f"{norm}.{field}" for norm in ("norm_q", "norm_v") for field in _FIELDS}
_APART = {"to_q.weight", "to_k.weight", "to_v.weight"} | _NORMS
_OF_LUCIDRAINS = (_APART | {"pos_conv.weight", "pos_conv.bias"}, _APART | {"rel_pos_emb"})
_OF_D_LI14 = {"conv_qkv.weight", "lambda_conv.weight", "lambda_conv.bias"} | _NORMS


@dataclass(frozen=True)
class _Layer:
    """What a layer of another implementation holds; keys and values have u outermost, ours innermost.

    Attributes:
        owner: Whose it is.
        queries, keys, values: Weights of the projections, of shapes (hk dim 1 1), (uk dim 1 1), (uv dim 1 1).
        table: Position embeddings of shape (*offsets k u).
        bias: Of the position lambdas (k), or None.
    """

    owner: str
    queries: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    bias: Tensor | None


def converted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights in which the layers of lucidrains and d-li14 are ours, wherever the model has ours.

    Both order keys and values by intra-depth first; a fused projection is taken apart; the kernel of their
    position convolution is the table, and its bias the layer's `position_bias`. All of it is exact.

    Args:
        weights: Tensors by name. All that is no such layer stays as it is.
        model: Tells where our layers are.

    Raises:
        WeightsError: The layer, or the block that it stands in, computes something that theirs does not.
    """
    result = dict(weights)
    obstacles: dict[str, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, LambdaLayer):
            continue
        prefix = f"{name}." if name else ""
        held = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
        theirs = _recognised(held)
        if theirs is None:
            continue
        for obstacle in _obstacles(theirs, layer, model, name):
            obstacles.setdefault(obstacle, []).append(name or "the layer")
        for key in held:
            del result[prefix + key]
        result |= {prefix + key: tensor for key, tensor in _as_ours(theirs, held, layer).items()}
    if obstacles:
        listing = "; ".join(
            f"{obstacle} ({join_some(names, 1, form=str)})" for obstacle, names in obstacles.items()
        )
        raise WeightsError(f"layers of another implementation do not convert exactly: {listing}")
    return result


def of_d_li14(weights: dict[str, Tensor]) -> bool:
    """Whether there are layers of d-li14/lambda.pytorch among weights."""
    ends = ("conv_qkv.weight", "lambda_conv.weight")
    return all(any(name.endswith(end) for name in weights) for end in ends)


def _recognised(held: dict[str, Tensor]) -> _Layer | None:
    names = held.keys()
    if names in _OF_LUCIDRAINS:
        projections = (held["to_q.weight"], held["to_k.weight"], held["to_v.weight"])
        if "rel_pos_emb" in names:
            return _Layer(LUCIDRAINS, *projections, held["rel_pos_emb"], None)
        table = held["pos_conv.weight"].squeeze(2).permute(2, 3, 0, 1)
        return _Layer(LUCIDRAINS, *projections, table, held["pos_conv.bias"])
    if names == _OF_D_LI14:
        dim_k, dim_u = held["lambda_conv.weight"].shape[:2]
        sizes = [len(held["norm_q.weight"]), dim_k * dim_u, len(held["norm_v.weight"])]
        table = held["lambda_conv.weight"].squeeze(2).permute(2, 3, 0, 1)
        queries, keys, values = held["conv_qkv.weight"].split(sizes)
        return _Layer(D_LI14, queries, keys, values, table, held["lambda_conv.bias"])
    return None


def _obstacles(theirs: _Layer, layer: LambdaLayer, model: nn.Module, name: str) -> list[str]:
    """What names and shapes do not show: where our layer computes something else."""
    found = []
    if theirs.bias is not None and layer.position_bias is None and theirs.bias.any():
        found.append(f"the position convolution of {theirs.owner} has a bias, which needs position_bias=True")
    if layer.normalize != "softmax":
        found.append(f"{theirs.owner} has a softmax over keys, and not normalize={layer.normalize!r}")
    if max(layer.dilation) > 1:
        found.append(f"{theirs.owner} has no dilation, and not one of {layer.dilation}")
    block = model.get_submodule(name.rpartition(".")[0]) if name else None
    pool = block.pool if isinstance(block, Bottleneck) else None
    if theirs.owner == D_LI14 and isinstance(pool, nn.AvgPool2d) and not pool.count_include_pad:
        found.append(f"the pooling of {D_LI14} counts zeros beyond the border, which needs pool_padding=True")
    return found


def _as_ours(theirs: _Layer, held: dict[str, Tensor], layer: LambdaLayer) -> dict[str, Tensor]:
    dim_u = theirs.table.shape[-1]

    def intra_depth_last(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (dim_u, -1)).transpose(0, 1).flatten(0, 1) if tensor.ndim else tensor

    result = {
        "to_queries.weight": theirs.queries,
        "to_keys.weight": intra_depth_last(theirs.keys),
        "to_values.weight": intra_depth_last(theirs.values),
        "positions": theirs.table,
    }
    for field in _FIELDS:
        result[f"norm_queries.{field}"] = held[f"norm_q.{field}"]
        result[f"norm_values.{field}"] = intra_depth_last(held[f"norm_v.{field}"])
    if layer.position_bias is not None:
        zeros = theirs.table.new_zeros(theirs.table.shape[-2])
        result["position_bias"] = zeros if theirs.bias is None else theirs.bias
    return result
