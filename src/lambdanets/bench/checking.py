"""Passes of a layer, and the comparison of their results: no layer whose results differ is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lambdanets.nn.lambda_layer import LambdaLayer

from .cases import Case
from .contenders import Contender, build_module, find_contender, our_layer
from .timing import CheckError, Pass

# Largest accepted root mean square of the difference, relative to that of the result. The crop is compared
# with the definition in float64, the case itself with our layer in its own dtype, where rounding accumulates.
EXACT = 1e-10
ROUNDED = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The output of a pass and, in training, the gradients of the input and of the parameters by name."""

    output: Tensor
    gradients: dict[str, Tensor]


def make_inputs(
    case: Case, dtype: torch.dtype, device: str, seed: int = 0, *, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a random input and a random gradient of the output, both `[b, dim, *grid]`.

    Args:
        case: The sizes.
        dtype: Dtype of both tensors.
        device: Device of both tensors.
        seed: Seed of the random numbers.
        channels_last: Whether both are in channels-last layout.
    """
    # Drawn on the device: drawing on one CPU core would take longer than the rest of a benchmark on a GPU.
    generator = torch.Generator(device).manual_seed(seed)
    x, upstream = (torch.randn(case.shape, generator=generator, device=device).to(dtype) for _ in range(2))
    if channels_last:
        x, upstream = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, upstream))
    return x, upstream


def min_bytes(module: nn.Module, which: Pass, x: Tensor) -> int:
    """Return the bytes that a pass moves at least, whatever the implementation.

    Inference reads the input and the weights and writes an output of the input's size. Training moves these
    and their gradients. Each tensor is counted once.
    """
    weights = sum(each.numel() * each.element_size() for each in module.parameters())
    return (2 if which == "train" else 1) * (2 * x.numel() * x.element_size() + weights)


def prepare(module: nn.Module, which: Pass, x: Tensor, upstream: Tensor) -> Callable[[], Result]:
    """Return a function without arguments that runs a pass of the module and returns its results.

    Gradients are returned rather than accumulated, so that every call does the same work.
    """
    if which == "eval":
        module.eval()

        def infer() -> Result:
            with torch.inference_mode():
                return Result(output=module(x), gradients={})

        return infer
    module.train()
    x = x.detach().requires_grad_()
    named = {"input": x, **dict(module.named_parameters())}

    def train() -> Result:
        y = module(x)
        found = torch.autograd.grad(y, list(named.values()), upstream)
        return Result(output=y.detach(), gradients=dict(zip(named, found, strict=True)))

    return train


@dataclass(frozen=True, kw_only=True)
class LayerJob:
    """The pass of a contender in a case, for `peak_mib`, without its weights and inputs."""

    case: Case
    name: str
    role: str
    which: Pass
    dtype: torch.dtype
    device: str
    threads: int
    channels_last: bool = False
    whole: bool = False

    def warm_up(self) -> None:
        """Run the pass on a crop of the case."""
        crop = self.case.crop()
        if not find_contender(self.name, self.role).unsupported(crop, self.dtype, self.device):
            self._prepare(crop)()

    def prepare(self) -> Callable[[], Result]:
        """Return the pass as a call."""
        return self._prepare(self.case)

    def _prepare(self, case: Case) -> Callable[[], Result]:
        contender = find_contender(self.name, self.role)
        module = build_module(contender, case, self.dtype, self.device, self.channels_last)
        tensors = make_inputs(case, self.dtype, self.device, channels_last=self.channels_last)
        return prepare(module, self.which, *tensors)


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference over that of `expected`; inf where shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.square().mean().sqrt()
    error = float((actual - expected).square().mean().sqrt() / (scale if scale > 0 else 1.0))
    return error if error == error else float("inf")


def max_difference(actual: Result, expected: Result, *, parameters: bool = False) -> float:
    """Return the largest difference of the outputs and of the gradients of the input.

    Args:
        actual: One result.
        expected: Another, with at least the same gradients.
        parameters: Whether the gradients of all parameters are compared, too.
    """
    names = [name for name in expected.gradients if parameters or name == "input"]
    pairs = [(actual.output, expected.output)]
    pairs += [(actual.gradients[name], expected.gradients[name]) for name in names]
    return max(difference(*pair) for pair in pairs)


def require_close(error: float, allowed: float, contender: Contender, case: Case, comparison: str) -> None:
    """End the benchmark where a result is wrong.

    Raises:
        CheckError: The error exceeds the allowed one.
    """
    if not error <= allowed:
        raise CheckError(
            f"{contender.name} is wrong on {case.name} ({case}): {comparison}, it differs by {error:.1e} "
            f"where {allowed:.0e} is allowed. No speed is shown for a result that differs."
        )


def check(
    case: Case, contender: Contender, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float | None:
    """Compare a contender that computes the lambda layer with the definition in float64, on a crop.

    Outputs in training and inference, the gradient of the input and, for our kernels, of every parameter are
    compared.

    Args:
        case: The case, of which a crop with few positions and channels is taken.
        contender: The contender, run in float64 where it supports that.
        device: Device of the comparison.
        dtype: Dtype of a contender that does not support float64.

    Returns:
        The largest relative difference; None if the contender computes another function or does not support
        the crop.

    Raises:
        CheckError: The difference is larger than allowed.
    """
    crop = case.crop()
    supported = [each for each in (torch.float64, dtype) if not contender.unsupported(crop, each, device)]
    if contender.copy_weights_from is None or not supported:
        return None
    own = supported[0]
    definition = make_layer(crop, "reference", torch.float64, device)
    tensors = make_inputs(crop, torch.float64, device)
    module = build_module(contender, crop, own, device)
    contender.copy_weights_from(definition, module)
    worst = 0.0
    # Inference first: training updates the running statistics of the norms.
    for which in ("eval", "train"):
        expected = prepare(definition, which, *tensors)()
        actual = prepare(module, which, *(each.to(own) for each in tensors))()
        parameters = isinstance(module, LambdaLayer)
        worst = max(worst, max_difference(actual, expected, parameters=parameters))
    allowed = EXACT if own == torch.float64 else ROUNDED[own]
    name = str(own).removeprefix("torch.")
    require_close(worst, allowed, contender, case, f"on a crop in {name}, against the definition")
    return worst


def make_layer(case: Case, kernel: str, dtype: torch.dtype, device: str, seed: int = 0) -> LambdaLayer:
    """Return our layer with random weights, and random parameters and statistics of norms.

    Norms with their defaults would treat all channels alike, and so hide an error in the order of channels.
    """
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
