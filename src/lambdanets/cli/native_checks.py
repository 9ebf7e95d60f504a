"""Comparisons of the native CPU kernel with the definition, for `lambdanets native`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from lambdanets.ops import GlobalContext, LocalContext, lambda_layer
from lambdanets.ops.context import RelativeContext
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import step
from lambdanets.ops.projection import project
from lambdanets.ops.recurrent import Recurrence, recurrent_step

# Relative errors of a result, by dtype.
LARGEST_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Check:
    """A comparison of a part of the library with its definition, output and gradients if it has any.

    Args:
        name: Name for the user.
        function: The part, as a function of the inputs.
        definition: The same function by its definition, which is computed in float64.
        shapes: Shapes of the inputs, by name.
        dtype: Dtype of the inputs.
    """

    name: str
    function: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float32

    def errors(self) -> dict[str, float]:
        """Return the relative errors of the output and of the gradients, by name."""
        generator = torch.Generator().manual_seed(0)
        inputs = {name: torch.randn(s, generator=generator) for name, s in self.shapes.items()}
        leaves = {name: x.to(self.dtype).requires_grad_() for name, x in inputs.items()}
        doubles = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
        y, exact = self.function(**leaves), self.definition(**doubles)
        names, found, correct = ["y"], [y], [exact]
        if y.requires_grad:
            upstream = torch.randn(y.shape, generator=generator).to(self.dtype)
            names += [f"d{name}" for name in leaves]
            found += torch.autograd.grad(y, list(leaves.values()), upstream)
            correct += torch.autograd.grad(exact, list(doubles.values()), upstream.double())
        return {
            name: float(((x - right).norm() / right.norm()).detach())
            for name, x, right in zip(names, found, correct, strict=True)
        }

    @property
    def largest_error(self) -> float:
        """The largest relative error of a correct result."""
        return LARGEST_ERRORS[self.dtype]


def _layer_check(name: str, context: RelativeContext, dtype: torch.dtype = torch.float32) -> Check:
    """Return the check of the whole operator, content and positions, in one context."""
    n = context.num_queries
    shapes = {"q": (2, 4, n, 16), "k": (2, n, 16, 1), "v": (2, n, 32, 1), "e": (*context.table_shape, 16, 1)}
    function, definition = (
        partial(lambda_layer, context=context, kernel=kernel) for kernel in (native.NAME, "reference")
    )
    return Check(name, function, definition, shapes, dtype)


def _projections(x: Tensor, wq: Tensor, wv: Tensor) -> Tensor:
    """Return two projections of images by the library, concatenated."""
    return torch.cat(project(x, [wq, wv]), dim=1)


def _convolution(x: Tensor, wq: Tensor, wv: Tensor) -> Tensor:
    """Return `_projections` by PyTorch."""
    return conv2d(x, torch.cat([wq, wv]))


def _native_step(q: Tensor, k: Tensor, v: Tensor, e: Tensor, summary: Tensor, values: Tensor) -> Tensor:
    """Return the output of a causal step by the library and the content lambda after it, concatenated."""
    state = torch.zeros_like(k, dtype=torch.float64), summary, values
    with torch.no_grad():
        y, after = step.output(q, k, v, e, state, decay=None, dilation=1, normalize="softmax")
    return _joined(y, after[1])


def _step(q: Tensor, k: Tensor, v: Tensor, e: Tensor, summary: Tensor, values: Tensor) -> Tensor:
    """Return `_native_step` by PyTorch, whose operators serve tensors with gradients."""
    state = Recurrence(torch.zeros_like(k, dtype=torch.float64), summary, values)
    y, after = recurrent_step(q, k, v, e, state)
    return _joined(y, after.summary)


def _joined(y: Tensor, summary: Tensor | None) -> Tensor:
    """Return output and content lambda of a step as one tensor."""
    assert summary is not None
    return torch.cat([y.flatten(1), summary.flatten(1)], dim=1)


CHECKS = [
    _layer_check("global, float32", GlobalContext((14, 14))),
    _layer_check("local window, float32", LocalContext((14, 14), (7, 7))),
    _layer_check("causal, float32", GlobalContext((100,), causal=True)),
    _layer_check("global, bfloat16", GlobalContext((14, 14)), torch.bfloat16),
    Check(
        "projections, float32",
        _projections,
        _convolution,
        {"x": (2, 48, 14, 14), "wq": (64, 48, 1, 1), "wv": (32, 48, 1, 1)},
    ),
    Check(
        "step, float32",
        _native_step,
        _step,
        {
            "q": (2, 4, 16),
            "k": (2, 1, 16, 1),
            "v": (2, 32, 1),
            "e": (64, 16, 1),
            "summary": (2, 1, 16, 32, 1),
            "values": (2, 63, 32, 1),
        },
    ),
]
