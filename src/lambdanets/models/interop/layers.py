"""Layers with the parameters of timm's, lucidrains' and d-li14's lambda layers, computed by our operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers.lambda_layer import LambdaLayer
from timm.models import register_notrace_module
from torch import Tensor, nn

from lambdanets.nn.fuse_batch_norm import (
    Projection,
    can_fuse,
    is_unmodified,
    project_concatenated,
    project_fused,
)
from lambdanets.nn.memory_format import dense_like, match_gradient_format, merge_heads
from lambdanets.nn.operands import Operands
from lambdanets.ops import LocalContext, lambda_layer


@torch.fx.wrap
def _checked(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"x must be of shape (b dim height width), got {tuple(x.shape)}")
    return x


@torch.fx.wrap
def _layer_output(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    e: Tensor,
    bias: Tensor | None,
    x: Tensor,
    num_heads: int,
    dim_u: int,
) -> Tensor:
    """Compute the output `[b, dim_out, height, width]` from normalised projections: one node in torch.fx.

    Args:
        queries: Normalised queries `[b, h * k, height, width]`.
        keys: Keys `[b, u * k, height, width]`.
        values: Normalised values `[b, u * v, height, width]`.
        e: Position table `[*scope, k, u]`.
        bias: Bias of the position lambdas `[k]`, or None.
        x: Input of the layer; the output has its memory format.
        num_heads: h.
        dim_u: u.
    """
    queries, values = match_gradient_format(queries), match_gradient_format(values)
    dtype = keys.dtype  # under autocast norms and projections may differ in dtype
    q = queries.flatten(2).unflatten(1, (num_heads, -1)).mT.to(dtype)  # [b, h, n, k]
    k = keys.flatten(2).unflatten(1, (dim_u, -1)).permute(0, 3, 2, 1)  # [b, n, k, u]
    v = values.flatten(2).unflatten(1, (dim_u, -1)).permute(0, 3, 2, 1).to(dtype)  # [b, n, v, u]
    y = lambda_layer(q, k, v, e.to(dtype), context=LocalContext(tuple(x.shape[2:]), tuple(e.shape[:2])))
    if bias is not None:
        y = y + torch.einsum("bhnk,k->bhn", q, bias.to(dtype))[..., None]
    return merge_heads(y, x)


torch.library.define(
    "lambdanets::accelerated_output", torch.library.infer_schema(_layer_output, mutates_args=())
)
torch.library.impl("lambdanets::accelerated_output", "CompositeImplicitAutograd", _layer_output)
torch.fx.wrap("dense_like")


class AcceleratedLayer(nn.Module):
    """Base class of the replacements for layers of other packages: same parameters, `lambda_layer` inside.

    `y[b,h,n,v] = sum_k q[b,h,n,k] (bias[k] + sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u])`

    Parameters, submodules, hooks and mode are those of the original, under the same names and in the same
    order: existing optimisers remain valid, and checkpoints of either layer load into the other. In
    evaluation without gradients the batch norms are fused into one projection, unless the submodules have
    hooks or were replaced. They are fused again at each call, so that no change of the weights is missed.

    Subclasses set the class attributes below and implement `projections`, `weights` and `positions`.

    Args:
        layer: The original layer. Afterwards it shares all its parameters and submodules with this one.

    Differences from the paper:
        The position convolution of these packages has a bias, which adds the same lambda at all positions.
        The operator has no such term; it is added here.
    """

    # TorchScript reads the annotations of attributes, and does not support modules there.
    if TYPE_CHECKING:
        convolution: str  # name of the position convolution, which layers with a local scope have
        value_axis: int  # spatial axis of this convolution that holds the value channels in the original
        indices: str | None  # name of the buffer of n x m table indices, which this layer does not need
        projection_names: tuple[str, ...]
        norm_q: nn.BatchNorm2d
        norm_v: nn.BatchNorm2d
        num_heads: int
        dim_u: int

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # The attributes are shared, not copied, so that hooks can still be removed by their handle.
        self.__dict__.update(layer.__dict__)
        self.dim_u = 1
        self._buffers = {name: buffer for name, buffer in layer._buffers.items() if name != self.indices}
        if self.indices is not None:
            self.__dict__.pop(self.indices, None)
        self.__dict__.pop("_compiled_call_impl", None)  # set by `layer.compile()`; it calls the original

    @classmethod
    def unsupported_reason(cls, layer: nn.Module) -> str | None:
        """Return why this class cannot replace a layer; None if it can.

        The weight of the position convolution is read as a table, so the convolution must be as its package
        creates it.
        """
        convolution = getattr(layer, cls.convolution, None)
        if convolution is None:  # a layer with a global position table has none
            return None
        name = cls.convolution
        kind = type(convolution)
        original = (nn.Conv3d.forward, nn.Conv3d._conv_forward)
        if not isinstance(convolution, nn.Conv3d) or (kind.forward, kind._conv_forward) != original:
            return f"{name} is a {kind.__name__}, not the Conv3d that its package creates"
        if not is_unmodified(convolution):
            return f"{name} has hooks or a forward of its own"
        geometry = {
            "stride": (1, 1, 1),
            "padding": tuple(size // 2 for size in convolution.kernel_size),
            "dilation": (1, 1, 1),
            "groups": 1,
            "padding_mode": "zeros",
        }
        for attribute, expected in geometry.items():
            if getattr(convolution, attribute) != expected:
                return f"{name} has another {attribute} than the package gives it"
        if convolution.kernel_size[cls.value_axis] != 1:
            return f"{name} mixes value channels"
        return None

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries `[b, h * k, y, x]`, keys `[b, u * k, y, x]` and values `[b, u * v, y, x]`."""
        raise NotImplementedError

    def weights(self) -> list[Projection]:
        """Return weight, bias and norm of the projections to queries, keys and values."""
        raise NotImplementedError

    def positions(self) -> tuple[Tensor, Tensor | None]:
        """Return the position table `[*scope, k, u]` and the bias of the position lambdas `[k]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Images `[b, dim, height, width]`, of any size.

        Returns:
            Images `[b, dim_out, height, width]`, in the memory format of `x`.

        Raises:
            ValueError: If `x` has another number of axes.
            RuntimeError: If the position convolution was changed after `accelerate`, except for its weights.
        """
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            queries, keys, values = self.projections(x)
            e, bias = self.positions()
            y = torch.ops.lambdanets.accelerated_output(
                queries, keys, values, e, bias, x, self.num_heads, self.dim_u
            )
        else:
            y = self._forward(x)
        return self.stride_output(y)

    def stride_output(self, y: Tensor) -> Tensor:
        """Return the output `y` of the operator, pooled where the original layer has a stride."""
        return y

    def operands(self, x: Tensor) -> Operands:
        """Return the operands of the call with images `x` `[b, dim, height, width]`."""
        queries, keys, values = self.projections(x)
        e, bias = self.positions()
        u, dtype = self.dim_u, keys.dtype
        return Operands(
            q=queries.flatten(2).unflatten(1, (self.num_heads, -1)).mT.to(dtype),
            k=keys.flatten(2).unflatten(1, (u, -1)).permute(0, 3, 2, 1),
            v=values.flatten(2).unflatten(1, (u, -1)).permute(0, 3, 2, 1).to(dtype),
            e=e.to(dtype),
            position_bias=None if bias is None else bias.to(dtype),
            context=LocalContext(tuple(x.shape[2:]), tuple(e.shape[:2])),
            mask=None,
            normalize="softmax",
            decay=None,
            undefined=None,
            finish=lambda y: self.stride_output(merge_heads(y, x)),
        )

    def _forward(self, x: Tensor) -> Tensor:
        x = _checked(x)
        projections = [getattr(self, name) for name in self.projection_names]
        if can_fuse(x, projections, [self.norm_q, self.norm_v]):
            queries, keys, values = project_fused(x, self.weights())
        else:
            queries, keys, values = self.projections(x)
        self._check_convolution()
        return _layer_output(queries, keys, values, *self.positions(), x, self.num_heads, self.dim_u)

    def __prepare_scriptable__(self) -> AcceleratedLayer:
        """Raise as `forward` does; `torch.jit.script` calls this method before it compiles the layer."""
        self._check_convolution()
        return self

    def _check_convolution(self) -> None:
        reason = self.unsupported_reason(self)
        if reason is not None:
            raise RuntimeError(
                f"accelerate uses the weight of {self.convolution} as a table, but now {reason}"
            )

    def extra_repr(self) -> str:
        *scope, dim_k, dim_u = self.positions()[0].shape
        return f"dim_k={dim_k}, num_heads={self.num_heads}, dim_u={dim_u}, scope={tuple(scope)}"


class TimmLambdaLayer(AcceleratedLayer):
    """Replacement for timm's `LambdaLayer`, local (`conv_lambda`) or global (`pos_emb`), with its pooling.

    Differences from the original:
        The output may have another number of channels than the input. A global layer takes images of any
        size: it uses the middle of its table, and offsets beyond the table contribute nothing.
    """

    convolution = "conv_lambda"
    value_axis = 2
    indices = "rel_pos_indices"
    projection_names = ("qkv",)
    if TYPE_CHECKING:
        qkv: nn.Conv2d
        conv_lambda: nn.Conv3d | None
        pos_emb: Tensor
        pool: nn.Module
        dim_qk: int
        dim_v: int

    def stride_output(self, y: Tensor) -> Tensor:
        return self.pool(y)

    @property
    def _sizes(self) -> list[int]:
        return [self.num_heads * self.dim_qk, self.dim_qk, self.dim_v]

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.qkv(x).split(self._sizes, dim=1)
        return self.norm_q(dense_like(queries, x)), keys, self.norm_v(dense_like(values, x))

    def weights(self) -> list[Projection]:
        bias = self.qkv.bias
        biases = [None] * 3 if bias is None else bias.split(self._sizes)
        norms = (self.norm_q, None, self.norm_v)
        return list(zip(self.qkv.weight.split(self._sizes), biases, norms, strict=True))

    def positions(self) -> tuple[Tensor, Tensor | None]:
        if self.conv_lambda is None:
            return self.pos_emb[..., None], None
        return self.conv_lambda.weight.squeeze(-1).permute(2, 3, 0, 1), self.conv_lambda.bias


class LucidrainsLambdaLayer(AcceleratedLayer):
    """Replacement for the `LambdaLayer` of lucidrains: local (`pos_conv`) or global (`rel_pos_emb`).

    Differences from the original:
        A global layer takes images of any size, also rectangular ones: it uses the middle of its table, and
        offsets beyond the table contribute nothing.
    """

    convolution = "pos_conv"
    value_axis = 0
    indices = "rel_pos"
    projection_names = ("to_q", "to_k", "to_v")
    if TYPE_CHECKING:
        to_q: nn.Conv2d
        to_k: nn.Conv2d
        to_v: nn.Conv2d
        pos_conv: nn.Conv3d
        rel_pos_emb: Tensor
        local_contexts: bool
        heads: int
        u: int

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.num_heads, self.dim_u = self.heads, self.u

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = project_concatenated(x, [self.to_q, self.to_k, self.to_v])
        return self.norm_q(queries), keys, self.norm_v(values)

    def weights(self) -> list[Projection]:
        projections = ((self.to_q, self.norm_q), (self.to_k, None), (self.to_v, self.norm_v))
        return [(layer.weight, layer.bias, norm) for layer, norm in projections]

    def positions(self) -> tuple[Tensor, Tensor | None]:
        if not self.local_contexts:
            return self.rel_pos_emb, None
        return self.pos_conv.weight.squeeze(2).permute(2, 3, 0, 1), self.pos_conv.bias


class DLi14LambdaLayer(AcceleratedLayer):
    """Replacement for the `LambdaLayer` of d-li14/lambda.pytorch, which is always local, with its pooling."""

    convolution = "lambda_conv"
    value_axis = 0
    indices = None
    projection_names = ("conv_qkv",)
    if TYPE_CHECKING:
        conv_qkv: nn.Conv2d
        lambda_conv: nn.Conv3d
        avgpool: nn.Module
        stride: int
        Nh: int
        dk: int
        du: int
        dv: int

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.num_heads, self.dim_u = self.Nh, self.du

    @staticmethod
    def recognises(layer: nn.Module) -> bool:
        """Return whether a layer has d-li14's submodules and attributes; other layers have the same name."""
        submodules = {"conv_qkv", "norm_q", "norm_v", "softmax", "lambda_conv"}
        attributes = {"Nh", "dk", "du", "dv", "stride"}
        return layer._modules.keys() - {"avgpool"} == submodules and attributes <= vars(layer).keys()

    def stride_output(self, y: Tensor) -> Tensor:
        return self.avgpool(y) if self.stride > 1 else y

    @property
    def _sizes(self) -> list[int]:
        return [self.Nh * self.dk, self.dk * self.du, self.dv * self.du]

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.conv_qkv(x).split(self._sizes, dim=1)
        return self.norm_q(dense_like(queries, x)), keys, self.norm_v(dense_like(values, x))

    def weights(self) -> list[Projection]:
        norms = (self.norm_q, None, self.norm_v)
        weights = self.conv_qkv.weight.split(self._sizes)
        return [(weight, None, norm) for weight, norm in zip(weights, norms, strict=True)]

    def positions(self) -> tuple[Tensor, Tensor | None]:
        return self.lambda_conv.weight.squeeze(2).permute(2, 3, 0, 1), self.lambda_conv.bias


# Graphs of timm (feature_cls="fx") must not trace into the layers, so that `accelerate` finds them there.
for _layer in (LambdaLayer, TimmLambdaLayer, LucidrainsLambdaLayer, DLi14LambdaLayer):
    register_notrace_module(_layer)
