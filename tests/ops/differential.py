"""A random differential test: every kernel against the formula in float64, on problems from the whole space.

`python tests/ops/differential.py --seed S --minutes M` draws problems (`random_problems.py`) and compares
outputs and all gradients of each kernel that serves them, of whole layers, and of sequences in parts with a
state and decay (`recurrences.py`), with `oracles.py` by the rule of `closeness.py`. Problems run in forked
processes on poisoned memory: a crash or a hang is a result. `--case SEED:INDEX` runs one again. Exits with 1
if anything is wrong, has died or hung.
"""

import argparse
import copy
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import recurrences
import torch
from random_problems import LAYOUTS, Drawn, draw, inputs_of, laid_out
from torch import Tensor

from closeness import DOUBLE, FACTOR
from forked import forked
from lambdanets.nn import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d, fuse_batch_norm
from lambdanets.ops import KERNELS, Problem, lambda_layer
from oracles import lambda_layer_einsum, lambda_layer_loops
from running import RUNNING

# New memory, also memory that glibc reuses, holds huge numbers and NaN.
ENVIRONMENT = {
    "MALLOC_PERTURB_": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.perturb=1",
    "OMP_NUM_THREADS": "1",
}
BATCH = 50  # problems of a forked process
TIMEOUT = 120.0  # seconds of one kernel on one problem, on a busy machine, too
LEAST = 1e-3
LITERAL = 4_000  # products up to which the literal loops judge too
# The rule of `closeness.py` is for chosen cases: of many random ones with a handful of elements the plain sum
# is often exact by luck.
SEARCHED = 4 * FACTOR
LAYER_FACTOR = {
    "float32": 256.0,
    "bfloat16": 16.0,
    "autocast": 16.0,
}  # batch norms of a few values enlarge what the order of a sum decides
LAYER_LEAST = 0.03  # ... and leave next to nothing of the gradients before them
LAYER = "layer"  # what stands for the kernel in the results of whole layers
RECURRENCE = "recurrence"  # ... and of sequences with a state


def results(
    call: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    upstream: Tensor,
    needs: tuple[str, ...],
) -> dict[str, Tensor]:
    """Return the output, and the gradients of the inputs in `needs` that it depends on."""
    leaves = {name: x.detach().requires_grad_(name in needs) for name, x in inputs.items()}
    y = call(leaves)
    found = {"y": y.detach()}
    if y.requires_grad:
        names = [name for name in leaves if name in needs]
        gradients = torch.autograd.grad(
            y, [leaves[name] for name in names], upstream.to(y.dtype), allow_unused=True
        )
        found |= {f"d{name}": g for name, g in zip(names, gradients, strict=True) if g is not None}
    return found


def judge(
    found: dict[str, Tensor],
    exact: dict[str, Tensor],
    plain: dict[str, Tensor] | None,
    low: torch.dtype,
    sizes: Callable[[], dict[str, float]] = dict,
    factor: float = SEARCHED,
    least: float = LEAST,
) -> str:
    """Return the differences that the rule of `closeness.py` does not allow, or an empty string.

    A gradient may be close to zero because large terms cancel (a softmax over one element, a layer before a
    batch norm). So errors are relative to at least `least` times the largest result, and for results that
    fail otherwise to at least their size by `sizes`.

    Args:
        found: Results under test by name.
        exact: The truth in float64.
        plain: What the plain formula gives in the precision `low`; None in float64.
        low: The precision that the results are computed in.
        sizes: Sizes by name.
        factor: How many times the plain formula's error is allowed.
        least: See above.
    """
    wrong = []
    size = least * max(1.0, *(rms(truth) for truth in exact.values()))  # the inputs are of size 1
    for name, truth in exact.items():
        actual = found.get(name)
        if actual is None or actual.shape != truth.shape:
            wrong.append(f"{name}: {'missing' if actual is None else tuple(actual.shape)}")
            continue
        off = rms(actual.double() - truth)
        off_plain = 0.0 if plain is None else rms(plain[name].double() - truth)
        off_plain = off_plain if math.isfinite(off_plain) else 0.0  # an overflow of the plain formula

        def allowed(scale: float, off_plain: float = off_plain, name: str = name) -> float:
            if plain is None:
                return DOUBLE * scale
            return factor * (off_plain + torch.finfo(low).eps * scale)

        scale = max(size, rms(truth)) or 1.0
        if not off <= allowed(scale) and not off <= allowed(max(scale, sizes().get(name, 0.0))):
            wrong.append(f"{name}: error {off / scale:.2g}, allowed {allowed(scale) / scale:.2g}")
    return "; ".join(wrong)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def work(
    seed: int, tasks: list[tuple[int, tuple[str, ...]]], kernels: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Yield, for each problem and kernel, ("start", index, kernel, dtype), then (outcome, ..., detail)."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    for index, skip in tasks:
        case = draw(seed, index)
        torch.set_num_threads(case.threads)
        torch.manual_seed(case.seed)
        others = (LAYER, RECURRENCE, *skip)
        yield from _operator(case, index, [name for name in kernels if name not in others])
        if RECURRENCE in kernels and RECURRENCE not in skip and case.grid == (case.m,):
            yield from _recurrence(case, index)
        if LAYER in kernels and LAYER not in skip and index % 4 == 0:
            yield from _layer(case, index)


def _operator(case: Drawn, index: int, kernels: list[str]) -> Iterator[tuple[str, ...]]:
    inputs, upstream = inputs_of(case)
    low = torch.bfloat16 if case.autocast else case.dtype
    dtype = "autocast" if case.autocast else str(case.dtype).removeprefix("torch.")
    double = {key: x.double() for key, x in inputs.items()}
    exact = plain = None

    def oracle(leaves: dict[str, Tensor], **options: Any) -> Tensor:
        return case.call_oracle(lambda_layer_einsum, leaves, normalize=case.normalize, **options)

    for name in kernels:
        label = (str(index), name, dtype)
        yield "start", *label
        problem = Problem.of(
            inputs["q"], inputs["k"], inputs["v"], inputs.get("e"), case.context(), case.content, True
        )
        if name in KERNELS and KERNELS[name].unsupported(problem):
            yield "refused", *label, ""
            continue
        if exact is None:
            exact = results(oracle, double, upstream.double(), case.needs)
            if case.batch * case.n * case.m * case.dim_k * case.dim_u * case.dim_v <= LITERAL:
                literal = case.call_oracle(lambda_layer_loops, double, normalize=case.normalize)
                if judge({"y": exact["y"]}, {"y": literal}, None, torch.float64):
                    yield "wrong", *label, "the two oracles differ"
            if low != torch.float64:
                rounded = {key: x.to(low) for key, x in inputs.items()}
                plain = results(oracle, rounded, upstream.to(low), case.needs)

        def call(leaves: dict[str, Tensor], name: str = name) -> Tensor:
            with torch.autocast("cpu", enabled=case.autocast):
                return case.call(lambda_layer, leaves, kernel=name, normalize=case.normalize)

        try:
            found = results(call, inputs, upstream, case.needs)
        except Exception as problem_met:  # a search reports whatever comes
            yield "wrong", *label, f"{type(problem_met).__name__}: {problem_met}"
            continue

        def sizes() -> dict[str, float]:
            """Return the sizes of the terms that cancel: of all gradients with the keys' norm constant.

            Of a result with one element: the sum of its terms without their signs.
            """
            terms = results(
                lambda leaves: oracle(leaves, constant_norm=True), double, upstream.double(), case.needs
            )
            unsigned = {key: x.abs() for key, x in double.items()}
            sums = results(oracle, unsigned, upstream.double().abs(), case.needs)
            return {key: rms(sums[key]) if x.numel() == 1 else 4 * rms(x) for key, x in terms.items()}

        # The errors of a Fourier transform are relative to the largest values.
        least = 1.0 if name in ("fft", "auto") and not problem.dense and low != torch.float64 else LEAST
        detail = judge(found, exact, plain, low, sizes, least=least)
        yield ("wrong" if detail else "right"), *label, detail


def _recurrence(case: Drawn, index: int) -> Iterator[tuple[str, ...]]:
    """Compare the causal content part with a state and decay, in several calls, with loops in float64."""
    inputs, upstream = inputs_of(case)
    r = random.Random(case.seed + 3)
    sequence = recurrences.draw(case, inputs, upstream, r, lambda x: laid_out(x, r.choice(LAYOUTS), r))
    low = case.dtype
    label = (str(index), RECURRENCE, str(low).removeprefix("torch."))
    yield "start", *label
    try:
        exact, found = (recurrences.run(sequence, *how) for how in ((True, torch.float64), (False, None)))
        plain = None if low == torch.float64 else recurrences.run(sequence, True, low)
    except Exception as problem_met:
        yield "wrong", *label, f"{type(problem_met).__name__}: {problem_met}"
        return

    def sizes() -> dict[str, float]:
        # Gradients are differences of terms of the size of the largest one; all elements add to the decay's.
        every = recurrences.run(replace(sequence, needs=tuple(sequence.tensors)), True, torch.float64)
        largest = max(rms(x) for name, x in every.items() if name[0] == "d")
        elements = max(1, case.batch) * case.n
        terms = {name: largest * (elements if name == "ddecay" else 4) for name in exact if name[0] == "d"}
        return {name: terms.get(name, rms(x)) for name, x in exact.items()}

    detail = judge(found, exact, plain, low, sizes)
    yield ("wrong" if detail else "right"), *label, f"{detail}; {sequence}" if detail else ""


def _layer(case: Drawn, index: int) -> Iterator[tuple[str, ...]]:
    """Compare a layer on random images with itself in float64 by kernel "reference"."""
    r = random.Random(case.seed + 2)
    axes = len(case.grid)
    dtype = r.choice(["float32", "float32", "bfloat16", "autocast"])
    options: dict[str, Any] = {
        "dim_k": case.dim_k, "num_heads": case.num_heads, "dim_u": case.dim_u, "normalize": case.normalize,
        "content": case.content,
    }  # fmt: skip
    if not case.position:
        options |= {"position": False, "content": True}
    elif case.scope is not None:
        options |= {"scope": case.scope, "dilation": case.dilation or 1}
    else:
        options["grid"] = tuple(max(1, g + r.choice([-1, 0, 0, 2])) for g in case.grid)
    if case.causal:
        options["causal"] = True
    if not options["content"]:
        options["normalize"] = "softmax"
    dim = r.randint(1, 6)
    layer = (LambdaLayer1d, LambdaLayer2d, LambdaLayer3d)[axes - 1](
        dim, case.num_heads * case.dim_v, norm="batch" if r.random() < 0.7 else None, **options
    )
    label = (str(index), LAYER, dtype)
    yield "start", *label
    batch = case.batch + max(1, 12 // case.n)  # batch norms over fewer values enlarge every rounding
    x = torch.randn(batch, dim, *case.grid)
    x = laid_out(x, r.choice(["contiguous", "permuted", "gaps"]), r)
    training = r.random() < 0.6
    layer.train(training)

    def run(layer: torch.nn.Module, x: Tensor, kernel: str, autocast: bool) -> dict[str, Tensor]:
        layer = copy.deepcopy(layer)
        layer.kernel = kernel
        x = x.detach().requires_grad_(training)
        convolutions = mock.patch.object(fuse_batch_norm, "is_native", return_value=False)
        projected = convolutions if kernel == "reference" else nullcontext()
        with torch.set_grad_enabled(training), torch.autocast("cpu", enabled=autocast), projected:
            y = layer(x)
        found = {"y": y.detach()}
        if training:
            torch.manual_seed(0)
            upstream = torch.randn(y.shape, dtype=torch.float64)
            y.backward(upstream.to(y.dtype))
            found |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
            found["dx"] = x.grad
        return found

    try:
        exact = run(layer.double(), x.double(), "reference", False)
        given = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        plain = run(layer.to(given), x.to(given), "reference", dtype == "autocast")
        found = run(layer, x.to(given), "auto", dtype == "autocast")
    except Exception as problem_met:
        yield "wrong", *label, f"{type(problem_met).__name__}: {problem_met}; {layer.extra_repr()}"
        return
    low = torch.float32 if dtype == "float32" else torch.bfloat16
    detail = judge(found, exact, plain, low, factor=LAYER_FACTOR[dtype], least=LAYER_LEAST)
    yield ("wrong" if detail else "right"), *label, f"{detail}; {layer.extra_repr()}" if detail else ""


@dataclass
class Tally:
    """Outcomes counted by kernel and dtype, and the problems with bad outcomes."""

    seed: int
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)
    problems: int = 0

    def add(self, outcome: str, index: str, kernel: str, dtype: str, detail: str) -> None:
        self.counts[kernel, dtype, outcome] += 1
        if outcome not in ("right", "refused"):
            case = f"{self.seed}:{index}"
            self.bad.append(
                {"case": case, "kernel": kernel, "dtype": dtype, "outcome": outcome, "detail": detail}
            )
            print(f"{outcome} {kernel} {dtype} --case {case}: {detail}", flush=True)
            print(f"    {draw(self.seed, int(index)).line()}", flush=True)

    def number(self, outcome: str) -> int:
        return sum(count for (_, _, how), count in self.counts.items() if how == outcome)

    def table(self) -> str:
        outcomes = ("right", "wrong", "died", "hung", "refused")
        lines = [f"{'kernel':<11}{'dtype':<10}" + "".join(f"{name:>9}" for name in outcomes)]
        for kernel, dtype in sorted({key[:2] for key in self.counts}):
            numbers = "".join(f"{self.counts[kernel, dtype, name]:>9}" for name in outcomes)
            lines.append(f"{kernel:<11}{dtype:<10}{numbers}")
        numbers = "".join(f"{self.number(name):>9}" for name in outcomes)
        return "\n".join([*lines, f"{'all':<21}{numbers}", f"{self.problems} problems, seed {self.seed}"])


def search(tally: Tally, indices: list[int], kernels: tuple[str, ...], timeout: float = TIMEOUT) -> None:
    """Run each problem by each kernel in forked processes; after a crash the rest goes on in another."""
    tasks: list[tuple[int, tuple[str, ...]]] = [(index, ()) for index in indices]
    while tasks:
        ending = forked(work, tally.seed, tasks, kernels, timeout=timeout)
        started: tuple[str, ...] | None = None
        done: dict[int, tuple[str, ...]] = {}
        for outcome, *rest in ending.results:
            if outcome == "start":
                started = tuple(rest)
                done[int(rest[0])] = (*done.get(int(rest[0]), ()), rest[1])
            else:
                tally.add(outcome, *rest)
                started = None
        if ending.how == "done":
            break
        if started is None:
            index = max(done, default=tasks[0][0])
            started = (str(index), "harness", "")
        tally.add("wrong" if ending.how == "raised" else ending.how, *started, ending.why)
        at = [index for index, _ in tasks].index(int(started[0]))
        skip = (*tasks[at][1], *done.get(int(started[0]), kernels))
        tasks = ([] if started[1] == "harness" else [(int(started[0]), skip)]) + tasks[at + 1 :]
    tally.problems += len(indices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cases", type=int, help="number of problems, instead of --minutes")
    parser.add_argument("--kernels", nargs="+", default=[*RUNNING, "auto", RECURRENCE, LAYER])
    parser.add_argument("--case", metavar="SEED:INDEX", help="this problem alone")
    parser.add_argument("--json", type=Path, help="write the counts and the bad cases to this file")
    chosen = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    kernels = tuple(chosen.kernels)
    if chosen.case:
        seed, index = map(int, chosen.case.split(":"))
        tally = Tally(seed)
        print(draw(seed, index).line())
        search(tally, [index], kernels)
    else:
        tally, start, first = Tally(chosen.seed), time.monotonic(), 0
        while first < chosen.cases if chosen.cases else time.monotonic() < start + 60 * chosen.minutes:
            last = min(first + BATCH, chosen.cases or first + BATCH)
            search(tally, list(range(first, last)), kernels)
            first = last
            if first % (20 * BATCH) == 0:
                print(f"{first} problems, {len(tally.bad)} bad", flush=True)
    print(tally.table())
    if chosen.json:
        counts = [[*key, count] for key, count in sorted(tally.counts.items())]
        chosen.json.write_text(json.dumps({"problems": tally.problems, "counts": counts, "bad": tally.bad}))
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
