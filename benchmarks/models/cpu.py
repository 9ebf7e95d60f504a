"""Networks on a CPU in each form that a user can choose: writes cpu.csv; with --draw the page and the advice.

Forms that differ in the native kernel or in the C library's allocator run in separate processes; all forms of
a network take turns, round after round, and their results are compared first.
`python cpu.py`, `--help` for the options; `--draw` writes the section of docs/models.md and the rows that
`lambdanets show` reads, from the rows alone.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lambdanets.bench import Machine, Provenance, provenance
from lambdanets.bench.records import NONE, read_rows, write_rows
from lambdanets.bench.timing import Stopwatch, Timing
from lambdanets.cli.fastest import FILE as ADVICE
from lambdanets.cli.fastest import Fastest
from lambdanets.exporting import export_network
from lambdanets.models import to_channels_last
from lambdanets.utils.allocator import keep_freed_memory

ROOT = Path(__file__).parents[2]
ROWS, PAGE = Path(__file__).with_suffix(".csv"), ROOT / "docs/models.md"
BEGIN, END = "<!-- benchmarks/models/cpu.py --draw -->\n", "<!-- end -->\n"
MODELS = ("lambda_resnet50", "lambda_resnet152", "lambda_resnet50_c4", "resnet50", "efficientnet_b0")
SAMPLE_SECONDS = 0.1  # a sample has as many calls: the process has slept before it
SIZE, BATCHES = 224, (1, 8)
# Root mean square of the difference from the contiguous network, relative to its outputs.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
UNKNOWN = Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE)
WORDS = {"eval": "inference", "train": "training"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a network runs.

    Attributes:
        native: Whether the native kernel may be used.
        kept: Whether the process keeps freed memory.
        channels_last: Whether weights and images are in channels-last format.
        dtype: bfloat16 is autocast with float32 weights.
        how: "eager", "compiled" (torch.compile) or "onnxruntime".
    """

    native: bool = True
    kept: bool = True
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    how: str = "eager"

    @property
    def modes(self) -> tuple[str, ...]:
        return ("eval",) if self.how == "onnxruntime" else ("eval", "train")


FORMS = {
    "before": Form(native=False, kept=False, channels_last=False),
    "contiguous": Form(kept=False, channels_last=False),
    "channels-last": Form(kept=False),
    "kept memory": Form(),
    "bfloat16": Form(dtype=torch.bfloat16),
    "compiled": Form(how="compiled"),
    "compiled bfloat16": Form(dtype=torch.bfloat16, how="compiled"),
    "onnxruntime": Form(channels_last=False, how="onnxruntime"),
}
# torch.compile takes minutes.
QUICK = tuple(name for name, form in FORMS.items() if form.how != "compiled")
# What the forms are in the table; "before" is not on offer.
OFFERED = {
    "contiguous": "PyTorch's defaults",
    "channels-last": "channels-last",
    "kept memory": "and freed memory kept",
    "bfloat16": "and bfloat16 autocast",
    "compiled": "torch.compile, float32",
    "compiled bfloat16": "torch.compile, bfloat16 autocast",
    "onnxruntime": "ONNX Runtime, float32",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network in one form: a row of cpu.csv. Times are those of a batch, in milliseconds."""

    model: str
    size: int
    mode: str
    batch: int
    form: str
    wall_ms: float
    wall_q20: float
    wall_q80: float
    cpu_ms: float
    cpu_q20: float
    cpu_q80: float
    samples: int
    first_s: float  # the first call: compilation; of onnxruntime the export
    difference: float  # from the first form: of the outputs, in training of the loss

    @property
    def key(self) -> tuple[str, int, str, int, str]:
        return self.model, self.size, self.mode, self.batch, self.form


Measured = tuple[Row, Provenance]


# A process that runs forms


def call_of(form: Form, name: str, size: int, mode: str, batch: int, threads: int) -> Callable[[], Tensor]:
    """Return a pass of a network with random weights, which returns the logits or the loss."""
    torch.manual_seed(0)
    network = timm.create_model(name)
    images = torch.randn(batch, 3, size, size)
    if form.how == "onnxruntime":
        return onnx_call(network.eval(), images, threads)
    if form.channels_last:
        network, images = to_channels_last(network), images.to(memory_format=torch.channels_last)
    run = torch.compile(network) if form.how == "compiled" else network
    half = form.dtype == torch.bfloat16
    precision = torch.autocast("cpu", form.dtype) if half else nullcontext()
    if mode == "eval":
        network.eval()

        def infer() -> Tensor:
            # Compiled code for inference mode would be compiled again for every tensor made outside of it.
            with torch.no_grad() if form.how == "compiled" else torch.inference_mode(), precision:
                return run(images)

        return infer
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    targets = torch.arange(batch)

    def step() -> Tensor:
        optimizer.zero_grad()
        with precision:
            loss = cross_entropy(run(images), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def onnx_call(network: torch.nn.Module, images: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export_network(network, file, [(images,)], format="onnx", inputs={"x": {}}, outputs=["y"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = {"x": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def work(pipe: Connection, kept: bool, threads: int) -> None:
    """Make and time passes for the parent until it closes the pipe."""
    if kept:
        keep_freed_memory()
    torch.set_num_threads(threads)
    watch, calls = Stopwatch("cpu"), {}
    while (order := pipe.recv()) is not None:
        what, form, *case = order
        if what == "make":
            started = time.perf_counter()
            call = calls[form] = call_of(FORMS[form], *case, threads)
            result = call().float().numpy()
            pipe.send((result, time.perf_counter() - started))
        elif what == "time":
            pipe.send(watch.sample(calls[form], *case))
        else:
            calls.clear()
            torch.compiler.reset()


@contextmanager
def processes(forms: Sequence[str], threads: int) -> Iterator[dict[str, Connection]]:
    """Start a process for each combination of kernel and allocator; give the pipe of each form."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for form in forms:
        kind = FORMS[form].native, FORMS[form].kept
        if kind in pipes:
            continue
        pipes[kind], theirs = context.Pipe()
        os.environ["LAMBDANETS_NATIVE"] = "1" if kind[0] else "0"
        context.Process(target=work, args=(theirs, kind[1], threads), daemon=True).start()
    try:
        yield {form: pipes[FORMS[form].native, FORMS[form].kept] for form in forms}
    finally:
        for pipe in pipes.values():
            pipe.send(None)


def ask(pipe: Connection, *order: object) -> Any:
    pipe.send(order)
    return pipe.recv()


# The measurement


def measure(
    pipes: dict[str, Connection], case: tuple[str, int, str, int], rounds: int, seconds: float
) -> Iterator[Row]:
    """Time the forms of one case in turn and yield their rows."""
    first: dict[str, float] = {}
    results: dict[str, np.ndarray] = {}
    for form, pipe in pipes.items():
        results[form], first[form] = ask(pipe, "make", form, *case)
    reference = next(iter(results.values()))
    differences = {name: difference(found, reference) for name, found in results.items()}
    for form, value in differences.items():
        if not value < TOLERANCE[FORMS[form].dtype]:
            raise SystemExit(f"no speed without correctness: {case} as {form} differs by {value:.1e}")
    timings = {form: Timing() for form in pipes}
    warm = {form: ask(pipe, "time", form, 1)[0] / 1e3 for form, pipe in pipes.items()}
    calls = {form: math.ceil(SAMPLE_SECONDS / each) for form, each in warm.items()}
    rounds = max(3, min(rounds, int(seconds / sum(calls[form] * each for form, each in warm.items()))))
    order = random.Random(0)
    for _ in range(rounds):
        for form in order.sample(list(pipes), len(pipes)):
            wall, cpu = ask(pipes[form], "time", form, calls[form])
            timings[form].wall.append(wall)
            timings[form].cpu.append(cpu)
    for pipe in set(pipes.values()):
        pipe.send(("clear", ""))
    model, size, mode, batch = case
    for form, timing in timings.items():
        yield Row(
            model=model, size=size, mode=mode, batch=batch, form=form,
            first_s=first[form], difference=differences[form], **timing.columns(),
        )  # fmt: skip


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


# Page and advice


def cases_of(rows: Sequence[Row]) -> dict[tuple[str, int, str, int], dict[str, Row]]:
    """Return the rows by case and form, in order."""
    cases: dict[tuple[str, int, str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.key[:4], {})[row.form] = row
    return cases


def rate(row: Row) -> float:
    return 1e3 * row.batch / row.wall_ms


def section(measured: Sequence[Measured]) -> str:
    """Return the section of docs/models.md; empty without rows."""
    if not measured:
        return ""
    rows, where = [row for row, _ in measured], measured[-1][1]
    cases = cases_of(rows)
    lines = [
        "",
        f"Images per second on {where.threads} threads of an {where.processor.strip()} with bfloat16 "
        f"instructions (PyTorch {where.torch}), at {rows[0].size} pixels. Each row from channels-last to "
        "bfloat16 adds to the row before; torch.compile adds to channels-last and kept memory. In brackets: "
        "seconds to compile or to export.",
    ]
    for before, after, what in (
        ("contiguous", "channels-last", "Channels-last memory"),
        ("channels-last", "kept memory", "Keeping freed memory"),
    ):
        ratios = [rate(f[after]) / rate(f[before]) for f in cases.values() if {before, after} <= set(f)]
        if ratios:
            lines[-1] += f" {what} alone multiplies these speeds by {min(ratios):.2f} to {max(ratios):.2f}."
    for mode in WORDS:
        columns = [case for case in cases if case[2] == mode]
        if not columns:
            continue
        lines += ["", "| " + " | ".join([WORDS[mode], *(f"`{c[0]}`, batch {c[3]}" for c in columns)]) + " |"]
        lines.append("|---" + "|---:" * len(columns) + "|")
        for form, words in OFFERED.items():
            cells = [cell(cases[case].get(form)) for case in columns]
            if any(cells):
                lines.append("| " + " | ".join([words, *cells]) + " |")
    return "\n".join(lines) + "\n\n"


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    built = f" ({row.first_s:.0f} s)" if FORMS[row.form].how != "eager" else ""
    return f"{rate(row):.3g}{built}"


def fastest(measured: Sequence[Measured]) -> list[tuple[Fastest, Provenance]]:
    """Return the fastest offered form of each case, with and without bfloat16."""
    found = []
    origins = {row.key: where for row, where in measured}
    for case, forms in cases_of([row for row, _ in measured]).items():
        model, size, mode, batch = case
        for half in (0, 1):
            offered = [
                row
                for name, row in forms.items()
                if name in OFFERED and (half or FORMS[name].dtype == torch.float32)
            ]
            best = max(offered, key=rate)
            found.append(
                (
                    Fastest(
                        model=model, size=size, mode=mode, batch=batch, bfloat16=half, form=best.form,
                        images_per_s=float(f"{rate(best):.3g}"),
                        speed_up=float(f"{rate(best) / rate(forms['contiguous']):.2f}"),
                    ),
                    origins[best.key],
                )
            )  # fmt: skip
    return found


def draw(measured: Sequence[Measured]) -> None:
    """Write the section of the page and the rows of the advice."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + section(measured) + END + after, encoding="utf-8")
    write_rows(ADVICE, Fastest, fastest(measured))


def with_form(origin: Provenance, form: Form) -> Provenance:
    dtype = str(form.dtype).removeprefix("torch.")
    return replace(origin, dtype=dtype, freed_memory="kept" if form.kept else "")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--modes", nargs="+", default=tuple(WORDS), choices=WORDS)
    parser.add_argument("--forms", nargs="+", default=QUICK, choices=FORMS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the samples of all forms of a case")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--draw", action="store_true", help="write page and advice from --out, nothing else")
    given = parser.parse_args(words)
    rows: dict[tuple[str, int, str, int, str], Measured] = {}
    if given.out.exists():  # rows of other cases and forms stay
        rows = {row.key: (row, where) for row, where in read_rows(given.out, Row, "cpu")}
    if given.draw:
        return draw(list(rows.values()))
    for model in given.models:
        with processes(given.forms, given.threads) as pipes:
            for mode, batch in itertools.product(given.modes, given.batches):
                if mode == "train" and batch < max(given.batches):  # batch norms need several images
                    continue
                suited = {form: pipe for form, pipe in pipes.items() if mode in FORMS[form].modes}
                origin = provenance(torch.float32, "cpu", given.threads, UNKNOWN)
                for row in measure(suited, (model, given.size, mode, batch), given.rounds, given.seconds):
                    rows[row.key] = row, with_form(origin, FORMS[row.form])
                    print(*row.key, f"{row.wall_ms:.1f} ms", f"{rate(row):.1f} images/s", flush=True)
                write_rows(given.out, Row, rows.values())


if __name__ == "__main__":
    main()
