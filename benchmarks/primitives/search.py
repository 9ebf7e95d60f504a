"""Where the library primitives of the operator, the layers and the networks crash or return wrong numbers.

`python search.py COMMIT [--seed S] [--cases N] [--isa ISA] [--only PRIMITIVE] [--case INDEX]` draws
convolutions and matrix products as this package calls them, and compares each with sums in float64 that use
no convolution. A case runs in a process of its own on poisoned memory: a crash, a hang or a wrong number is a
row. Writes cases-ISA.csv (counts by primitive, pass, axes, dtype) and bad-ISA.csv (each case that is bad).
"""

import argparse
import csv
import itertools
import math
import os
import platform
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ENVIRONMENT = {  # fresh and freed memory holds huge numbers and NaN; no cache of small blocks hides it
    "MALLOC_PERTURB_": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.perturb=1",
    "OMP_NUM_THREADS": "1",
}
ISAS = ("default", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16")
TIMEOUT = 20.0  # seconds of a case
WRONG = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # relative root mean square
PRIMITIVES = ("window", "pointwise", "network", "product")
FIELDS = (
    "primitive", "passes", "dtype", "threads", "batch", "channels", "out", "grid", "window", "before",
    "after", "stride", "dilation", "groups", "layout", "layout_of_weight",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a primitive. A product is (batch, grid[0], channels) times (batch, channels, out)."""

    primitive: str
    passes: str
    dtype: str
    threads: int
    batch: int
    channels: int
    out: int
    grid: tuple[int, ...]
    window: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    layout: str = "contiguous"
    layout_of_weight: str = "contiguous"

    @property
    def result(self) -> tuple[int, ...]:
        sides = zip(self.grid, self.window, self.before, self.after, self.stride, self.dilation, strict=True)
        return tuple((g + b + a - d * (w - 1) - 1) // s + 1 for g, w, b, a, s, d in sides)


def draw(seed: int, index: int, only: str = "") -> Case:
    """The case of this seed and index."""
    r = random.Random(f"{seed} {index}")
    primitive = only or r.choice(PRIMITIVES)
    options = {
        "primitive": primitive,
        "dtype": r.choice(["float32", "float32", "float32", "bfloat16", "float16", "float64"]),
        "threads": r.choice([1, 1, 1, 2]),
        "batch": r.choice([1, 2, 2, 3, 4, 6, 9, 16, 32]),
        "layout": r.choice(["contiguous", "last", "last-format", "batch-last", "gaps", "expanded"]),
        "layout_of_weight": r.choice(["contiguous", "contiguous", "last-format"]),
    }
    if primitive == "product":
        sizes = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 129]
        return Case(
            **options | {"layout_of_weight": r.choice(["contiguous", "mT", "gaps", "expanded"])},
            passes=r.choice(["bmm", "mm", "baddbmm", "linear", "out"]),
            channels=r.choice(sizes),
            out=r.choice(sizes),
            grid=(r.choice([*sizes, 196, 500]),),
        )
    axes = r.choice([1, 2, 2, 3])
    options["passes"] = r.choice(["forward", "both", "input", "weight"])
    most = {1: 60, 2: 40, 3: 9}[axes]
    while True:
        grid = tuple(r.choice([1, 2, 3, r.randint(1, 7), r.randint(1, most)]) for _ in range(axes))
        dilation, stride, groups = (1,) * axes, (1,) * axes, 1
        channels, out = (
            r.choice([1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 16]),
            r.choice([1, 2, 3, 5, 7, 8, 16, 16, 17, 32]),
        )
        if primitive == "window":
            queries = tuple(r.choice([g, g, r.randint(1, most)]) for g in grid)
            if r.random() < 0.6:
                window = tuple(q + g - 1 for q, g in zip(queries, grid, strict=True))
                before = tuple(q - 1 for q in queries)
            else:
                window = tuple(r.randint(1, 2 * g + 2) for g in grid)
                before = tuple(w // 2 for w in window)
                dilation = tuple(r.choice([1, 1, 1, 2, 3]) for _ in grid)
                before = tuple(b * d for b, d in zip(before, dilation, strict=True))
            after = tuple(
                q - g + (w - 1) * d - b
                for q, g, w, d, b in zip(queries, grid, window, dilation, before, strict=True)
            )
            if min(after) < 0:
                continue
            if axes == 1:  # as the kernel calls it: the second of two axes
                grid, window, before, after = (1, *grid), (1, *window), (0, *before), (0, *after)
                dilation, stride = (1, *dilation), (1, *stride)
        elif primitive == "pointwise":
            channels = r.choice([1, 2, 3, 5, 8, 13, 16, 31, 32, 48, 64, 96])
            out = r.choice([1, 2, 3, 8, 12, 16, 17, 40, 64, 112, 176])
            window, before = (1,) * axes, (0,) * axes
            after = before
        else:
            grid = tuple(r.choice([1, 2, 3, 4, 5, 7, 8, 9, 12, 14, 15, 16, 20, 28, 33]) for _ in range(2))
            channels = r.choice([1, 3, 3, 8, 12, 16, 24, 32, 48, 64])
            side, step = r.choice([(3, 1), (3, 2), (7, 2), (1, 2), (5, 1), (5, 2), (2, 2)])
            window, stride, dilation = (side, side), (step, step), (1, 1)
            before = after = (side // 2,) * 2
            out = r.choice([8, 16, 24, 32, 40, 64])
            if r.random() < 0.3:
                groups, out = channels, channels
        case = Case(
            **options, channels=channels, out=out, grid=grid, window=window, before=before, after=after,
            stride=stride, dilation=dilation, groups=groups,
        )  # fmt: skip
        if min(case.result) < 1:
            continue
        lambdas = case.batch * case.out * math.prod(case.result)
        if lambdas * math.prod(case.window) * case.channels // groups < 4e7 and lambdas < 4e5:
            return case


def run(case: Case) -> Iterator[tuple[str, float]]:
    """The relative error of each result of a case."""
    import torch

    torch.set_num_threads(case.threads)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield from (products if case.primitive == "product" else convolutions)(case)


def tensor(shape, layout, dtype, generator):
    """Random numbers with the channels on axis 1, laid out in memory in a way."""
    import torch

    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(getattr(torch, dtype))
    if layout == "last":  # a view: where a size is 1 its stride stays what the order gives
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "last-format" and x.ndim in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if layout == "batch-last":  # as the values b m v u are images (b v) u *grid
        return x.movedim((0, 1), (-2, -1)).contiguous().movedim((-2, -1), (0, 1))
    if layout == "gaps":
        wide = torch.cat([x, x], dim=1).movedim(1, -1).contiguous().movedim(-1, 1)
        return wide[:, : x.shape[1]]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    if layout == "mT":
        return x.mT.contiguous().mT
    return x


def relative(found, exact) -> float:
    found = found.detach().double()
    if found.shape != exact.shape or not found.isfinite().all():
        return math.inf
    scale = exact.square().mean().sqrt()
    return float((found - exact).square().mean().sqrt() / (scale if scale > 0 else 1.0))


def products(case: Case) -> Iterator[tuple[str, float]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    batch = 1 if case.passes in ("mm", "linear") else case.batch
    a = tensor((batch, case.grid[0], case.channels), case.layout, case.dtype, generator)
    if "last" in case.layout:
        a = a.mT.contiguous().mT
    b = tensor((batch, case.channels, case.out), case.layout_of_weight, case.dtype, generator)
    exact = (a.double()[:, :, :, None] * b.double()[:, None]).sum(2)
    with torch.no_grad():
        if case.passes == "linear":
            if case.dtype != "float32":
                return
            b = b[0] if b[0].is_contiguous() or b[0].mT.is_contiguous() else b[0].contiguous()
            y = torch.ops.mkldnn._linear_pointwise(a[0], b.mT, None, "none", [], "")[None]
        elif case.passes == "mm":
            y = torch.mm(a[0], b[0])[None]
        elif case.passes == "baddbmm":
            y, exact = torch.baddbmm(a[..., :1].expand(exact.shape), a, b), exact + a.double()[..., :1]
        elif case.passes == "out":
            y = torch.bmm(a, b, out=torch.empty_like(exact, dtype=a.dtype))
        else:
            y = torch.bmm(a, b)
    yield case.passes, relative(y, exact)


def convolutions(case: Case) -> Iterator[tuple[str, float]]:
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    axes = len(case.grid)
    images = tensor((case.batch, case.channels, *case.grid), case.layout, case.dtype, generator)
    shape = (case.out, case.channels // case.groups, *case.window)
    weight = tensor(shape, case.layout_of_weight, case.dtype, generator)
    padding = list(case.before)
    pads = [size for side in reversed(list(zip(case.before, case.after, strict=True))) for size in side]
    padded = F.pad(images.double(), pads)
    if case.before != case.after:
        images, padding = F.pad(images, pads), [0] * axes
    by_tap = []
    for tap in itertools.product(*(range(w) for w in case.window)):
        part = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, case.dilation, case.result, case.stride, strict=True)
        )
        by_tap.append((tap, (slice(None), slice(None), *part)))
    groups = (case.groups, -1)
    if case.passes == "forward":
        exact = torch.zeros(case.batch, case.out, *case.result, dtype=torch.float64)
        for tap, part in by_tap:
            w = weight.double()[(..., *tap)].unflatten(0, groups)
            exact += torch.einsum("bgi...,goi->bgo...", padded[part].unflatten(1, groups), w).flatten(1, 2)
        convolution = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        with torch.no_grad():
            y = convolution(images, weight, None, case.stride, padding, case.dilation, case.groups)
        yield "forward", relative(y, exact)
        return
    g = tensor((case.batch, case.out, *case.result), case.layout, case.dtype, generator)
    wide = g.double().unflatten(1, groups)
    dpadded, dweight = torch.zeros_like(padded), torch.zeros(weight.shape, dtype=torch.float64)
    for tap, part in by_tap:
        w = weight.double()[(..., *tap)].unflatten(0, groups)
        dpadded[part] += torch.einsum("bgo...,goi->bgi...", wide, w).flatten(1, 2)
        by_group = padded[part].unflatten(1, groups)
        dweight[(..., *tap)] = torch.einsum("bgon,bgin->goi", wide.flatten(3), by_group.flatten(3)).flatten(
            0, 1
        )
    wanted = [case.passes in ("both", "input"), case.passes in ("both", "weight"), False]
    found = torch.ops.aten.convolution_backward(
        g, images, weight, None, case.stride, padding, case.dilation, False, [0] * axes, case.groups, wanted
    )
    dimages = dpadded
    if case.before == case.after:
        inside = (slice(b, b + n) for b, n in zip(case.before, case.grid, strict=True))
        dimages = dpadded[(slice(None), slice(None), *inside)]
    if wanted[0]:
        yield "input", relative(found[0], dimages)
    if wanted[1]:
        yield "weight", relative(found[1], dweight)


def outcome(case: Case) -> tuple[str, str]:
    """What came of a case: "right", "wrong", "died", "hung" or "refused", and the detail."""
    from forked import forked

    ending = forked(run, case, timeout=TIMEOUT)
    bad = [f"{name} {error:.2g}" for name, error in ending.results if not error <= WRONG[case.dtype]]
    if ending.how in ("died", "hung"):
        return ending.how, ending.why
    if ending.how == "raised":
        return "refused", ending.why
    return ("wrong", ", ".join(bad)) if bad else ("right", "")


def text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--isa", choices=ISAS, default="default")
    parser.add_argument("--only", choices=PRIMITIVES, default="")
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    chosen = parser.parse_args()
    environment = dict(ENVIRONMENT)
    if chosen.isa != "default":
        environment["ONEDNN_MAX_CPU_ISA"] = chosen.isa
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import torch

    if chosen.case is not None:
        case = draw(chosen.seed, chosen.case, chosen.only)
        print(case, *outcome(case))
        return
    counts: Counter[tuple[str, ...]] = Counter()
    bad, outcomes = [], Counter()
    for index in range(chosen.cases):
        case = draw(chosen.seed, index, chosen.only)
        how, why = outcome(case)
        outcomes[how] += 1
        counts[(case.primitive, case.passes, str(len(case.grid)), case.dtype, how)] += 1
        if how != "right":
            bad.append([index, how, why, *(text(value) for value in asdict(case).values())])
            print(index, how, why, case, flush=True)
    provenance = [
        torch.__version__,
        platform.machine(),
        processor(),
        chosen.isa,
        chosen.seed,
        date.today(),
        chosen.commit,
    ]
    names = ["torch", "machine", "processor", "isa", "seed", "date", "commit"]
    with open(chosen.out / f"cases-{chosen.isa.lower()}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["primitive", "pass", "axes", "dtype", "outcome", "cases", *names])
        writer.writerows([*key, count, *provenance] for key, count in sorted(counts.items()))
    with open(chosen.out / f"bad-{chosen.isa.lower()}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "outcome", "detail", *FIELDS])
        writer.writerows(bad)
    print(dict(outcomes))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
