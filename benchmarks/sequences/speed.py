"""Time, memory and state of the causal lambda layer beside softmax attention, against the length.

`length` times one layer, training step and inference, and measures the peak memory of a training step.
`training` times training steps of the language models of `accuracy.py` in their setting.
`decoding` times steps of language models of four blocks at growing positions, and counts the bytes of their
states. `step` times one step of a layer and of `lambda_lm_mini` by each program of `stepping.py`.
`stream` runs a million positions through a model in chunks and records the memory of the process; `drift`
takes a million single steps of a layer in float32 beside float64 and records the difference.
The contenders take turns; with one thread times are CPU seconds of this process, as other programs may run
on the machine, with several wall time. `--draw` draws the figures from the rows.
`python -m benchmarks.sequences.speed length COMMIT --threads 1`
"""

import argparse
import copy
import csv
import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.sequences.accuracy import TEXT_MODELS
from lambdanets import LambdaLayer1d
from lambdanets.bench.memory import peak_mib
from lambdanets.models.sequence import LambdaLM, LanguageModelState
from lambdanets.nn import Attention1d
from lambdanets.recipes import get_recipe
from lambdanets.train import override
from lambdanets.utils.allocator import keep_freed_memory

HERE = Path(__file__).parent
DIM, HEADS, DIM_K, SCOPE = 128, 4, 16, 64
POSITIONS = 8192  # of a batch, where the length is not greater
LENGTHS = [2**i for i in range(6, 17)]
MATH_LENGTHS = 2048  # beyond it, attention with its map in memory is not run
SLOW_SECONDS = 4.0  # of a first call, after which a contender has one more round, and no greater lengths
PEAK_LENGTHS = (2**8, 2**10, 2**12, 2**14, 2**16)  # at which the memory is measured too
ROUNDS, STEPS, TRAINING_ROUNDS = 7, 32, 31
DECODED = {1: (2**10, 2**12, 2**14, 2**16), 32: (2**10, 2**12, 2**14)}  # positions, by batch
CHUNK = 4096
PROVENANCE = ("threads", "torch", "python", "date", "commit")


class Products(nn.Module):
    """Attention without positions: one projection and PyTorch's fused function, nothing else.

    Args:
        backend: The implementation of the function; None takes PyTorch's choice.
    """

    def __init__(self, backend: SDPBackend | None = None) -> None:
        super().__init__()
        self.projection = nn.Linear(DIM, 3 * DIM, bias=False)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, dim, n]` to `[b, dim, n]`."""
        q, k, v = self.projection(x.mT).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if self.backend is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            with sdpa_kernel(self.backend):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2).mT


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lambda": lambda: LambdaLayer1d(DIM, dim_k=DIM_K, num_heads=HEADS, scope=SCOPE, causal=True, norm="rms"),
    "attention": lambda: Attention1d(DIM, num_heads=HEADS),
    "attention, no positions": Products,
    "attention, map in memory": lambda: Products(SDPBackend.MATH),
}
MODELS: dict[str, dict[str, Any]] = {
    "lambda": {"options": {"dim_k": DIM_K, "scope": SCOPE, "norm": "rms"}},
    "attention": {},
    "linear_attention": {},
    "gru": {},
}


def training(layer: nn.Module, x: Tensor) -> None:
    """Run a training step of a layer without the optimiser."""
    y = layer(x)
    y.backward(torch.ones_like(y))
    layer.zero_grad()


def inference(layer: nn.Module, x: Tensor) -> None:
    """Run a layer without gradients."""
    with torch.inference_mode():
        layer(x)


PASSES = {"training": training, "inference": inference}


@dataclass(frozen=True)
class TrainingStep:
    """A training step whose peak memory is measured in a process of its own."""

    name: str
    n: int
    device: str = "cpu"
    threads: int = 1
    whole: bool = False

    def warm_up(self) -> None:
        replace(self, n=64).prepare()()

    def prepare(self) -> Callable[[], object]:
        layer, x = LAYERS[self.name](), inputs(self.n)
        return lambda: training(layer, x)


def inputs(n: int) -> Tensor:
    """Return `[b, dim, n]` with positions as the outer axis in memory, as models pass them."""
    return torch.randn(max(1, POSITIONS // n), n, DIM).requires_grad_().mT


def provenance(commit: str) -> dict[str, Any]:
    """Return the columns of a row that say where it was measured."""
    values = (torch.get_num_threads(), torch.__version__, platform.python_version(), date.today(), commit)
    return dict(zip(PROVENANCE, values, strict=True))


def clock() -> float:
    """Return the time in seconds: CPU time of this process with one thread, else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    begin = clock()
    call()
    return clock() - begin


def measure_lengths(commit: str) -> Iterable[dict[str, Any]]:
    """Yield a row for each layer, pass and length."""
    slow: set[tuple[str, str]] = set()
    for n in LENGTHS:
        x = inputs(n)
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        samples: dict[tuple[str, str], list[float]] = {}
        for name, make in LAYERS.items():
            layer = make()
            for kind, run in PASSES.items():
                if (name, kind) in slow or (n > MATH_LENGTHS and "memory" in name):
                    continue
                calls[name, kind] = partial(run, layer, x)
                samples[name, kind] = []
                if seconds(calls[name, kind]) > SLOW_SECONDS:
                    slow.add((name, kind))
        for number in range(ROUNDS):
            for key, call in calls.items():
                if key not in slow or number < 1:
                    samples[key].append(seconds(call))
        for (name, kind), times in samples.items():
            peak: float | str = ""
            if kind == "training" and n in PEAK_LENGTHS and torch.get_num_threads() == 1:
                peak = peak_mib(TrainingStep(name, n))
            yield {
                "layer": name,
                "pass": kind,
                "n": n,
                "batch": x.shape[0],
                "ms": f"{1e3 * statistics.median(times):.4g}",
                "peak_mib": peak if isinstance(peak, str) else f"{peak:.4g}",
                **provenance(commit),
            }


def filled_state(model: LambdaLM, batch: int, position: int) -> LanguageModelState:
    """Return the state of a model at a position; that of attention has random keys and values."""
    state = model.initial_state(batch)
    if model.operator != "attention":
        return state
    shape = (batch, HEADS, position, DIM // HEADS)
    positions, length = torch.arange(position).expand(batch, -1), torch.full((batch,), position)
    layers = []
    for layer in state.layers:
        keys, values = torch.randn(shape), torch.randn(shape)
        layers.append(replace(layer, keys=keys, values=values, positions=positions, length=length))
    return replace(state, layers=tuple(layers), length=length)


def measure_training(commit: str) -> Iterable[dict[str, Any]]:
    """Yield the time of a training step of each model of `accuracy.py language`, which take turns."""
    torch.manual_seed(0)
    tokens = torch.randint(65, (12, 65))
    calls: dict[str, Callable[[], object]] = {}
    for name, (model_name, *changes) in TEXT_MODELS.items():
        config = override(get_recipe("text").with_model(model_name), *changes)
        model = config.network(65)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        calls[name] = partial(training_step, model, optimizer, tokens)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(TRAINING_ROUNDS + 1):
        for name, call in calls.items():
            sample = seconds(call)
            if number:
                times[name].append(sample)
    for name, samples in times.items():
        ms = 1e3 * statistics.median(samples)
        yield {"arm": name, "ms": f"{ms:.4g}", "rounds": len(samples), **provenance(commit)}


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    """Train a language model on windows `[b, n + 1]`, each token predicted from those before it."""
    optimizer.zero_grad()
    logits = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()


@torch.inference_mode()
def measure_decoding(commit: str) -> Iterable[dict[str, Any]]:
    """Yield a row for each model, batch and position."""
    torch.manual_seed(0)
    models = {
        name: LambdaLM(65, dim=DIM, depth=4, num_heads=HEADS, operator=name, **options).eval()
        for name, options in MODELS.items()
    }
    for batch, positions in DECODED.items():
        tokens = torch.randint(65, (STEPS, batch))
        for position in positions:
            times: dict[str, list[float]] = {name: [] for name in models}
            sizes: dict[str, int] = {}
            for number in range(ROUNDS + 1):
                for name, model in models.items():
                    state = filled_state(model, batch, position)
                    sizes[name] = state.nbytes
                    _, state = model.step(tokens[0], state)  # the first step may enlarge a buffer
                    begin = clock()
                    for token in tokens:
                        _, state = model.step(token, state)
                    if number:
                        times[name].append((clock() - begin) / STEPS)
                    del state
                    gc.collect()
            for name, values in times.items():
                yield {
                    "model": name,
                    "batch": batch,
                    "position": position,
                    "ms_per_step": f"{1e3 * statistics.median(values):.4g}",
                    "tokens_per_second": f"{batch / statistics.median(values):.4g}",
                    "state_bytes": sizes[name],
                    **provenance(commit),
                }


def measure_step(commit: str) -> Iterable[dict[str, Any]]:
    """Yield the time of a step of one layer and of a language model by each program and batch size."""
    # It needs onnxruntime.
    from benchmarks.sequences.stepping import step_rows

    for row in step_rows(LAYERS["lambda"](), DIM, seconds):
        yield row | provenance(commit)


@torch.inference_mode()
def measure_stream(commit: str) -> Iterable[dict[str, Any]]:
    """Yield rows of a model that reads a million positions in chunks, one at each power of two."""
    torch.manual_seed(0)
    model = LambdaLM(65, dim=DIM, depth=4, num_heads=HEADS, **MODELS["lambda"]).eval()
    state, position, begin, wanted = model.initial_state(1), 0, clock(), CHUNK
    while position < 1_000_000:
        tokens = torch.randint(65, (1, min(CHUNK, 1_000_000 - position)))
        logits, state = model(tokens, state=state, return_state=True)
        assert logits.isfinite().all()
        position += tokens.shape[1]
        if position >= wanted or position == 1_000_000:
            wanted *= 2
            yield {
                "position": position,
                "seconds": f"{clock() - begin:.4g}",
                "state_bytes": state.nbytes,
                "peak_mib": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.5g}",
                **provenance(commit),
            }


@torch.inference_mode()
def measure_drift(commit: str) -> Iterable[dict[str, Any]]:
    """Yield the errors of output and state of a layer in float32 after powers of ten of single steps."""
    torch.manual_seed(0)
    layer = LambdaLayer1d(32, dim_k=DIM_K, num_heads=HEADS, scope=SCOPE, causal=True, norm="rms")
    layers = {torch.float32: layer, torch.float64: copy.deepcopy(layer).double()}
    states = {dtype: each.initial_state(1) for dtype, each in layers.items()}
    outputs: dict[torch.dtype, Tensor] = {}
    x, begin = torch.randn(4096, 1, 32), clock()
    for position in range(1, 1_000_001):
        for dtype, each in layers.items():
            outputs[dtype], states[dtype] = each.step(x[position % len(x)].to(dtype), states[dtype])
        if position in (10**2, 10**3, 10**4, 10**5, 10**6):
            low, high = states[torch.float32], states[torch.float64]
            pairs = {
                "output": (outputs[torch.float32], outputs[torch.float64]),
                "summary": (low.summary, high.summary),
            }
            errors = {
                f"{name}_error": f"{float((a - b).norm() / b.norm()):.2e}"
                for name, (a, b) in pairs.items()
                if a is not None and b is not None
            }
            assert low.log_norm is not None
            assert high.log_norm is not None
            errors["log_norm_error"] = f"{float((low.log_norm - high.log_norm).abs().max()):.2e}"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield {
                "position": position,
                "seconds": f"{clock() - begin:.4g}",
                **errors,
                "peak_mib": f"{peak:.5g}",
                **provenance(commit),
            }


EXPERIMENTS = {
    "length": measure_lengths,
    "training": measure_training,
    "decoding": measure_decoding,
    "step": measure_step,
    "stream": measure_stream,
    "drift": measure_drift,
}


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file as they are measured, and print them."""
    for row in rows:
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), flush=True)


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of an experiment."""
    with (HERE / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def length_table() -> list[str]:
    """Return the table of one layer in training / inference: its times, and its speed over attention."""
    lines = [
        "| length | lambda, ms, 1 thread | times as fast as attention, 1 thread | 2 threads |",
        "|---:|---:|---:|---:|",
    ]
    times = {
        (row["threads"], row["pass"], int(row["n"]), row["layer"]): float(row["ms"]) for row in read("length")
    }
    for n in LENGTHS:
        cells = []
        for threads in ("1", "2"):
            ratios = []
            for kind in PASSES:
                others = [times.get((threads, kind, n, name)) for name in LAYERS if name != "lambda"]
                ran, own = [ms for ms in others if ms is not None], times.get((threads, kind, n, "lambda"))
                ratios.append(f"{min(ran) / own:.1f}" if ran and own is not None else "-")
            cells.append(" / ".join(ratios))
        measured = [f"{times['1', kind, n, 'lambda']:.2f}" for kind in PASSES]
        lines.append(f"| {n:,} | {' / '.join(measured)} | {cells[0]} | {cells[1]} |")
    return lines


def decoding_table() -> list[str]:
    """Return the table of tokens per second and bytes of state."""
    rows = [row for row in read("decoding") if row["threads"] == "1"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines = [f"| batch, position | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for batch, position in dict.fromkeys((row["batch"], row["position"]) for row in rows):
        own = {row["model"]: row for row in rows if (row["batch"], row["position"]) == (batch, position)}
        cells = [
            f"{float(own[name]['tokens_per_second']):,.0f} ({int(own[name]['state_bytes']) / 1024:,.0f})"
            for name in names
        ]
        lines.append(f"| {batch}, {int(position):,} | {' | '.join(cells)} |")
    return lines


def training_table() -> list[str]:
    """Return the table of training steps of the language models."""
    rows = read("training")
    lines = ["| arm | ms, 1 thread | ms, 2 threads |", "|---|---:|---:|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        ms = {row["threads"]: float(row["ms"]) for row in rows if row["arm"] == arm}
        lines.append(f"| {arm} | {ms['1']:.1f} | {ms['2']:.1f} |")
    return lines


COLOURS = {
    "lambda": "#c2410c",
    "attention": "#1d4ed8",
    "attention, no positions": "#60a5fa",
    "attention, map in memory": "#93c5fd",
    "linear_attention": "#15803d",
    "gru": "#6b7280",
}


def draw() -> None:
    """Draw length.png and decoding.png from the rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in read("length") if row["threads"] == "1"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, kind in zip(axes, PASSES, strict=False):
        for name, colour in COLOURS.items():
            chosen = [row for row in rows if row["layer"] == name and row["pass"] == kind]
            if chosen:
                lengths = [int(row["n"]) for row in chosen]
                costs = [1e3 * float(row["ms"]) / (int(row["n"]) * int(row["batch"])) for row in chosen]
                axis.plot(lengths, costs, "o-", ms=3, color=colour, label=name)
        axis.set_title(f"{kind} (µs per position)", fontsize=10)
    for name, colour in COLOURS.items():
        chosen = [row for row in rows if row["layer"] == name and row["peak_mib"]]
        if chosen:
            lengths = [int(row["n"]) for row in chosen]
            peaks = [1024 * float(row["peak_mib"]) / (int(row["n"]) * int(row["batch"])) for row in chosen]
            axes[2].plot(lengths, peaks, "o-", ms=3, color=colour)
    axes[2].set_title("peak memory, training (KiB per position)", fontsize=10)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("length")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "length.png", dpi=120)

    rows = [row for row in read("decoding") if row["threads"] == "1"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, batch in zip(axes, ("1", "32"), strict=False):
        for name in MODELS:
            chosen = [row for row in rows if row["model"] == name and row["batch"] == batch]
            speeds = [float(row["tokens_per_second"]) for row in chosen]
            axis.plot([int(row["position"]) for row in chosen], speeds, "o-", color=COLOURS[name], label=name)
        axis.set_title(f"tokens per second, batch {batch}", fontsize=10)
    for name in MODELS:
        chosen = [row for row in rows if row["model"] == name and row["batch"] == "1"]
        sizes = [int(row["state_bytes"]) / 1024 for row in chosen]
        axes[2].plot([int(row["position"]) for row in chosen], sizes, "o-", color=COLOURS[name])
    axes[2].set_title("state of one sequence (KiB)", fontsize=10)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("position")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "decoding.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", choices=list(EXPERIMENTS))
    parser.add_argument("commit", nargs="?", help="commit of the measured code")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="draw the figures and print the tables")
    options = parser.parse_args()
    if options.experiment:
        if options.commit is None:
            parser.error("name the commit")
        torch.set_num_threads(options.threads)
        keep_freed_memory()  # as `lambdanets train` does
        append(HERE / f"{options.experiment}.csv", EXPERIMENTS[options.experiment](options.commit))
    if options.draw:
        draw()
        print("\n".join([*length_table(), "", *decoding_table(), "", *training_table()]))


if __name__ == "__main__":
    main()
