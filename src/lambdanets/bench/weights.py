"""The weights of our layer in the layers of others, so that one input must give one output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.nn.lambda_layer import LambdaLayer


@torch.no_grad()
def to_lucidrains(ours: LambdaLayer, theirs: Any) -> None:
    """Copy our weights into a layer of lambda-networks; the bias of its position convolution becomes zero."""
    k, v, u = ours.dim_k, ours.dim_v, ours.dim_u
    theirs.to_q.weight.copy_(ours.to_queries.weight)
    if ours.to_keys is not None:
        theirs.to_k.weight.copy_(_depth_first(ours.to_keys.weight, k, u))
    theirs.to_v.weight.copy_(_depth_first(ours.to_values.weight, v, u))
    _copy_norm(ours.norm_queries, theirs.norm_q)
    _copy_norm(ours.norm_values, theirs.norm_v, (v, u))
    if ours.positions is None:
        return
    if theirs.local_contexts:
        theirs.pos_conv.weight.copy_(ours.positions.permute(3, 2, 0, 1)[:, :, None].transpose(0, 1))
        theirs.pos_conv.bias.zero_()
    else:
        theirs.rel_pos_emb.copy_(ours.positions)


@torch.no_grad()
def to_timm(ours: LambdaLayer, theirs: Any) -> None:
    """Copy our weights into timm's layer; the bias of its position convolution becomes zero."""
    keys = [] if ours.to_keys is None else [ours.to_keys.weight]
    theirs.qkv.weight.copy_(torch.cat([ours.to_queries.weight, *keys, ours.to_values.weight]))
    _copy_norm(ours.norm_queries, theirs.norm_q)
    _copy_norm(ours.norm_values, theirs.norm_v)
    if ours.positions is None:
        return
    if theirs.conv_lambda is not None:
        theirs.conv_lambda.weight.copy_(ours.positions[..., 0].movedim(-1, 0)[:, None, :, :, None])
        theirs.conv_lambda.bias.zero_()
    else:
        theirs.pos_emb.copy_(ours.positions[..., 0])


def _depth_first(weight: Tensor, depth: int, u: int) -> Tensor:
    """Our channels are (depth u), theirs (u depth)."""
    return weight.unflatten(0, (depth, u)).transpose(0, 1).flatten(0, 1)


def _copy_norm(ours: nn.Module, theirs: nn.Module, order: tuple[int, int] | None = None) -> None:
    state = ours.state_dict()
    if order is not None:
        state = {name: _depth_first(each, *order) if each.ndim else each for name, each in state.items()}
    theirs.load_state_dict(state)
