"""The native library with inputs and circumstances that are legal and unusual.

Views: offsets, expanded and overlapping memory, strides beyond 32 bits. Circumstances: another number of
threads in each pass, a signal during a call.
"""

import mmap
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import Case
from lambdanets.ops import Problem, lambda_layer
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import causal_content
from preloaded import run_preloaded

MISSING = native.library.unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"the native kernel: {MISSING}")

CASES = [
    Case(name="global", grid=(9, 13), num_heads=4, dim_k=16, dim_v=32),
    Case(name="local", grid=(14, 14), scope=(7, 7), num_heads=3, dim_k=10, dim_v=20),
    Case(name="local-u", grid=(9, 12), scope=(5, 6), num_heads=2, dim_k=8, dim_v=20, dim_u=2),
    Case(name="causal", grid=(90,), num_heads=4, dim_k=16, dim_v=20, causal=True),
    Case(name="causal-u", grid=(40,), num_heads=2, dim_k=5, dim_v=35, dim_u=2, causal=True, padded=True),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def results(case: Case, inputs: dict[str, Tensor], g: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of the given views."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = case.call(lambda_layer, leaves, kernel="native")
    y.backward(g)
    return {"y": y.detach()} | {name: x.grad for name, x in leaves.items() if x.grad is not None}


def shifted(x: Tensor, offset: int) -> Tensor:
    """A copy of x between NaN, whose first element is `offset` elements after the start of its memory."""
    buffer = torch.full((x.numel() + offset + 64,), torch.nan, dtype=x.dtype)
    return buffer[offset : offset + x.numel()].view(x.shape).copy_(x)


def overlapping(x: Tensor) -> Tensor:
    """A view in x's shape in which different elements are one in memory."""
    strides = [1] * x.ndim
    strides[-2] = 2
    return torch.randn(2 * sum(x.shape), dtype=torch.float64).to(x.dtype).as_strided(x.shape, strides)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "offset 1": lambda x: shifted(x, 1),
    "offset 3": lambda x: shifted(x, 3),
    "offset 13": lambda x: shifted(x, 13),
    "expanded 0": lambda x: x[:1].expand(x.shape),
    "expanded 1": lambda x: x[:, :1].expand(x.shape),
    "expanded 2": lambda x: x[:, :, :1].expand(x.shape),
    "expanded 3": lambda x: x[..., :1].expand(x.shape),
    "one element": lambda x: x.flatten()[0].expand(x.shape),
    "overlapping": overlapping,
    "every second": lambda x: x.repeat_interleave(2, -1)[..., 1::2],
    "reversed axes": lambda x: shifted(x.permute(*reversed(range(x.ndim))), 1).permute(
        *reversed(range(x.ndim))
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@dtypes
@cases
def test_views_give_the_results_of_their_copies(case: Case, dtype: torch.dtype, view: str) -> None:
    given = {name: VIEWS[view](x) for name, x in case.inputs(dtype).items()}
    g = VIEWS[view](case.upstream(dtype))
    found = results(case, given, g)
    copies = {name: x.clone(memory_format=torch.contiguous_format) for name, x in given.items()}
    expected = results(case, copies, g.clone(memory_format=torch.contiguous_format))
    # Equal keys have gradients of zero: differences of terms of the size of the other results.
    bound = 16 * torch.finfo(dtype).eps
    size = max(float(x.abs().max()) for x in expected.values())
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=bound, atol=bound * size, msg=name)


@cases
def test_the_number_of_threads_may_change_between_passes_and_calls(case: Case, threads: None) -> None:
    inputs, g = case.inputs(torch.float32), case.upstream(torch.float32)
    torch.set_num_threads(1)
    expected = results(case, inputs, g)
    for forward, backward in ((3, 1), (1, 4), (2, 3)):
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        torch.set_num_threads(forward)
        y = case.call(lambda_layer, leaves, kernel="native")
        torch.set_num_threads(backward)
        y.backward(g)
        assert torch.equal(y, expected["y"])
        assert all(torch.equal(x.grad, expected[name]) for name, x in leaves.items() if x.grad is not None)


INTERRUPTED = """
import os, signal, sys, threading, time
import torch
from lambdanets.ops import GlobalContext, lambda_layer

def inputs(grid, **sizes):
    n = grid[0] if len(grid) == 1 else grid[0] * grid[1]
    table = [2 * size - 1 for size in grid]
    q, k, v = torch.randn(1, 4, n, 16), torch.randn(1, n, 16, 1), torch.randn(1, n, 64, 1)
    return [x.requires_grad_() for x in (q, k, v, torch.randn(*table, 16, 1))]

def call(tensors, grid, kernel):
    return lambda_layer(*tensors, context=GlobalContext(grid, causal=len(grid) == 1), kernel=kernel)

backward, grid = sys.argv[1] == "backward", eval(sys.argv[2])
tensors = inputs(grid)
function = "gradients" if backward else "output"
y = call(tensors, grid, "native") if backward else None
state = []

def interrupt():
    while "in" not in state:
        time.sleep(0.001)
    time.sleep(0.02)
    state.append("signal")
    os.kill(os.getpid(), signal.SIGINT)

from lambdanets.ops.kernels.native import library
loaded, name = library.load(), f"lambdanets_position_{function}"
native_call = getattr(loaded, name)

class Watched:
    def __getattr__(self, other):
        return watched if other == name else getattr(loaded, other)

def watched(argument):
    state.append("in")
    # The call ends here, and Python runs its handler before the next line.
    result = native_call(argument)
    state.append("out")
    return result

library._find = lambda found=library._find(): found._replace(library=Watched())
threading.Thread(target=interrupt, daemon=True).start()
try:
    y.sum().backward() if backward else call(tensors, grid, "native")
    sys.exit("no KeyboardInterrupt")
except KeyboardInterrupt:
    pass
assert state[:2] == ["in", "signal"], state
small = inputs((7,) * len(grid))
found, exact = (call(small, (7,) * len(grid), kernel) for kernel in ("native", "reference"))
torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
print("right", flush=True)
"""


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_interrupt_during_a_call_ends_it_and_the_next_is_right(direction: str) -> None:
    done = run_preloaded("-c", INTERRUPTED, direction, "(96, 96)", env=os.environ)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


FAR = 2**31 + 5
MAP_NORESERVE = 0x4000  # of Linux, in Python's module since 3.13


def reserved(elements: int) -> Tensor:
    """Zeros of float32 in reserved memory: the system provides the pages that are written alone."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, 4 * elements, flags=flags), dtype=torch.float32)


def far_views(tensors: dict[str, Tensor], axis: int) -> dict[str, Tensor]:
    """Copies of tensors in one memory: neighbours on an axis are more than 2**31 elements apart."""
    memory = reserved(2 * FAR)
    views, start = {}, 0
    for name, x in tensors.items():
        far = x.shape[axis:][:1] == (2,)
        shape = [size for i, size in enumerate(x.shape) if not (far and i == axis)]
        strides = list(torch.empty(shape, device="meta").stride())
        if far:
            strides.insert(axis, FAR)
        views[name] = memory.as_strided(x.shape, strides, start).copy_(x)
        start += x.numel() + 7
    return views


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["global", "local", "causal"])
def test_strides_beyond_32_bits(name: str, axis: int) -> None:
    grids = {"global": (2, 5), "local": (2, 5), "causal": (2,)}
    case = Case(
        name=name, grid=grids[name], scope=(2, 2) if name == "local" else None, causal=name == "causal",
        batch=2, num_heads=2, dim_k=2, dim_v=2, dim_u=2,
    )  # fmt: skip
    inputs, g = case.inputs(torch.float32), case.upstream(torch.float32)
    expected = results(case, inputs, g)
    far = far_views(inputs | {"g": g, "y": g}, axis)
    assert max(far["q"].stride()) == FAR or axis == 2
    y, g = far.pop("y"), far.pop("g")
    found = results(case, far, g)
    for key, x in expected.items():
        torch.testing.assert_close(found[key], x, rtol=1e-5, atol=1e-5, msg=key)
    if name == "causal":
        causal_content.output(far["q"], far["k"], far["v"], None, None, None, None, y)
        exact = case.call(lambda_layer, {x: inputs[x] for x in "qkv"})
    else:
        problem = Problem.of(*(far[x] for x in "qkve"), case.context(), False)
        native.output(far["q"], far["v"], far["e"], problem, y)
        exact = torch.zeros_like(y)
        native.output(*(inputs[x] for x in "qve"), problem, exact)
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)


def test_more_than_2_to_the_31_elements() -> None:
    """Nearly all elements of the gradient are zeros in memory that is reserved."""
    case = Case(
        name="many", grid=(2**21,), context_grid=(2,), num_heads=4, dim_k=1, dim_v=257, batch=1, content=False
    )
    inputs = case.inputs(torch.float32)
    assert 4 * case.n * 257 > 2**31
    g = reserved(4 * case.n * 257).view(1, 4, case.n, 257)
    places = [(0, 0, 0), (1, 77, 256), (3, 2**20, 5), (3, case.n - 1, 0), (3, case.n - 1, 256)]
    exact = torch.zeros(1, 2, 257, 1)
    for head, n, v in places:
        g[0, head, n, v] = 1
        # Element m has the offset m - n, which is the index m - n + (number of queries - 1) in the table.
        for m in range(2):
            entry = inputs["e"][m - n + case.n - 1, 0, 0]
            exact[0, m, v, 0] += inputs["q"][0, head, n, 0] * entry
    problem = Problem.of(*(inputs[x] for x in "qkve"), case.context(), False)
    _, dv, _ = native.gradients(g, *(inputs[x] for x in "qve"), problem, (False, True, False))
    assert dv is not None
    torch.testing.assert_close(dv, exact)
