"""Multi-query associative recall against the size of the state: `python -m benchmarks.sequences.recall`.

A sequence has pairs of a key and a value, then keys again, whose values are the targets (Zoology, Arora et
al., 2023). A cell is one arm with one seed. recall.csv gets a row for each finished cell; a stopped run goes
on with the same command, and an interrupted cell begins again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.bench.records import NONE, Machine, provenance, read_rows, write_rows
from lambdanets.models import LambdaLM
from lambdanets.nn import Convolution1d

HERE = Path(__file__).parent
ROWS = HERE / "recall.csv"
BLANK, IGNORED = 0, -100
"""Token without meaning, and the target at positions that ask nothing."""

VOCABULARY, POWER = 128, 0.01
PAIRS = (2, 4, 8, 16, 32)
"""Pairs of a sequence: a training batch takes one of these numbers, the evaluation each."""
POSITIONS = 4
"""Positions of a sequence for each pair: half of the positions after the pairs are queries."""
DIM, DEPTH, HEADS, MLP_DIM, TAPS = 64, 2, 4, 64, 4
STEPS, TOKENS, LR, WARM_UP = 1500, 1024, 5e-3, 100
SEEDS = (0, 1, 2)
EVALUATION_SEED, QUERIES = 1_000_000, 8192


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
        suffix, words = ("_conv", ", short convolution") if convolved else ("", "")
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
        arm, family, seed: The cell.
        operator, options: Of the layers.
        parameters: Number of parameters.
        state_elements: Floating-point numbers of one layer's state of one sequence; for attention after a
            sequence with the most pairs.
        state_bytes: `nbytes` of this state, with its integers.
        steps, tokens, lr: Of the training; tokens of a batch.
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
    def cell(self) -> tuple[str, int]:
        return self.arm, self.seed


def recall_batch(
    batch: int,
    *,
    pairs: int,
    length: int,
    vocabulary: int,
    power: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw sequences: keys and values in turn, then every key once more, between blanks.

    Keys are tokens from 1 to `vocabulary // 2 - 1`, values those above; neither occurs twice in a sequence.
    The second occurrence of a key is at an even distance g = 0, 1, ... of two positions from the last pair,
    drawn without replacement with a probability proportional to (g + 1)^(power - 1).

    Args:
        batch: Sequences, b.
        pairs: Pairs of a sequence.
        length: Positions, n: even, and at least 4 `pairs`.
        vocabulary: Number of tokens.
        power: Exponent of the distances: 0.01 in Zoology, where most queries come early; 1 is uniform.
        generator: Source of the random numbers.

    Returns:
        Tokens `[b, n]`, and targets `[b, n]`: the value at the second occurrence of a key, else `IGNORED`.

    Raises:
        ValueError: The sequence is too short, or the vocabulary too small.
    """
    keys_known, half = vocabulary // 2 - 1, vocabulary // 2
    if length % 2 or length < 4 * pairs:
        raise ValueError(f"length must be even and at least 4 * pairs = {4 * pairs}, got {length}")
    if pairs > keys_known:
        raise ValueError(f"vocabulary must be at least {2 * pairs + 2} for {pairs} pairs, got {vocabulary}")
    keys = 1 + _distinct(torch.ones(keys_known), batch, pairs, generator)
    values = half + _distinct(torch.ones(vocabulary - half), batch, pairs, generator)
    gaps = torch.arange(1, (length - 2 * pairs) // 2 + 1, dtype=torch.float64)
    queries = 2 * pairs + 2 * _distinct(gaps ** (power - 1), batch, pairs, generator)
    tokens = torch.full((batch, length), BLANK)
    targets = torch.full((batch, length), IGNORED)
    tokens[:, : 2 * pairs] = torch.stack([keys, values], dim=2).flatten(1)
    tokens.scatter_(1, queries, keys)
    targets.scatter_(1, queries, values)
    return tokens, targets


def _distinct(weights: Tensor, batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different indices of the weights in each row, `[batch, count]`."""
    return torch.multinomial(weights.expand(batch, -1), count, generator=generator)


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


def run_cell(name: str, seed: int, steps: int = STEPS) -> RecallRow:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences.recall", description=__doc__)
    parser.add_argument("--report", action="store_true", help="draw from recall.csv, run nothing")
    arguments = parser.parse_args()
    rows = read_rows(ROWS, RecallRow, "recall") if ROWS.exists() else []
    done = {row.cell for row, _ in rows}
    for seed, name in () if arguments.report else product(SEEDS, ARMS):
        if (name, seed) in done:
            continue
        unmeasured = Machine(gflops=NONE, gflops_cpu=NONE, copy_gbs=NONE)
        where = provenance(torch.float32, "cpu", torch.get_num_threads(), unmeasured)
        row = run_cell(name, seed)
        rows.append((row, where))
        write_rows(ROWS, RecallRow, rows)
        print(
            f"{name}, seed {seed}: {100 * row.accuracy_32:.1f} % of the queries to {PAIRS[-1]} pairs, "
            f"{row.loss_32:.3f} nats, {row.cpu_seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
