"""The layers that are compared: ours, each of our kernels, those of other packages, attention, a convolution.

Each is a `Contender`; `CONTENDERS` holds all of them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.models.interop.convert import copy_to_lucidrains, copy_to_timm
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d
from lambdanets.nn.lambda_layer import LambdaLayer
from lambdanets.ops import KERNELS, Problem, plan
from lambdanets.ops.planner import PlanRow

from .cases import Case

LAYERS: dict[int, type[LambdaLayer]] = {1: LambdaLayer1d, 2: LambdaLayer2d, 3: LambdaLayer3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OURS = "lambdanets"
NOT_INSTALLED = "not installed: pip install 'lambdanets[bench]'"

Role = Literal["layer", "kernel", "peer", "other"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A layer that takes part in the comparison.

    Attributes:
        name: Name in tables and in the CSV.
        role: "layer" is our layer, "kernel" our layer with one kernel, "peer" another implementation of the
            same function, "other" another function that a network may have in its place.
        build: Builds the module for a case.
        unsupported: Function of case, dtype and device that returns the reason why the contender cannot take
            part, or "".
        copy_weights_from: Function that copies the weights of our layer, the first argument, into the
            contender's module, the second; None if the contender computes another function.
        required_bytes: Function of case, training or not, dtype and device that returns the bytes of the
            temporaries that the contender is known to allocate at the same time.
    """

    name: str
    role: Role
    build: Callable[[Case], nn.Module]
    unsupported: Callable[[Case, torch.dtype, str], str] = lambda case, dtype, device: ""
    copy_weights_from: Callable[[LambdaLayer, nn.Module], None] | None = None
    required_bytes: Callable[[Case, bool, torch.dtype, str], int] = lambda case, train, dtype, device: 0


class Attention(nn.Module):
    """PyTorch's softmax attention with one projection, without position embeddings and output projection."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.num_heads, self.dim_v = case.num_heads, case.dim_v
        self.to_qkv = CONVOLUTIONS[case.rank](case.dim, 3 * case.dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.to_qkv(x).flatten(2).unflatten(1, (3, self.num_heads, self.dim_v)).mT
        # The fused attention of the CPU is six times slower on strided channels than on this copy; that of a
        # GPU requires contiguous channels, which a channels-last input has.
        if heads.device.type == "cpu" or heads.stride(-1) != 1:
            heads = heads.contiguous()
        q, k, v = heads.unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.mT.flatten(1, 2).unflatten(2, x.shape[2:])


def _convolution(case: Case) -> nn.Module:
    return CONVOLUTIONS[case.rank](case.dim, case.dim, 3, padding=1, bias=False)


def our_layer(case: Case, kernel: str = "auto") -> LambdaLayer:
    """Return our layer for a case with its initial weights."""
    return LAYERS[case.rank](
        case.dim,
        dim_k=case.dim_k,
        num_heads=case.num_heads,
        dim_u=case.dim_u,
        scope=case.scope,
        grid=case.grid if case.scope is None else None,
        kernel=kernel,
    )


def plan_rows(problem: Problem, kernel: str) -> list[PlanRow]:
    """Return the rows of a kernel in a plan: of the forward and, in training, of the backward pass."""
    made = plan(problem)
    return [row for row in (*made.rows, *made.backward_rows) if row.kernel == kernel]


def _kernel_unsupported(case: Case, dtype: torch.dtype, device: str, kernel: str) -> str:
    (row,) = plan_rows(case.problem(dtype=dtype, device=device), kernel)
    return f"cannot serve: {row.reason}" if row.cost is None else ""


def _kernel_bytes(case: Case, train: bool, dtype: torch.dtype, device: str, kernel: str) -> int:
    rows = plan_rows(case.problem(train=train, dtype=dtype, device=device), kernel)
    return max((row.cost.peak_bytes for row in rows if row.cost is not None), default=0)


def _copy_weights(ours: LambdaLayer, module: nn.Module) -> None:
    module.load_state_dict(ours.state_dict())


def _lucidrains(case: Case) -> nn.Module:
    from lambda_networks import LambdaLayer as Layer  # pyright: ignore[reportMissingImports]

    geometry = {"n": case.grid[0]} if case.scope is None else {"r": case.scope[0]}
    sizes = {"dim_k": case.dim_k, "heads": case.num_heads, "dim_u": case.dim_u}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its call of torch.meshgrid
        return _with_contiguous_gradients(Layer(case.dim, **sizes, **geometry), case)


def _lucidrains_unsupported(case: Case, dtype: torch.dtype, device: str) -> str:
    if importlib.util.find_spec("lambda_networks") is None:
        return NOT_INSTALLED
    if case.rank == 2 and case.scope is None and case.grid[0] != case.grid[1]:
        return "cannot take part: its global positions are for square grids"
    return _geometry_unsupported(case)


def _timm(case: Case) -> nn.Module:
    from timm.layers.lambda_layer import LambdaLayer as Layer

    size = None if case.scope is not None else (case.grid[0], case.grid[1])
    reach = None if case.scope is None else case.scope[0]
    sizes: dict[str, Any] = {"feat_size": size, "r": reach}
    return _with_contiguous_gradients(
        Layer(case.dim, num_heads=case.num_heads, dim_head=case.dim_k, **sizes), case
    )


def _timm_unsupported(case: Case, dtype: torch.dtype, device: str) -> str:
    if case.dim_u > 1:
        return "cannot take part: its intra-depth u is 1"
    return _geometry_unsupported(case)


def _with_contiguous_gradients(module: nn.Module, case: Case) -> nn.Module:
    """Make the gradients of the outputs of batch norms contiguous at batch 1.

    There PyTorch's CPU kernel misreads channels-last gradients with a small batch stride, which views have.
    """
    if case.batch == 1:
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.register_forward_hook(_contiguous_gradient)
    return module


def _contiguous_gradient(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    if output.requires_grad and output.device.type == "cpu":
        output.register_hook(Tensor.contiguous)


def _geometry_unsupported(case: Case) -> str:
    """Return why layers for images with square odd scopes cannot take part in a case, or ""."""
    if case.rank != 2:
        return "cannot take part: it is for two axes"
    if case.scope is not None and (case.scope[0] != case.scope[1] or case.scope[0] % 2 == 0):
        return "cannot take part: its scope is square and odd"
    return ""


def _peer_bytes(case: Case, train: bool, dtype: torch.dtype, device: str, tables: int) -> int:
    """Return the bytes of the expanded table (`tables` n m k u) and of the lambdas, twice in training."""
    n = case.positions
    pairs = tables * n * n * case.dim_k * case.dim_u if case.scope is None else 0
    lambdas = case.batch * n * case.dim_k * case.dim_v
    return dtype.itemsize * (2 if train else 1) * (pairs + 2 * lambdas)


CONTENDERS: tuple[Contender, ...] = (
    Contender(name=OURS, role="layer", build=our_layer, copy_weights_from=_copy_weights),
    Contender(
        name="lucidrains",
        role="peer",
        build=_lucidrains,
        unsupported=_lucidrains_unsupported,
        copy_weights_from=copy_to_lucidrains,
        required_bytes=partial(_peer_bytes, tables=1),
    ),
    Contender(
        name="timm",
        role="peer",
        build=_timm,
        unsupported=_timm_unsupported,
        copy_weights_from=copy_to_timm,
        # It expands its position table over the batch.
        required_bytes=lambda case, *how: _peer_bytes(case, *how, tables=3 * case.batch),
    ),
    Contender(name="SDPA", role="other", build=Attention),
    Contender(name="3x3 conv", role="other", build=_convolution),
    *(
        Contender(
            name=name,
            role="kernel",
            build=partial(our_layer, kernel=name),
            unsupported=partial(_kernel_unsupported, kernel=name),
            copy_weights_from=_copy_weights,
            required_bytes=partial(_kernel_bytes, kernel=name),
        )
        for name in KERNELS
    ),
)


def find_contender(name: str, role: str) -> Contender:
    """Return the contender with this name and role."""
    return next(each for each in CONTENDERS if (each.name, each.role) == (name, role))


def build_module(
    contender: Contender, case: Case, dtype: torch.dtype, device: str, channels_last: bool = False
) -> nn.Module:
    """Return the module of a contender for a case, built on its device.

    It is not built on the CPU and moved: lucidrains' layer has the indices of its global position table as a
    plain attribute, which `to` does not move, so every call would copy them to the GPU.

    Args:
        contender: The contender.
        case: The sizes.
        dtype: Dtype of the weights.
        device: Device of the weights.
        channels_last: Whether the weights of convolutions are in channels-last layout; position tables, which
            have four axes too, stay contiguous.
    """
    with torch.device(device):
        module = contender.build(case).to(device, dtype)
    for each in module.modules():
        if channels_last and isinstance(each, nn.Conv2d):
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
