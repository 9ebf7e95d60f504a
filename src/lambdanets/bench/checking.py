"""Correctness before speed: nobody's time counts while the results differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.nn.lambda_layer import LambdaLayer

from .cases import Case
from .contenders import Contender, made, our_layer
from .passes import Result, inputs, prepare

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


def check(
    case: Case, contender: Contender, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float | None:
    """Compare a contender that computes the lambda layer with the definition in float64, on a crop.

    Outputs in training and inference, the gradient of the input and, for our kernels, of every parameter.

    Args:
        case: The case, of which a crop of few positions and channels is taken.
        contender: Who is checked, in float64 too.
        device: Where.
        dtype: The type of who refuses float64.

    Returns:
        The largest relative difference; None for another function, and for who refuses the crop.

    Raises:
        CheckError: It differs.
    """
    crop = case.crop()
    own = next((each for each in (torch.float64, dtype) if not contender.refuses(crop, each, device)), None)
    if contender.adopt is None or own is None:
        return None
    definition = make_layer(crop, "reference", torch.float64, device)
    given = inputs(crop, torch.float64, device)
    module = made(contender, crop, own, device)
    contender.adopt(definition, module)
    worst = 0.0
    # Inference first: training moves the running statistics of the norms.
    for which in ("eval", "train"):
        expected = prepare(definition, which, *given)()
        actual = prepare(module, which, *(each.to(own) for each in given))()
        worst = max(worst, _apart(actual, expected, isinstance(module, LambdaLayer)))
    allowed = EXACT if own == torch.float64 else ROUNDED[own]
    name = str(own).removeprefix("torch.")
    require_close(worst, allowed, contender, case, f"on a crop in {name}, against the definition")
    return worst


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


def _apart(actual: Result, expected: Result, ours: bool) -> float:
    errors = [distance(actual, expected)]
    if ours:
        errors += [difference(actual.gradients[name], each) for name, each in expected.gradients.items()]
    return max(errors)
