"""Summary of a network: parameters and multiply-adds per stage, and the kernels of its lambda layers.

The network runs on fake tensors, without memory or arithmetic, so any model takes a second or two.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lambdanets.nn import LambdaLayer
from lambdanets.ops import Plan, Problem, plan
from lambdanets.ops.context import default_centre


@dataclass(frozen=True, kw_only=True)
class Part:
    """Stem, stage or head of a network.

    Attributes:
        name: Name of the part in the network.
        resolution: Height and width of its output, empty if the output has neither.
        channels: Channels of its output.
        num_blocks: Number of blocks of a stage, 0 for other parts.
        lambda_blocks: Blocks with a lambda layer, counted from 0 as in their names.
        parameters: Number of parameters.
        macs: Multiply-adds for one image.
    """

    name: str
    resolution: tuple[int, ...]
    channels: int
    num_blocks: int
    lambda_blocks: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of a network.

    Attributes:
        image: Channels, height and width of the images.
        parts: Stem, stages and head, in order.
        parameters: Number of parameters of the network.
        macs: Multiply-adds for one image.
        plans: Plan of each lambda layer, by its name.
    """

    image: tuple[int, ...]
    parts: tuple[Part, ...]
    parameters: int
    macs: int
    plans: dict[str, Plan]


def summarise(
    model: nn.Module,
    size: tuple[int, int] | None = None,
    *,
    batch: int = 1,
    train: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    step: int | None = None,
) -> Summary:
    """Summarise an image network that was built on the meta device.

    Multiply-adds are half of the operations that `torch.utils.flop_counter` counts for the kernels that the
    plans select. The lambda layers of the network are set to these kernels.

    Args:
        model: The network, on the meta device.
        size: Height and width of the images. Default: those of its `pretrained_cfg`.
        batch: Batch size that the kernels are planned for.
        train: Whether the kernels are planned for training.
        dtype: dtype that the kernels are planned for.
        device: Device type that the kernels are planned for.
        step: Batch size of a forward pass in training mode that is run too, to check that the network can
            train on the size; None for no such pass.

    Returns:
        The summary.
    """
    cfg: Any = model.pretrained_cfg
    channels, *own_size = cfg["input_size"]
    image = (channels, *(size or own_size))
    model.eval()
    plans: dict[str, Plan] = {}
    counter = FlopCounterMode(display=False)
    output_shapes: dict[str, torch.Size] = {}

    def select_kernel(name: str, layer: Any, args: tuple[Tensor, ...]) -> None:
        plans[name] = plan(_problem(layer, args[0], batch=batch, train=train, dtype=dtype, device=device))
        layer.kernel = plans[name].kernel or "auto"

    def record_output_shape(name: str, _: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor):
            output_shapes[name] = output.shape

    for name, module in model.named_modules():
        if isinstance(module, LambdaLayer):
            module.register_forward_pre_hook(partial(select_kernel, name))
    for name, module in model.named_children():
        module.register_forward_hook(partial(record_output_shape, name))
    # Fake tensors rather than meta tensors, since code that reads a tensor's device needs a real one: that of
    # the plans, whose kernels refuse tensors of another. This machine need not have it.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device=device)
        with counter:
            model(torch.empty(1, *image, device=device))
        if step is not None:
            model.train()(torch.empty(step, *image, device=device))

    counts = counter.get_flop_counts()  # keys are "Global" and "Class.path.of.module"
    flops = {name.partition(".")[2]: sum(each.values()) for name, each in counts.items()}
    parts = tuple(_part(name, members, output_shapes, flops) for name, members in _sections(model))
    return Summary(
        image=image,
        parts=parts,
        # Not the sum over parts: a network may have parameters of its own, such as a class token.
        parameters=sum(each.numel() for each in model.parameters()),
        macs=sum(counts["Global"].values()) // 2,
        plans=plans,
    )


Members = dict[str, nn.Module]


def _sections(model: nn.Module) -> list[tuple[str, Members]]:
    """Group the children of a network into stem, stages (sequences named in `feature_info`) and head."""
    taps = {str(each["module"]) for each in getattr(model, "feature_info", [])}
    children = dict(model.named_children())
    stages = [name for name, child in children.items() if name in taps and isinstance(child, nn.Sequential)]
    if not stages:
        return [(name, {name: child}) for name, child in children.items()]
    names = list(children)
    first, last = names.index(stages[0]), names.index(stages[-1])
    sections: list[tuple[str, Members]] = [("stem", {name: children[name] for name in names[:first]})]
    sections += [(name, {name: children[name]}) for name in stages]
    return [*sections, ("head", {name: children[name] for name in names[last + 1 :]})]


def _part(name: str, members: Members, output_shapes: dict[str, torch.Size], flops: dict[str, int]) -> Part:
    shape = next(
        (output_shapes[member] for member in reversed(members) if member in output_shapes), torch.Size()
    )
    blocks = list(members[name].children()) if name in members else []
    return Part(
        name=name,
        resolution=tuple(shape[2:]),
        channels=shape[1] if len(shape) > 1 else 0,
        num_blocks=len(blocks),
        lambda_blocks=tuple(
            number
            for number, block in enumerate(blocks)
            if any(isinstance(inner, LambdaLayer) for inner in block.modules())
        ),
        parameters=sum(each.numel() for member in members.values() for each in member.parameters()),
        macs=sum(flops.get(member, 0) for member in members) // 2,
    )


def _problem(
    layer: LambdaLayer, x: Tensor, *, batch: int, train: bool, dtype: torch.dtype, device: str
) -> Problem:
    position = layer.positions is not None
    scope = tuple(layer.positions.shape[:-2]) if layer.positions is not None else None
    return Problem(
        grid=tuple(x.shape[2:]),
        context_grid=tuple(x.shape[2:]),
        scope=scope,
        dilation=layer.dilation if position else None,
        centre=default_centre(scope, layer.causal) if scope else None,
        num_heads=layer.num_heads,
        dim_k=layer.dim_k,
        dim_v=layer.dim_v,
        dim_u=layer.dim_u,
        batch=batch,
        content=layer.content,
        position=position,
        causal=layer.causal,
        dtype=dtype,
        device=device,
        train=train,
    )
