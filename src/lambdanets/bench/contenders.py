"""Who races: our layer, our kernels one by one, the peers' layers, attention and the convolution replaced."""

from __future__ import annotations

import importlib.util
import math
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
from lambdanets.ops.planner import Row

from .cases import Case

LAYERS: dict[int, type[LambdaLayer]] = {1: LambdaLayer1d, 2: LambdaLayer2d, 3: LambdaLayer3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OURS = "lambdanets"
NOT_INSTALLED = "not installed: pip install 'lambdanets[bench]'"

Role = Literal["layer", "kernel", "peer", "other"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of the race.

    Attributes:
        name: As in tables and the CSV.
        role: "layer" is ours, "kernel" ours with one kernel, "peer" another implementation of the same
            function, "other" another function that a network may hold in its place.
        build: Makes the module for a case.
        refuses: A sentence if it cannot take part in a case, of this type on this device, else "".
        adopt: Copies the weights of our layer into the module; None where the function is another one.
        needs: Bytes of temporaries that it is known to hold at once, by case, whether it trains, type and
            device.
    """

    name: str
    role: Role
    build: Callable[[Case], nn.Module]
    refuses: Callable[[Case, torch.dtype, str], str] = lambda case, dtype, device: ""
    adopt: Callable[[LambdaLayer, nn.Module], None] | None = None
    needs: Callable[[Case, bool, torch.dtype, str], int] = lambda case, train, dtype, device: 0


class Attention(nn.Module):
    """Softmax attention as cheap as PyTorch has it: one projection, no position embeddings, no output one."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.num_heads, self.dim_v = case.num_heads, case.dim_v
        self.to_qkv = CONVOLUTIONS[case.rank](case.dim, 3 * case.dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.to_qkv(x).flatten(2).unflatten(1, (3, self.num_heads, self.dim_v)).mT
        # The CPU's fused attention is six times slower on strided channels than this copy is; a GPU's needs
        # channels side by side, which they are in that layout.
        if heads.device.type == "cpu" or heads.stride(-1) != 1:
            heads = heads.contiguous()
        q, k, v = heads.unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.mT.flatten(1, 2).unflatten(2, x.shape[2:])


def _convolution(case: Case) -> nn.Module:
    return CONVOLUTIONS[case.rank](case.dim, case.dim, 3, padding=1, bias=False)


def our_layer(case: Case, kernel: str = "auto") -> LambdaLayer:
    """Return our layer for a case, as it is initialised."""
    return LAYERS[case.rank](
        case.dim,
        dim_k=case.dim_k,
        num_heads=case.num_heads,
        dim_u=case.dim_u,
        scope=case.scope,
        grid=case.grid if case.scope is None else None,
        kernel=kernel,
    )


def lines_of(problem: Problem, kernel: str) -> list[Row]:
    """Return a kernel's lines of the plan for a problem: the forward pass and, in training, the backward."""
    made = plan(problem)
    return [row for row in (*made.rows, *made.backward_rows) if row.kernel == kernel]


def _kernel_refuses(case: Case, dtype: torch.dtype, device: str, kernel: str) -> str:
    (line,) = lines_of(case.problem(dtype=dtype, device=device), kernel)
    return f"cannot serve: {line.reason}" if line.cost is None else ""


def _kernel_needs(case: Case, train: bool, dtype: torch.dtype, device: str, kernel: str) -> int:
    lines = lines_of(case.problem(train=train, dtype=dtype, device=device), kernel)
    return max((line.cost.peak_bytes for line in lines if line.cost is not None), default=0)


def _copy(ours: LambdaLayer, module: nn.Module) -> None:
    module.load_state_dict(ours.state_dict())


def _lucidrains(case: Case) -> nn.Module:
    from lambda_networks import LambdaLayer as Layer  # pyright: ignore[reportMissingImports]

    geometry = {"n": case.grid[0]} if case.scope is None else {"r": case.scope[0]}
    sizes = {"dim_k": case.dim_k, "heads": case.num_heads, "dim_u": case.dim_u}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.meshgrid, which it calls in an old way
        return _mended(Layer(case.dim, **sizes, **geometry), case)


def _lucidrains_refuses(case: Case, dtype: torch.dtype, device: str) -> str:
    if importlib.util.find_spec("lambda_networks") is None:
        return NOT_INSTALLED
    if case.rank == 2 and case.scope is None and case.grid[0] != case.grid[1]:
        return "cannot take part: its global positions are for square grids"
    return _square_and_odd(case)


def _timm(case: Case) -> nn.Module:
    from timm.layers.lambda_layer import LambdaLayer as Layer

    size = None if case.scope is not None else (case.grid[0], case.grid[1])
    reach = None if case.scope is None else case.scope[0]
    sizes: dict[str, Any] = {"feat_size": size, "r": reach}
    return _mended(Layer(case.dim, num_heads=case.num_heads, dim_head=case.dim_k, **sizes), case)


def _timm_refuses(case: Case, dtype: torch.dtype, device: str) -> str:
    if case.dim_u > 1:
        return "cannot take part: its intra-depth u is 1"
    return _square_and_odd(case)


def _mended(module: nn.Module, case: Case) -> nn.Module:
    """Make the gradients into batch norms contiguous where PyTorch would get them wrong.

    At batch 1 its CPU kernel misreads channels-last gradients whose batch stride is small; views make such.
    """
    if case.batch == 1:
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.register_forward_hook(_contiguous_gradient)
    return module


def _contiguous_gradient(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    if output.requires_grad and output.device.type == "cpu":
        output.register_hook(Tensor.contiguous)


def _square_and_odd(case: Case) -> str:
    if case.rank != 2:
        return "cannot take part: it is for two axes"
    if case.scope is not None and (case.scope[0] != case.scope[1] or case.scope[0] % 2 == 0):
        return "cannot take part: its scope is square and odd"
    return ""


def _peer_needs(case: Case, train: bool, dtype: torch.dtype, device: str, tables: int) -> int:
    """The expanded table (`tables` times n m k u) and the lambdas, of which training holds two of each."""
    n = case.positions
    pairs = tables * n * n * case.dim_k * case.dim_u if case.scope is None else 0
    lambdas = case.batch * n * case.dim_k * case.dim_v
    return dtype.itemsize * (2 if train else 1) * (pairs + 2 * lambdas)


CONTENDERS: tuple[Contender, ...] = (
    Contender(name=OURS, role="layer", build=our_layer, adopt=_copy),
    Contender(
        name="lucidrains",
        role="peer",
        build=_lucidrains,
        refuses=_lucidrains_refuses,
        adopt=copy_to_lucidrains,
        needs=partial(_peer_needs, tables=1),
    ),
    Contender(
        name="timm",
        role="peer",
        build=_timm,
        refuses=_timm_refuses,
        adopt=copy_to_timm,
        # It expands its table over the batch.
        needs=lambda case, *how: _peer_needs(case, *how, tables=3 * case.batch),
    ),
    Contender(name="SDPA", role="other", build=Attention),
    Contender(name="3x3 conv", role="other", build=_convolution),
    *(
        Contender(
            name=name,
            role="kernel",
            build=partial(our_layer, kernel=name),
            refuses=partial(_kernel_refuses, kernel=name),
            adopt=_copy,
            needs=partial(_kernel_needs, kernel=name),
        )
        for name in KERNELS
    ),
)


def by_name(name: str, role: str) -> Contender:
    """Return a contender of this module."""
    return next(each for each in CONTENDERS if (each.name, each.role) == (name, role))


def made(
    contender: Contender, case: Case, dtype: torch.dtype, device: str, channels_last: bool = False
) -> nn.Module:
    """Return the contender's module for a case, built where it runs.

    A peer keeps the offsets of its global positions as a plain attribute, which `to` does not move: it would
    send them to the GPU in every call.

    Args:
        contender: Whose.
        case: Sizes.
        dtype: Of the weights.
        device: Where.
        channels_last: Whether convolutions have their weights as they use them on such inputs; tables of
            positions, of four axes too, stay as they are.
    """
    with torch.device(device):
        module = contender.build(case).to(device, dtype)
    for each in module.modules():
        if channels_last and isinstance(each, nn.Conv2d):
            each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process may still take; very many where the system does not say."""
    if device.type == "cuda":
        # What PyTorch keeps of freed tensors is taken from the system's view, and free all the same.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return int(math.ldexp(1, 62))
