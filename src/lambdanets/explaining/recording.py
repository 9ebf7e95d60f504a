"""Recording of the lambda layers of a model in one forward pass, by hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.models.interop import AcceleratedLayer, find_replacement
from lambdanets.nn import LambdaLayer
from lambdanets.nn.operands import Operands, layer_operands
from lambdanets.ops.hardware import available_memory
from lambdanets.utils.text import did_you_mean

from .layer_maps import LayerMaps, Shares

MAX_PAIRS = 1 << 31
"""Most pairs of a query and a context element, times heads, that one layer may have."""


@dataclass(frozen=True)
class Recorded:
    """One call of a layer.

    Attributes:
        maps: The maps.
        shares: Shares of the parts of its output.
        error: max |sum A v - y| / max |y|, y the output of the layer in the model.
    """

    maps: LayerMaps
    shares: Shares
    error: float


def find_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the lambda layers of a model by name, of this package, timm, lucidrains or d-li14.

    Args:
        model: The model.
        names: Names or patterns such as "layer4.*"; None takes all.

    Raises:
        ValueError: If there are none, a name is not that of a lambda layer, or a layer is in training mode.
    """
    known: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LambdaLayer | AcceleratedLayer) or find_replacement(module) is not None:
            known[name or type(module).__name__] = module
    if not known:
        raise ValueError(
            f"{type(model).__name__} has no lambda layer, and only their maps are exact: of this package, "
            "timm, lucidrains/lambda-networks or d-li14/lambda.pytorch"
        )
    chosen = known if names is None else {}
    for pattern in names or ():
        found = {name: layer for name, layer in known.items() if fnmatchcase(name, pattern)}
        if not found:
            hint = did_you_mean(pattern, known) or f"; there are {', '.join(known)}"
            raise ValueError(f"there is no lambda layer {pattern!r}{hint}")
        chosen = chosen | found
    for name, layer in chosen.items():
        if layer.training:
            raise ValueError(
                f"the lambda layer {name} is in training mode, in which batch norms depend on the batch and "
                "no map is exact: call model.eval() first"
            )
    return chosen


@contextmanager
def recording(layers: dict[str, nn.Module], example: int) -> Iterator[list[Recorded]]:
    """Record the calls of layers inside the block, in the order of the calls.

    Args:
        layers: Layers by name.
        example: Index of the example in the batch.
    """
    found: list[Recorded] = []
    handles = []
    try:
        for name, layer in layers.items():
            hook = _hook(name, _operands_function(layer), example, found)
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _operands_function(layer: nn.Module) -> Callable[..., Operands]:
    """Return the function from the arguments of a layer's call to its operands."""
    if isinstance(layer, LambdaLayer):
        return lambda *args, **options: layer_operands(layer, *args, **options)
    if not isinstance(layer, AcceleratedLayer):
        replacement = find_replacement(layer)
        assert replacement is not None
        reason = replacement.unsupported_reason(layer)
        if reason is not None:
            raise ValueError(f"a lambda layer cannot be read: {reason}")
        layer = replacement(layer)
    return layer.operands


def _hook(
    name: str, operands_of: Callable[..., Operands], example: int, found: list[Recorded]
) -> Callable[..., None]:
    """Return the hook that records a layer's calls; those after the first have their number in the name."""
    calls = 0

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        nonlocal calls
        calls += 1
        label = name if calls == 1 else f"{name} (call {calls})"
        y = output[0] if isinstance(output, tuple) else output
        operands = operands_of(*args, **options)
        if operands.q.is_meta:
            raise ValueError("a model on the meta device has no values to show: move it to another device")
        if not -len(operands.q) <= example < len(operands.q):
            raise ValueError(f"there is no example {example} in a batch of {len(operands.q)}")
        _check_size(label, operands)
        maps = LayerMaps(label, operands, example)
        own, shares = maps.output()
        found.append(Recorded(maps, shares, _error(label, own, y, operands, example)))

    return record


def _check_size(name: str, operands: Operands) -> None:
    """Raise ValueError if the maps of a layer take too long or too much memory."""
    _, heads, queries, _ = operands.q.shape
    context = operands.v.shape[1]
    grid = "x".join(map(str, operands.context.grid))
    remedy = "give a smaller input, or name other layers"
    if heads * queries * context > MAX_PAIRS:
        raise ValueError(
            f"the maps of {name} would have {heads} x {queries:,} x {context:,} weights on its grid of "
            f"{grid}, and at most {MAX_PAIRS:,} are summed: {remedy}"
        )
    parts = [operands.q, operands.v] + [x for x in (operands.k, operands.e) if x is not None]
    needed = 2 * sum(math.prod(x.shape[1:]) * max(4, x.element_size()) for x in parts)
    limit = available_memory(operands.q.device.type)
    if limit is not None and needed > limit:
        raise MemoryError(
            f"the maps of {name} on its grid of {grid} need {needed:,} bytes, and {limit:,} are available: "
            f"{remedy}"
        )


def _error(name: str, own: Tensor, y: Tensor, operands: Operands, example: int) -> float:
    """Return the largest difference of the maps' output from the layer's, as a fraction of its largest value.

    Args:
        name: Name of the layer.
        own: The sum of the maps times the values, `[h, n, v]`.
        y: The layer's output `[b, dim_out, *grid]`.
        operands: The call's operands.
        example: Index of the example.

    Raises:
        ValueError: If the layer's output is not finite.
    """
    # `finish` serves the whole batch: the rows of other examples are not read.
    batch = own.to(operands.q.dtype)[None].expand(len(operands.q), *own.shape)
    accumulator = torch.promote_types(y.dtype, torch.float32)
    expected = y[example].to(accumulator).flatten(1)
    found = operands.finish(batch)[example].to(accumulator).flatten(1)
    if operands.undefined is not None:
        defined = ~operands.undefined[example]
        expected, found = expected[:, defined], found[:, defined]
    if not expected.numel():
        return 0.0
    if not bool(expected.isfinite().all()):
        raise ValueError(
            f"the output of {name} has NaN or infinite values, for which there is no map: check the input "
            "and the weights, and use float32 instead of float16"
        )
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
