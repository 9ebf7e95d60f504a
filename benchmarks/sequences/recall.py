"""Multi-query associative recall against the size of the state: `python -m benchmarks.sequences.recall`.

A sequence has pairs of a key and a value, then keys again, whose values are the targets (Zoology, Arora et
al., 2023). A cell is one arm with one seed and a number of steps. recall.csv gets a row for each finished
cell; a stopped run goes on with the same command, and an interrupted cell begins again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.bench.records import NONE, Machine, Provenance, provenance, read_rows, write_rows
from lambdanets.bench.report import INK, OURS, QUIET, SOFT, Table, page, save, threads
from lambdanets.models import LambdaLM
from lambdanets.nn import Convolution1d

from .recall_task import IGNORED, recall_batch

HERE = Path(__file__).parent
ROWS = HERE / "recall.csv"
VOCABULARY, POWER = 128, 0.01
PAIRS = (2, 4, 8, 16, 32)
"""Pairs of a sequence: a training batch takes one of these numbers, the evaluation each."""
POSITIONS = 4
"""Positions of a sequence for each pair: half of the positions after the pairs are queries."""
DIM, DEPTH, HEADS, MLP_DIM, TAPS = 64, 2, 4, 64, 4
STEPS, TOKENS, LR, WARM_UP = 1500, 1024, 5e-3, 100
SEEDS = (0, 1, 2)
EVALUATION_SEED, QUERIES = 1_000_000, 8192

CONVOLVED = ", short convolution"  # end of the name of a family
STYLES = {
    "softmax attention": ("#33628f", "D"),
    "linear attention": ("#6a9bc9", "v"),
    "GRU": ("#a07d43", "s"),
    "lambda, shared keys": ("#e0917f", "o"),
    "lambda, keys per head": (OURS, "^"),
}
"""Colour and marker of each family."""
IN_PAIRS_PANEL = {
    "attention_conv": "attention",
    "lambda_k32_conv": "lambda, k 32",
    "lambda_k16_conv": "lambda, k 16",
    "linear_attention_conv": "linear att.",
    "gru_conv": "GRU",
}


@dataclass(frozen=True)
class Arm:
    """A contender: the operator of the blocks of `LambdaLM`.

    Attributes:
        family: Name of its line in the figure.
        operator: Name in `SEQUENCE_OPERATORS`.
        options: Of the layer.
        convolved: Whether a `ConvolvedLayer` is around the layer; lambda layers have an option instead.
    """

    family: str
    operator: str
    options: dict[str, Any] = field(default_factory=dict)
    convolved: bool = False


def _arms() -> dict[str, Arm]:
    """Return the arms in the order in which they are run."""
    counterparts = {
        "attention": "softmax attention",
        "linear_attention": "linear attention",
        "gru": "GRU",
    }
    arms = {}
    for convolved in (True, False):
        suffix, words = ("_conv", CONVOLVED) if convolved else ("", "")
        for operator, title in counterparts.items():
            arms[operator + suffix] = Arm(title + words, operator, convolved=convolved)
        for dim_k, key_heads in product((16, 64, 32), (1, HEADS)):
            keys, title = ("", "shared keys") if key_heads == 1 else ("_heads", "keys per head")
            options: dict[str, Any] = {"scope": 4, "dim_k": dim_k, "key_heads": key_heads}
            options |= {"short_conv": TAPS} if convolved else {}
            arms[f"lambda_k{dim_k}{keys}{suffix}"] = Arm(f"lambda, {title}{words}", "lambda", options)
    return arms


ARMS = _arms()


class ConvolvedLayer(nn.Module):
    """A causal layer after a causal depthwise convolution of its input, for layers that have none."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.convolution = Convolution1d(DIM, taps=TAPS, depthwise=True)
        self.layer = layer

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Map `[b, dim, n]` to `[b, dim, n]`, from the initial state."""
        return self.layer(self.convolution(x))


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """One finished cell.

    Attributes:
        arm, family, seed, steps: The cell.
        operator, options: Of the layers.
        parameters: Number of parameters.
        state_elements: Floating-point numbers of one layer's state of one sequence; for attention after a
            sequence with the most pairs.
        state_bytes: `nbytes` of this state, with its integers.
        tokens, lr: Of the training; tokens of a batch.
        train_loss: Mean of the last tenth of the steps, nats for each query.
        accuracy_2, accuracy_4, ... accuracy_32: Fraction of queries answered right, by the number
            of pairs.
        loss_2, loss_4, ... loss_32: Nats for each query.
        half_accuracy_32: `accuracy_32` after half of the steps.
        cpu_seconds: CPU time of the cell.
    """

    arm: str
    family: str
    seed: int
    operator: str
    options: str
    parameters: int
    state_elements: int
    state_bytes: int
    steps: int
    tokens: int
    lr: float
    train_loss: float
    accuracy_2: float
    accuracy_4: float
    accuracy_8: float
    accuracy_16: float
    accuracy_32: float
    loss_2: float
    loss_4: float
    loss_8: float
    loss_16: float
    loss_32: float
    half_accuracy_32: float
    cpu_seconds: float

    @property
    def cell(self) -> tuple[str, int, int]:
        return self.arm, self.seed, self.steps


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, in the second half a cosine to 0."""
    rising = (step + 1) / min(WARM_UP, steps // 2)
    falling = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * step / steps - 1)))
    return min(rising, falling)


def build_model(arm: Arm) -> LambdaLM:
    """Return the model of an arm with new weights."""
    model = LambdaLM(
        VOCABULARY,
        dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        operator=arm.operator,
        mlp_dim=MLP_DIM,
        options=arm.options,
    )
    if arm.convolved:
        for block in model.blocks:
            block.operator = ConvolvedLayer(block.operator)  # pyright: ignore[reportArgumentType]
    return model


def run_cell(name: str, seed: int, steps: int) -> RecallRow:
    """Train and evaluate an arm."""
    begun = time.process_time()
    arm = ARMS[name]
    torch.manual_seed(seed)
    model = build_model(arm)
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    half = NONE
    for step in range(steps):
        pairs = PAIRS[int(torch.randint(len(PAIRS), (), generator=generator))]
        logits, wanted = _answers(model, pairs, generator)
        loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step + 1 == steps // 2:
            half, _ = evaluate(model, PAIRS[-1])
    last = losses[-max(1, steps // 10) :]
    found = {pairs: evaluate(model, pairs) for pairs in PAIRS}
    elements, size = state_size(model)
    return RecallRow(
        arm=name,
        family=arm.family,
        seed=seed,
        operator=arm.operator,
        options=", ".join(f"{key}={value}" for key, value in arm.options.items()),
        parameters=model.num_parameters,
        state_elements=elements,
        state_bytes=size,
        steps=steps,
        tokens=TOKENS,
        lr=LR,
        train_loss=sum(last) / len(last),
        **{f"accuracy_{pairs}": accuracy for pairs, (accuracy, _) in found.items()},
        **{f"loss_{pairs}": loss for pairs, (_, loss) in found.items()},
        half_accuracy_32=half,
        cpu_seconds=time.process_time() - begun,
    )


def _answers(model: LambdaLM, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a batch; return the logits at its queries `[m, vocabulary]` and their targets `[m]`."""
    length = POSITIONS * pairs
    tokens, targets = recall_batch(
        TOKENS // length, pairs=pairs, length=length, vocabulary=VOCABULARY, power=POWER, generator=generator
    )
    asked = targets != IGNORED
    return model(tokens)[asked], targets[asked]


@torch.no_grad()
def evaluate(model: LambdaLM, pairs: int) -> tuple[float, float]:
    """Return the accuracy and the loss on `QUERIES` queries that are the same for every cell."""
    model.eval()
    generator = torch.Generator().manual_seed(EVALUATION_SEED + pairs)
    right, asked, loss = 0, 0, 0.0
    while asked < QUERIES:
        logits, wanted = _answers(model, pairs, generator)
        right += int((logits.argmax(-1) == wanted).sum())
        loss += F.cross_entropy(logits, wanted, reduction="sum").item()
        asked += len(wanted)
    model.train()
    return right / asked, loss / asked


@torch.no_grad()
def state_size(model: LambdaLM) -> tuple[int, int]:
    """Return the floating-point numbers and the bytes of one layer's state after the longest sequence."""
    operator: Any = model.blocks[0].operator
    layers = [operator.convolution, operator.layer] if isinstance(operator, ConvolvedLayer) else [operator]
    x = torch.zeros(1, DIM, POSITIONS * PAIRS[-1])
    states = [layer(x, return_state=True)[1] for layer in layers]
    tensors = [tensor for state in states for tensor in state.tensors().values()]
    return sum(x.numel() for x in tensors if x.is_floating_point()), sum(state.nbytes for state in states)


def mean(rows: Sequence[RecallRow], column: str) -> float:
    """Return the mean of a column, accuracies in %."""
    scale = 100 if "accuracy" in column else 1
    return scale * sum(getattr(row, column) for row in rows) / len(rows)


def by_arm(rows: Sequence[RecallRow]) -> dict[str, list[RecallRow]]:
    """Return the rows of each arm that has any, in the order of `ARMS`."""
    grouped = {name: [row for row in rows if row.arm == name] for name in ARMS}
    return {name: own for name, own in grouped.items() if own}


def summary(rows: Sequence[RecallRow], steps: int) -> Table:
    """Return the means over seeds, the smallest states first."""
    body = []
    for name, own in sorted(
        by_arm([row for row in rows if row.steps == steps]).items(),
        key=lambda item: item[1][0].state_elements,
    ):
        accuracies = sorted(100 * row.accuracy_32 for row in own)
        body.append(
            (
                f"`{name}`",
                f"{own[0].state_elements:,}",
                f"{own[0].parameters:,}",
                str(len(own)),
                *(f"{mean(own, f'accuracy_{pairs}'):.1f}" for pairs in PAIRS),
                f"{accuracies[0]:.1f} to {accuracies[-1]:.1f}",
                f"{mean(own, 'loss_32'):.3f}",
                f"{mean(own, 'half_accuracy_32'):.1f}",
                f"{mean(own, 'cpu_seconds'):.0f}",
            )
        )
    headings = (
        *("arm", "state", "parameters", "seeds"),
        *(f"{pairs} pairs" for pairs in PAIRS),
        *("32 pairs, range", "32 pairs, nats", "32 pairs, half of the steps", "CPU s"),
    )
    notes = (
        "Accuracy in %, of guessing among the values of a sequence 100 / pairs. State: floating-point "
        "elements of one layer and sequence, for attention at the end of a sequence with 32 pairs.",
    )
    title = f"Queries answered right after {steps:,} steps"
    return Table(title=title, headings=headings, rows=tuple(body), notes=notes)


def draw_figure(rows: Sequence[RecallRow], source: str) -> list[Path]:
    """Draw accuracy against the size of the state, and against the number of pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = by_arm([row for row in rows if row.steps == STEPS])
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    _draw_states(left, arms)
    _draw_pairs(right, arms)
    for axes in (left, right):
        axes.set_ylim(-3, 108)
        axes.grid(color=QUIET, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=8.5, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
    figure.suptitle("Multi-query associative recall", x=0.01, ha="left", fontsize=12, color=INK)
    figure.supxlabel(source, x=0.01, ha="left", fontsize=6.5, color=SOFT)
    return [save(figure, HERE / f"recall.{kind}") for kind in ("png", "svg")]


def _draw_states(axes: Any, arms: dict[str, list[RecallRow]]) -> None:
    """Draw a point for each arm, filled with a short convolution, and a small one for each seed."""
    lines: dict[str, list[list[RecallRow]]] = {}
    for own in arms.values():
        lines.setdefault(own[0].family, []).append(own)
    for family, points in lines.items():
        title, convolution, _ = family.partition(CONVOLVED)
        colour, marker = STYLES[title]
        points.sort(key=lambda own: own[0].state_elements)
        x = [own[0].state_elements for own in points]
        y = [mean(own, "accuracy_32") for own in points]
        if not convolution:
            axes.scatter(x, y, s=26, marker=marker, facecolors="white", edgecolors=colour, zorder=3)
            continue
        if title == "softmax attention":
            axes.axhline(y[0], color=colour, linestyle="--", linewidth=1.2, zorder=1)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.6, label=title, zorder=3)
        for own, size, height in zip(points, x, y, strict=True):
            seeds = [100 * row.accuracy_32 for row in own]
            axes.scatter([size] * len(own), seeds, s=10, color=colour, alpha=0.45, zorder=2)
            if own[0].operator == "lambda":
                depth = own[0].arm.split("_")[1].replace("k", "k ")
                offset = (6, -13) if "shared" in title else (0, 8)
                axes.annotate(
                    depth, (size, height), offset, textcoords="offset points", fontsize=8, color=colour,
                    ha="left" if "shared" in title else "center",
                )  # fmt: skip
    axes.plot([], [], "o", color=SOFT, markerfacecolor="white", label="without the short convolution")
    axes.axhline(
        100 / PAIRS[-1], color=SOFT, linestyle=":", linewidth=1, zorder=1, label="guessing among the values"
    )
    axes.set_xscale("log", base=2)
    axes.set_xlim(48, 24_000)
    axes.set_xticks([2**i for i in range(6, 15, 2)], [f"{2**i:,}" for i in range(6, 15, 2)])
    axes.set_xlabel("elements of the state of a layer", fontsize=9, color=INK)
    axes.set_ylabel("queries answered right, %", fontsize=9, color=INK)
    axes.set_title(f"{PAIRS[-1]} pairs", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0, 0.45))


def _draw_pairs(axes: Any, arms: dict[str, list[RecallRow]]) -> None:
    for name, text in IN_PAIRS_PANEL.items():
        own = arms.get(name, [])
        if own:
            colour, marker = STYLES[own[0].family.removesuffix(CONVOLVED)]
            y = [mean(own, f"accuracy_{pairs}") for pairs in PAIRS]
            axes.plot(PAIRS, y, color=colour, marker=marker, markersize=5, linewidth=1.6)
            axes.annotate(
                text, (PAIRS[-1], y[-1]), (8, 0), textcoords="offset points", va="center", fontsize=8.5,
                color=colour, annotation_clip=False,
            )  # fmt: skip
    axes.plot(PAIRS, [100 / pairs for pairs in PAIRS], color=SOFT, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(PAIRS, [str(pairs) for pairs in PAIRS])
    axes.set_xlabel("pairs of a sequence", fontsize=9, color=INK)
    axes.set_title("with the short convolution", fontsize=10, color=INK)


def report(rows: Sequence[tuple[RecallRow, Provenance]]) -> None:
    """Write the table and the figure."""
    cells = [row for row, _ in rows]
    where = rows[0][1]
    days = " to ".join(dict.fromkeys(each.date for each in (where, rows[-1][1])))
    source = (
        f"{where.processor}, {threads(where.threads)}; lambdanets {where.lambdanets}, torch {where.torch}, "
        f"python {where.python}; {where.system}; {days}"
    )
    figures = [path.name for path in draw_figure(cells, source) if path.suffix == ".png"]
    tables = [summary(cells, steps) for steps in sorted({row.steps for row in cells})]
    text = page("python -m benchmarks.sequences.recall", [source], tables, figures)
    (HERE / "recall.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences.recall", description=__doc__)
    parser.add_argument(
        "--report", action="store_true", help="write the table and figure of recall.csv, run nothing"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    rows = read_rows(ROWS, RecallRow, "recall") if ROWS.exists() else []
    done = {row.cell for row, _ in rows}
    for seed, name in () if arguments.report else product(arguments.seeds, arguments.arms):
        if (name, seed, arguments.steps) in done:
            continue
        unmeasured = Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE)
        where = provenance(torch.float32, "cpu", torch.get_num_threads(), unmeasured)
        row = run_cell(name, seed, arguments.steps)
        rows.append((row, where))
        write_rows(ROWS, RecallRow, rows)
        print(
            f"{name}, seed {seed}: {100 * row.accuracy_32:.1f} % of the queries to {PAIRS[-1]} pairs, "
            f"{row.loss_32:.3f} nats, {row.cpu_seconds:.0f} s",
            flush=True,
        )
    if rows:
        report(rows)


if __name__ == "__main__":
    main()
