"""The tensors of a `LambdaLayer1d` whose whole step the native library computes in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lambdanets.ops.recurrent import Layer

from .fuse_batch_norm import can_concatenate, is_unmodified
from .pointwise import ChannelRMSNorm

if TYPE_CHECKING:
    from .recurrent_lambda_layer import RecurrentLambdaLayer

OUT_NORM_EPS = 1e-5
"""Epsilon of the output norm."""


def as_native(layer: RecurrentLambdaLayer, x_t: Tensor) -> Layer | None:
    """Return a layer as the native library takes it, None if its modules have to be called.

    They have to be if a module has hooks or was replaced, has a bias or a batch norm; see `can_concatenate`.
    The library has no table dropout either.
    """
    if layer.table_dropout and layer.training:
        return None
    # Read from the dictionaries: an attribute of a module takes ten times as long.
    modules: dict[str, Any] = layer._modules
    parameters: dict[str, Any] = layer._parameters
    projections = [modules.get(name) for name in ("to_queries", "to_values", "to_keys", "to_gate")]
    norms = [modules["norm_queries"], modules["norm_values"]]
    present = [p for p in projections if p is not None]
    if not (can_concatenate(x_t, present) and all(map(_is_native_norm, norms))):
        return None
    try:
        if any(p._parameters["bias"] is not None for p in present):
            return None
        weights: list[Any] = [None if p is None else p._parameters["weight"] for p in projections]
        query_norm, value_norm = (norm._parameters.get("weight") for norm in norms)
        log_decay = parameters["log_decay"]
        return Layer(
            num_heads=layer.num_heads,
            key_heads=layer.key_heads,
            depths=(layer.dim_k, layer.dim_v, layer.dim_u),
            dilation=layer.dilation[0],
            normalize="softmax" if layer.normalize == "softmax_both" else layer.normalize,
            query_softmax=layer.normalize == "softmax_both",
            epsilons=(getattr(norms[0], "eps", 0.0), getattr(norms[1], "eps", 0.0), OUT_NORM_EPS),
            e=parameters["positions"],
            decay=None if log_decay is None else log_decay.exp(),
            to_queries=weights[0],
            to_values=weights[1],
            to_keys=weights[2],
            to_gate=weights[3],
            query_norm=query_norm,
            value_norm=value_norm,
            output_norm=parameters["out_norm"],
            position_bias=parameters["position_bias"],
            short_conv=parameters["short_conv"],
        )
    except KeyError:
        # A parameter that is computed, as by torch.nn.utils.parametrize.
        return None


def _is_native_norm(norm: nn.Module) -> bool:
    """Return whether the native library computes a norm: an RMS norm, or none, without hooks."""
    return type(norm) in (ChannelRMSNorm, nn.Identity) and is_unmodified(norm)
