"""When two results are equal: one rule with a meaning, no numbers per test.

float64 must agree to 1e-10. In a lower precision a result may be at most twice as far from the float64 truth
as the plain einsum in that same precision is, a unit in the last place added to the latter. Errors are root
mean squares over a tensor, relative to the truth's: the largest error of a small tensor is a matter of luck.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

DOUBLE = 1e-10
FACTOR = 2.0


def error(actual: Tensor, exact: Tensor) -> float:
    """The root mean square of the difference, as a fraction of that of the truth (as it is if that is 0)."""
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} where {tuple(exact.shape)} was expected")
    if exact.numel() == 0:
        return 0.0
    actual, exact = actual.detach().double().cpu(), exact.detach().double().cpu()
    if not exact.isfinite().all():
        raise AssertionError("the expected values are not finite: nothing can be compared with them")
    if not actual.isfinite().all():
        raise AssertionError(f"{int((~actual.isfinite()).sum())} of {actual.numel()} values are not finite")
    scale = exact.square().mean().sqrt()
    return float((actual - exact).square().mean().sqrt() / (scale if scale > 0 else 1.0))


def assert_close(actual: Tensor, exact: Tensor, *, plain: Tensor | None = None, name: str = "result") -> None:
    """Fail unless `actual` agrees with the float64 tensor `exact` by the rule of this file.

    Args:
        actual: the result under test; its dtype decides which half of the rule applies.
        exact: the truth, in float64.
        plain: for a low-precision `actual`, what the plain einsum gives in that precision.
        name: what to call it in the message.
    """
    if exact.dtype != torch.float64:
        raise AssertionError(f"{name}: the truth must be float64, not {exact.dtype}")
    try:
        found = error(actual, exact)
        if actual.dtype == torch.float64:
            allowed = DOUBLE
        elif plain is None or plain.dtype != actual.dtype:
            raise AssertionError(
                f"a {actual.dtype} result needs the plain einsum in {actual.dtype} to compare with"
            )
        else:
            # the unit is for the einsum that is exact by luck, on a tensor of few entries
            allowed = FACTOR * (error(plain, exact) + torch.finfo(actual.dtype).eps)
    except AssertionError as problem:
        raise AssertionError(f"{name}: {problem}") from None
    if found > allowed:
        raise AssertionError(f"{name}: error {found:.3e}, allowed {allowed:.3e} ({actual.dtype})")


def assert_close_by_name(
    actual: Mapping[str, Tensor], exact: Mapping[str, Tensor], plain: Mapping[str, Tensor] | None = None
) -> None:
    """`assert_close` for every name; both sides must have the same names. All failures are reported."""
    if not exact or set(actual) != set(exact):
        raise AssertionError(f"got {sorted(actual)} where {sorted(exact)} were expected")
    failures = []
    for name in exact:
        try:
            assert_close(actual[name], exact[name], plain=None if plain is None else plain[name], name=name)
        except AssertionError as problem:
            failures.append(str(problem))
    if failures:
        raise AssertionError("\n".join(failures))
