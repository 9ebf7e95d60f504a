"""Correctness before speed: nobody's time counts while the results differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.nn.lambda_layer import LambdaLayer

from .cases import Case
from .contenders import Contender, our_layer
from .passes import Pass, Result, inputs, prepare

# Root mean squares of the difference relative to those of the result. The crop is compared with the
# definition in float64, the case itself with our layer in its own precision, where rounding accumulates.
EXACT = 1e-10
ROUNDED = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


class CheckError(RuntimeError):
    """Two contenders that compute one function do not agree: there is nothing to race."""


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference as a fraction of that of what was expected."""
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.square().mean().sqrt()
    error = float((actual - expected).square().mean().sqrt() / (scale if scale > 0 else 1.0))
    return error if error == error else float("inf")


def distance(actual: Result, expected: Result) -> float:
    """Return the largest difference over the output and the gradients that both have under one name."""
    pairs = [(actual.output, expected.output)]
    pairs += [(actual.gradients[name], each) for name, each in expected.gradients.items() if name == "input"]
    return max(difference(*pair) for pair in pairs)


def require_close(error: float, allowed: float, contender: Contender, case: Case, what: str) -> None:
    """Stop the bench where a result is wrong.

    Raises:
        CheckError: The error exceeds what is allowed.
    """
    if not error <= allowed:
        raise CheckError(
            f"{contender.name} is wrong on {case.name} ({case}): {what}, it differs by {error:.1e} where "
            f"{allowed:.0e} is allowed. No speed is shown for a result that differs."
        )


def check(case: Case, contenders: Sequence[Contender], device: str = "cpu") -> dict[tuple[str, str], float]:
    """Compare every contender that computes the lambda layer with the definition, on a crop, in float64.

    Outputs in training and inference, the gradient of the input and, for our kernels, of every parameter.

    Args:
        case: The case, of which a crop of few positions and channels is taken.
        contenders: Who is checked; those of another function or who refuse the crop are passed over.
        device: Where.

    Returns:
        The largest relative difference of each, by name and role.

    Raises:
        CheckError: One of them differs.
    """
    crop = case.crop()
    definition = make_layer(crop, "reference", torch.float64, device)
    x, upstream = inputs(crop, torch.float64, device)
    errors: dict[tuple[str, str], float] = {}
    for contender in contenders:
        if contender.adopt is None or contender.refuses(crop):
            continue
        module = contender.build(crop).to(device, torch.float64)
        contender.adopt(definition, module)
        worst = 0.0
        # Inference first: training moves the running statistics of the norms.
        for which in ("eval", "train"):
            worst = max(worst, _compare(module, definition, which, x, upstream))
        require_close(worst, EXACT, contender, case, "on a crop in float64, against the definition")
        errors[contender.name, contender.role] = worst
    return errors


def make_layer(case: Case, kernel: str, dtype: torch.dtype, device: str, seed: int = 0) -> LambdaLayer:
    """Return our layer with random weights and random norms; fresh norms would hide what is permuted."""
    torch.manual_seed(seed)
    layer = our_layer(case, kernel)
    for norm in layer.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.register_buffer("running_mean", 0.3 * torch.randn(norm.num_features))
        norm.register_buffer("running_var", 0.5 + torch.rand(norm.num_features))
    return layer.to(device, dtype)


def _compare(module: nn.Module, definition: LambdaLayer, which: Pass, x: Tensor, upstream: Tensor) -> float:
    expected = prepare(definition, which, x, upstream)()
    actual = prepare(module, which, x, upstream)()
    errors = [distance(actual, expected)]
    if isinstance(module, LambdaLayer):
        errors += [difference(actual.gradients[name], each) for name, each in expected.gradients.items()]
    return max(errors)
