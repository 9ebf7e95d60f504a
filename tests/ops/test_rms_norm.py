"""RMS norms by the native library, and the modules that use it, against the formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from closeness import assert_close, assert_close_by_name
from lambdanets.nn.pointwise import MIN_POSITIONS, ChannelRMSNorm, Linear, RMSNorm
from lambdanets.ops.kernels import native
from lambdanets.ops.rms_norm import is_native, rms_norm

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")
SHAPES = [(1, 2), (3, 2), (1, 7), (5, 3, 16), (2, 130, 17), (300, 33), (700, 128), (2, 3, 0, 8), (0, 5)]
EPSILON = 1e-5


def by_formula(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def make(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return a tensor, a weight and a gradient of the output, in float64."""
    x, g = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    return {"x": x, "weight": torch.randn(shape[-1], dtype=torch.float64), "g": g}


def results(norm: Callable[..., Tensor], given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return output and gradients in a dtype."""
    x, weight = (given[name].to(dtype).requires_grad_() for name in ("x", "weight"))
    y = norm(x, weight)
    dx, d_weight = torch.autograd.grad(y, (x, weight), given["g"].to(dtype))
    return {"y": y, "dx": dx, "d_weight": d_weight}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_and_its_gradients_equal_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = make(shape)
    exact = results(by_formula, given, torch.float64)
    plain = results(by_formula, given, dtype) if dtype != torch.float64 else None
    assert is_native(given["x"].to(dtype), given["weight"].to(dtype))
    assert_close_by_name(results(lambda x, w: rms_norm(x, w, EPSILON), given, dtype), exact, plain)


def test_large_and_small_values_do_not_overflow_more_than_pytorch() -> None:
    weight = torch.ones(40)
    for scale in (1e-30, 1e-3, 1e15):
        x = scale * torch.randn(3, 40)
        torch.testing.assert_close(rms_norm(x, weight, EPSILON), F.rms_norm(x, (40,), weight, EPSILON))


@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 5)], ids=str)
def test_derivatives_of_first_and_second_order(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, EPSILON)

    assert torch.autograd.gradcheck(norm, (x, weight), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(norm, (x, weight))


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    given, found = make((1000, 70)), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(lambda x, w: rms_norm(x, w, EPSILON), given, torch.float32))
    for other in found[1:]:
        assert all(torch.equal(other[name], found[0][name]) for name in other)


def test_only_the_gradients_that_are_needed() -> None:
    given = make((200, 9))
    for needed in ("x", "weight"):
        tensors = {name: given[name].clone() for name in ("x", "weight")}
        tensors[needed].requires_grad_()
        (gradient,) = torch.autograd.grad(
            rms_norm(*tensors.values(), EPSILON), tensors[needed], given["g"].mT.contiguous().mT
        )
        exact = results(by_formula, given, torch.float64)
        assert_close(gradient, exact[{"x": "dx", "weight": "d_weight"}[needed]])


OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "strided": lambda x, w: rms_norm(x.mT.contiguous().mT, w, EPSILON),
    "half": lambda x, w: rms_norm(x.bfloat16(), w.bfloat16(), EPSILON).double(),
    "vmap": lambda x, w: torch.vmap(lambda row: rms_norm(row, w, EPSILON))(x),
    "functional-gradient": lambda x, w: torch.func.vjp(lambda x: rms_norm(x, w, EPSILON), x)[0],
    "forward-mode": lambda x, w: torch.func.jvp(lambda x: rms_norm(x, w, EPSILON), (x,), (x,))[0],
    "compiled": torch.compile(lambda x, w: rms_norm(x, w, EPSILON), backend="eager", fullgraph=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pytorch_computes_what_the_library_does_not_serve(name: str) -> None:
    given = make((6, 8))
    y = OTHERS[name](given["x"], given["weight"])
    tolerance = 2e-2 if name == "half" else 1e-12
    torch.testing.assert_close(y, by_formula(given["x"], given["weight"]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("positions", [1, MIN_POSITIONS - 1, MIN_POSITIONS, 500])
@pytest.mark.parametrize(
    ("module", "plain"),
    [
        (RMSNorm(24, eps=EPSILON), lambda x, m: by_formula(x, m.weight)),
        (Linear(24, 10, bias=False), lambda x, m: torch.einsum("oi,...i->...o", m.weight, x)),
        (Linear(24, 10), lambda x, m: torch.einsum("oi,...i->...o", m.weight, x) + m.bias),
    ],
    ids=["norm", "linear", "linear-with-bias"],
)
def test_modules_equal_their_formulas_for_any_number_of_positions(
    module: nn.Module, plain: Callable[..., Tensor], positions: int
) -> None:
    module = module.double()
    nn.init.normal_(module.weight)
    x = torch.randn(positions, 24, dtype=torch.float64, requires_grad=True)

    def outcome(y: Tensor) -> dict[str, Tensor]:
        dx, d_weight = torch.autograd.grad(y.square().sum(), (x, module.weight))
        return {"y": y, "dx": dx, "d_weight": d_weight}

    assert_close_by_name(outcome(module(x)), outcome(plain(x, module)))


def test_axes_before_the_channels_are_kept() -> None:
    x = torch.randn(3, 70, 24)
    assert Linear(24, 10, bias=False)(x).shape == (3, 70, 10)
    assert Linear(24, 10, bias=False)(x[0, 0]).shape == (10,)
    channels_first = x.mT
    y = ChannelRMSNorm(24, eps=EPSILON)(channels_first)
    torch.testing.assert_close(y, by_formula(x, torch.ones(24)).mT)


@pytest.mark.parametrize("kind", ["autocast", "trace", "export", "fx"])
def test_graphs_and_autocast(kind: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = RMSNorm(8, eps=EPSILON), Linear(8, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(x))

    module, x = Both(), torch.randn(200, 8)
    wanted: Any = module(x)
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), wanted, rtol=3e-2, atol=3e-2)
        return
    graph = {
        "trace": lambda: torch.jit.trace(module, x),
        "export": lambda: torch.export.export(module, (x,)).module(),
        "fx": lambda: torch.fx.symbolic_trace(module),
    }[kind]()
    torch.testing.assert_close(graph(x), wanted)
    other = torch.randn(200, 8)
    torch.testing.assert_close(graph(other), module(other))
