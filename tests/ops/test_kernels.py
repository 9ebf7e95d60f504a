"""Every kernel against the definition: forward, and gradients by name under a random upstream gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import BY_NAME, CASES, Case
from closeness import assert_close_by_name
from lambdanets.ops import KERNELS, Problem, lambda_layer
from lambdanets.ops import content as content_module
from oracles import lambda_layer_einsum
from running import INTERPRETED, RUNNING

# The interpreter runs the tests for Triton's kernel alone.
ALL = ["triton"] if INTERPRETED else list(KERNELS)
FAST = [name for name in ALL if name != "reference"]
LOW = [torch.float32, torch.bfloat16, torch.float16]
SAMPLED = [
    BY_NAME[name]
    for name in (
        "global-2d",
        "global-2d-row",
        "global-u4",
        "global-cross-2d",
        "global-dense-2d",
        "global-padded",
        "global-content-only",
        "global-position-only",
        "local-1d-even",
        "local-1d-larger",
        "local-2d-rectangle",
        "local-3d",
        "local-u4-2d",
        "local-dilated-2d",
        "local-padded",
        "causal",
        "causal-local-even",
        "causal-padded",
        "masked",
        "masked-padded",
    )
]
# Each case in each dtype. In the interpreter, which is slow: each case in one dtype, each dtype in a third.
LOW_CASES = [
    pytest.param(case, dtype, id=f"{case}-{dtype}")
    for i, case in enumerate(SAMPLED)
    for j, dtype in enumerate(LOW)
    if not INTERPRETED or (i + j) % len(LOW) == 0
]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU convolutions round float32 to TF32 by default; these tests are about float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def unsupported_reasons(name: str, case: Case, inputs: dict[str, Tensor]) -> list[str]:
    """Return the reasons for which a kernel does not support a case."""
    e = inputs.get("e")
    problem = Problem.of(inputs["q"], inputs["k"], inputs["v"], e, case.context(), case.content, True)
    return KERNELS[name].unsupported(problem)


def backward(
    call: Callable[[dict[str, Tensor]], Tensor], case: Case, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The output and the gradient of every input, by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = call(leaves)
    upstream = case.upstream(y.dtype, str(y.device))
    names = [name for name in leaves if name != "k" or case.content]
    gradients = torch.autograd.grad(y, [leaves[name] for name in names], upstream)
    return {"y": y.detach()} | {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}


def by_kernel(name: str, case: Case) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda inputs: case.call(lambda_layer, inputs, kernel=name)


@devices
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_definition_or_says_why_not(case: Case, name: str, device: str) -> None:
    inputs = case.inputs(device=device)
    reasons = unsupported_reasons(name, case, inputs)
    if reasons:
        assert all(reason.strip() for reason in reasons)
        with pytest.raises(ValueError, match=name) as refused:
            by_kernel(name, case)(inputs)
        assert all(reason in str(refused.value) for reason in reasons)
        return
    exact = backward(by_kernel("reference", case), case, inputs)
    assert_close_by_name(backward(by_kernel(name, case), case, inputs), exact)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_the_definition_equal_those_of_the_plain_einsum(case: Case) -> None:
    inputs = case.inputs()
    exact = backward(lambda leaves: case.call_oracle(lambda_layer_einsum, leaves), case, inputs)
    assert_close_by_name(backward(by_kernel("reference", case), case, inputs), exact)


@devices
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("case", "dtype"), LOW_CASES)
def test_low_precision_is_at_most_twice_as_wrong_as_the_plain_einsum(
    case: Case, name: str, dtype: torch.dtype, device: str
) -> None:
    inputs = case.inputs(dtype, device)
    if unsupported_reasons(name, case, inputs):
        return
    # the truth starts from the rounded inputs: rounding them is not the kernel's error
    truth = {key: x.double() for key, x in inputs.items()}
    exact = backward(lambda leaves: case.call_oracle(lambda_layer_einsum, leaves), case, truth)
    plain = backward(lambda leaves: case.call_oracle(lambda_layer_einsum, leaves), case, inputs)
    found = backward(by_kernel(name, case), case, inputs)
    assert {x.dtype for x in found.values()} == {dtype}
    assert_close_by_name(found, exact, plain)


@pytest.mark.parametrize("name", [*FAST, "auto"])
def test_half_precision_serves_contexts_longer_than_its_weights_can_represent(name: str) -> None:
    """302,300 equal weights lie between 55 and 56 times the smallest float16, which differ by a percent."""
    m, dim_k, dim_v = 302_300, 16, 16
    case = Case(name="long", grid=(1,), position=False, batch=1, num_heads=1, dim_k=dim_k, dim_v=dim_v)
    inputs = {
        "q": torch.full((1, 1, 1, dim_k), 1 / dim_k, dtype=torch.float16),
        "k": torch.zeros(1, m, dim_k, 1, dtype=torch.float16),
        "v": torch.ones(1, m, dim_v, 1, dtype=torch.float16),
    }
    if name != "auto" and unsupported_reasons(name, case, inputs):
        return
    exact = torch.ones(1, 1, 1, dim_v, dtype=torch.float64)
    found = case.call(lambda_layer, inputs, kernel=name)
    assert_close_by_name({"y": found}, {"y": exact}, {"y": exact.half()})


def spread(keys: Tensor, order: str) -> Tensor:
    """Return keys over a range whose exponentials no dtype can represent, in this order along the context."""
    if order == "random":
        return 1e3 * keys
    return keys + torch.linspace(-2e3, 2e3, keys.shape[1], dtype=keys.dtype)[:, None, None] * (-1) ** (
        order == "falling"
    )


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "case_name", ["causal-131-padded", "causal-65", "global-padded", "masked-padded", "local-2d"]
)
def test_keys_of_any_size_are_served(case_name: str, name: str, order: str) -> None:
    case = BY_NAME[case_name]
    inputs = case.inputs()
    inputs["k"] = spread(inputs["k"], order)
    if unsupported_reasons(name, case, inputs):
        return
    exact = backward(lambda leaves: case.call_oracle(lambda_layer_einsum, leaves), case, inputs)
    found = backward(by_kernel(name, case), case, inputs)
    # a softmax this sharp has next to no gradient: what is left of it after cancelling is compared at the
    # size of what cancels
    size = exact["gradient of v"].abs().max()
    for gradients in (exact, found):
        gradients["gradient of k"] = gradients["gradient of k"] + size
    assert_close_by_name(found, exact)
    low = by_kernel(name, case)({key: x.float() for key, x in inputs.items()})
    assert low.isfinite().all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("case", [c for c in CASES if (c.causal or c.masked) and c.n < 20], ids=str)
def test_block_sizes_do_not_change_results(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal and masked contents are computed in blocks; small blocks cut small problems too."""
    inputs = case.inputs()
    if unsupported_reasons(name, case, inputs):
        return
    for size in (1, 2, 3, 5):
        block = size * case.batch * case.m * case.dim_k * case.dim_u
        monkeypatch.setattr(content_module, "CHUNK", size)
        monkeypatch.setattr(content_module, "MASKED_BLOCK", block)
        exact = backward(by_kernel("reference", case), case, inputs)
        assert_close_by_name(backward(by_kernel(name, case), case, inputs), exact)


def strided(x: Tensor) -> Tensor:
    """Return the same values with gaps between them and the axes stored in reverse."""
    wide = x.permute(*reversed(range(x.ndim))).contiguous().repeat_interleave(2, 0)[::2]
    return wide.permute(*reversed(range(x.ndim)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", SAMPLED, ids=str)
def test_inputs_need_not_be_contiguous(case: Case, name: str) -> None:
    inputs = case.inputs()
    if unsupported_reasons(name, case, inputs):
        return
    exact = backward(by_kernel("reference", case), case, inputs)
    scattered = {key: strided(x) for key, x in inputs.items()}
    assert not scattered["q"].is_contiguous()
    found = backward(
        lambda leaves: by_kernel(name, case)({key: strided(x) for key, x in leaves.items()}), case, scattered
    )
    assert_close_by_name(found, exact)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_as_they_were(name: str) -> None:
    for case in SAMPLED:
        inputs, mask, context = case.inputs(), case.mask(), case.context()
        if unsupported_reasons(name, case, inputs):
            continue
        lambda_layer(**inputs, context=context, mask=mask, content=case.content, kernel=name)
        assert all(torch.equal(inputs[key], x) for key, x in case.inputs().items()), case
        assert mask is None or torch.equal(mask, case.mask()), case


def test_every_kernel_serves_something_and_the_reference_everything() -> None:
    served = {
        name: {c.name for c in CASES if not unsupported_reasons(name, c, c.inputs())} for name in RUNNING
    }
    assert served["reference"] == set(BY_NAME)
    assert "local-2d" in served["conv"]
    assert "global-2d" in served["attention"]
    assert all(len(cases) >= 10 for cases in served.values()), {k: len(c) for k, c in served.items()}


@pytest.mark.parametrize("name", RUNNING)
def test_gradients_flow_to_what_needs_them_alone(name: str) -> None:
    """A frozen input (a table that is not trained, say) costs no gradient and breaks none."""
    case = BY_NAME["global-2d"]
    inputs = case.inputs()
    exact = backward(by_kernel(name, case), case, inputs)
    for trained in inputs:
        leaves = {key: x.detach().requires_grad_(key == trained) for key, x in inputs.items()}
        case.call(lambda_layer, leaves, kernel=name).backward(case.upstream())
        assert_close_by_name(
            {"gradient": leaves[trained].grad}, {"gradient": exact[f"gradient of {trained}"]}
        )
        assert all(x.grad is None for key, x in leaves.items() if key != trained)
