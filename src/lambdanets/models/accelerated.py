"""The lambda layers of timm, lucidrains and d-li14, their weights as they are, on our operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers.lambda_layer import LambdaLayer
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..nn.folding import Part, foldable, project, project_apart, untouched
from ..nn.layout import dense_like, ordered_gradient, to_channels
from ..ops import LocalContext, lambda_layer


@torch.fx.wrap
def _checked(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"x must be of shape (b dim height width), got {tuple(x.shape)}")
    return x


@torch.fx.wrap
def _operate(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    e: Tensor,
    bias: Tensor | None,
    x: Tensor,
    num_heads: int,
    dim_u: int,
) -> Tensor:
    """Compute the output (b, dim_out, height, width) from normed projections: one node in torch.fx."""
    queries, values = ordered_gradient(queries), ordered_gradient(values)
    dtype = keys.dtype  # under autocast norms and projections may differ in type
    q = queries.flatten(2).unflatten(1, (num_heads, -1)).mT.to(dtype)
    k = keys.flatten(2).unflatten(1, (dim_u, -1)).permute(0, 3, 2, 1)
    v = values.flatten(2).unflatten(1, (dim_u, -1)).permute(0, 3, 2, 1).to(dtype)
    y = lambda_layer(q, k, v, e.to(dtype), context=LocalContext(tuple(x.shape[2:]), tuple(e.shape[:2])))
    if bias is not None:
        y = y + torch.einsum("bhnk,k->bhn", q, bias.to(dtype))[..., None]
    return to_channels(y, x)


torch.library.define("lambdanets::accelerated_output", torch.library.infer_schema(_operate, mutates_args=()))
torch.library.impl("lambdanets::accelerated_output", "CompositeImplicitAutograd", _operate)
torch.fx.wrap("dense_like")


class AcceleratedLayer(nn.Module):
    """A layer of another package with its own parameters, computed by `lambda_layer`.

    `y[b,h,n,v] = sum_k q[b,h,n,k] (bias[k] + sum_{m,u} (kbar[b,m,k,u] + E[n,m,k,u]) v[b,m,v,u])`

    Parameters, submodules, hooks and mode are those of the original, under their names and in their order:
    optimisers made before stay valid, and checkpoints of either load into the other. In evaluation without
    gradients the batch norms are folded into one projection, unless somebody hooked into these submodules or
    exchanged them. That is done anew at each call, so a change of the weights cannot be missed.

    Args:
        layer: The layer to take over. It shares everything with this one afterwards.

    Differences from the paper:
        The position convolution of these packages has a bias, which adds one lambda to those of all.
        The operator has no such term; it is added here.
    """

    if TYPE_CHECKING:  # TorchScript would read the annotations of attributes, and knows no modules there
        convolution: str  # the attribute of the original that is a convolution in its local form
        side: int  # the axis of this convolution, of one entry, along which the original lays the values
        indices: str | None  # the attribute of the original, of n x m entries, that gathers its embeddings
        projection_names: tuple[str, ...]
        norm_q: nn.BatchNorm2d
        norm_v: nn.BatchNorm2d
        num_heads: int
        dim_u: int

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # By reference, registries and all: nothing is copied, and hooks can still be removed by their handle.
        self.__dict__.update(layer.__dict__)
        self.dim_u = 1
        self._buffers = {name: buffer for name, buffer in layer._buffers.items() if name != self.indices}
        if self.indices is not None:
            self.__dict__.pop(self.indices, None)
        self.__dict__.pop("_compiled_call_impl", None)  # of `layer.compile()`: it would call the original

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        """Why this class cannot compute what a layer computes; None if it can.

        The position convolution is read as a table, so nothing else may happen in it.
        """
        convolution = getattr(layer, cls.convolution, None)
        if convolution is None:  # the relative form
            return None
        name = cls.convolution
        kind = type(convolution)
        own = (nn.Conv3d.forward, nn.Conv3d._conv_forward)
        if not isinstance(convolution, nn.Conv3d) or (kind.forward, kind._conv_forward) != own:
            return f"{name} is not a Conv3d as it was made, but a {kind.__name__}"
        if not untouched(convolution):
            return f"{name} has hooks or a forward of its own"
        geometry = {
            "stride": (1, 1, 1),
            "padding": tuple(size // 2 for size in convolution.kernel_size),
            "dilation": (1, 1, 1),
            "groups": 1,
            "padding_mode": "zeros",
        }
        for part, made in geometry.items():
            if getattr(convolution, part) != made:
                return f"{name} has another {part} than the package gives it"
        if convolution.kernel_size[cls.side] != 1:
            return f"{name} reaches from value to value"
        return None

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b hk y x), keys (b uk y x) and values (b uv y x), normed by the submodules."""
        raise NotImplementedError

    def weights(self) -> list[Part]:
        """Weight, bias and norm of the projections to queries, keys and values."""
        raise NotImplementedError

    def positions(self) -> tuple[Tensor, Tensor | None]:
        """The table of embeddings, of shape (*scope k u), and the bias of the position lambdas (k)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Images of shape (b dim height width), of any size.

        Returns:
            Images of shape (b dim_out height width), in the memory format of `x`.

        Raises:
            ValueError: If `x` has other axes.
            RuntimeError: If the position convolution has been changed, other than in its weights.
        """
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            queries, keys, values = self.projections(x)
            e, bias = self.positions()
            y = torch.ops.lambdanets.accelerated_output(
                queries, keys, values, e, bias, x, self.num_heads, self.dim_u
            )
        else:
            y = self._forward(x)
        return self.resized(y)

    def resized(self, y: Tensor) -> Tensor:
        """The output of the whole layer: `y`, or `y` pooled where the original strides."""
        return y

    def _forward(self, x: Tensor) -> Tensor:
        x = _checked(x)
        projections = [getattr(self, name) for name in self.projection_names]
        if foldable(x, projections, [self.norm_q, self.norm_v]):
            queries, keys, values = project(x, self.weights())
        else:
            queries, keys, values = self.projections(x)
        self._check_convolution()
        return _operate(queries, keys, values, *self.positions(), x, self.num_heads, self.dim_u)

    def __prepare_scriptable__(self) -> AcceleratedLayer:
        """Refuse what `forward` refuses: `torch.jit.script` calls this before it compiles the layer."""
        self._check_convolution()
        return self

    def _check_convolution(self) -> None:
        obstacle = self.obstacle(self)
        if obstacle is not None:
            raise RuntimeError(f"accelerate has read {self.convolution} as a table, but now {obstacle}")

    def extra_repr(self) -> str:
        *scope, dim_k, dim_u = self.positions()[0].shape
        return f"dim_k={dim_k}, num_heads={self.num_heads}, dim_u={dim_u}, scope={tuple(scope)}"


class TimmLambdaLayer(AcceleratedLayer):
    """timm's `LambdaLayer`, local (`conv_lambda`) or relative (`pos_emb`), with its pooling where it strides.

    Differences from the original: the output may have other channels than the input, and the relative form
    takes images of any size: it uses the middle of its table, or sees nothing beyond it.
    """

    convolution = "conv_lambda"
    side = 2
    indices = "rel_pos_indices"
    projection_names = ("qkv",)
    if TYPE_CHECKING:
        qkv: nn.Conv2d
        conv_lambda: nn.Conv3d | None
        pos_emb: Tensor
        pool: nn.Module
        dim_qk: int
        dim_v: int

    def resized(self, y: Tensor) -> Tensor:
        return self.pool(y)

    @property
    def _parts(self) -> list[int]:
        return [self.num_heads * self.dim_qk, self.dim_qk, self.dim_v]

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.qkv(x).split(self._parts, dim=1)
        return self.norm_q(dense_like(queries, x)), keys, self.norm_v(dense_like(values, x))

    def weights(self) -> list[Part]:
        bias = self.qkv.bias
        biases = [None] * 3 if bias is None else bias.split(self._parts)
        norms = (self.norm_q, None, self.norm_v)
        return list(zip(self.qkv.weight.split(self._parts), biases, norms, strict=True))

    def positions(self) -> tuple[Tensor, Tensor | None]:
        if self.conv_lambda is None:
            return self.pos_emb[..., None], None
        return self.conv_lambda.weight.squeeze(-1).permute(2, 3, 0, 1), self.conv_lambda.bias


class LucidrainsLambdaLayer(AcceleratedLayer):
    """The `LambdaLayer` of lucidrains/lambda-networks, local (`pos_conv`) or relative (`rel_pos_emb`).

    Differences from the original: the relative form takes images of any size, rectangles too: it uses the
    middle of its table, or sees nothing beyond it.
    """

    convolution = "pos_conv"
    side = 0
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
        queries, keys, values = project_apart(x, [self.to_q, self.to_k, self.to_v])
        return self.norm_q(queries), keys, self.norm_v(values)

    def weights(self) -> list[Part]:
        parts = ((self.to_q, self.norm_q), (self.to_k, None), (self.to_v, self.norm_v))
        return [(layer.weight, layer.bias, norm) for layer, norm in parts]

    def positions(self) -> tuple[Tensor, Tensor | None]:
        if not self.local_contexts:
            return self.rel_pos_emb, None
        return self.pos_conv.weight.squeeze(2).permute(2, 3, 0, 1), self.pos_conv.bias


class DLi14LambdaLayer(AcceleratedLayer):
    """The `LambdaLayer` of d-li14/lambda.pytorch, always local, with its pooling where it strides."""

    convolution = "lambda_conv"
    side = 0
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
        """Whether a layer of this name holds what d-li14's does: other repositories have the name too."""
        held = {"conv_qkv", "norm_q", "norm_v", "softmax", "lambda_conv"}
        sizes = {"Nh", "dk", "du", "dv", "stride"}
        return layer._modules.keys() - {"avgpool"} == held and sizes <= vars(layer).keys()

    def resized(self, y: Tensor) -> Tensor:
        return self.avgpool(y) if self.stride > 1 else y

    @property
    def _parts(self) -> list[int]:
        return [self.Nh * self.dk, self.dk * self.du, self.dv * self.du]

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.conv_qkv(x).split(self._parts, dim=1)
        return self.norm_q(dense_like(queries, x)), keys, self.norm_v(dense_like(values, x))

    def weights(self) -> list[Part]:
        norms = (self.norm_q, None, self.norm_v)
        parts = self.conv_qkv.weight.split(self._parts)
        return [(weight, None, norm) for weight, norm in zip(parts, norms, strict=True)]

    def positions(self) -> tuple[Tensor, Tensor | None]:
        return self.lambda_conv.weight.squeeze(2).permute(2, 3, 0, 1), self.lambda_conv.bias


# timm's graphs (feature_cls="fx") keep the layers whole, its own too: `accelerate` finds it in them.
for _layer in (LambdaLayer, TimmLambdaLayer, LucidrainsLambdaLayer, DLi14LambdaLayer):
    register_notrace_module(_layer)
