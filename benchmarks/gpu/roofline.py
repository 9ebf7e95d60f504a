"""Operations, bytes and bounds of the position part on a GPU, from sizes alone: docs/roofline.md.

    python benchmarks/gpu/roofline.py

Nothing is run on a device. A multiply-add is two operations; numbers are bfloat16, sums float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM = 2  # bytes of a number
WIDE = 4  # bytes of a sum

# Rates of a card: operations and bytes per second. "measured" before, no rows are here; NVIDIA's.
CARDS = {
    "H200, measured": (790e12, 4.3e12),
    "H100 SXM, published": (989e12, 3.35e12),
}
TENSOR = 4096  # operations of a Hopper SM's tensor cores per clock, bfloat16 dense
SHARED = 128  # bytes of its shared memory per clock
SHARED_OPERAND = 64  # operations per byte that a product of 64 rows reads of its right operand


@dataclass(frozen=True)
class Case:
    """A layer's sizes."""

    name: str
    batch: int
    grid: tuple[int, int]
    scope: int | None
    h: int
    k: int
    v: int

    @property
    def n(self) -> int:
        return math.prod(self.grid)

    @property
    def table(self) -> int:
        return math.prod(self.scope or 2 * size - 1 for size in self.grid)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a context element with an entry, per example."""
        if self.scope is None:
            return self.n**2
        before, after = self.scope // 2, self.scope - 1 - self.scope // 2
        return math.prod(
            sum(min(size - 1, x + after) - max(0, x - before) + 1 for x in range(size)) for size in self.grid
        )

    @property
    def bytes(self) -> int:
        """Inputs read once, the output written once, the table read once."""
        numbers = self.batch * self.n * (self.h * self.k + self.v + self.h * self.v) + self.table * self.k
        return ITEM * numbers

    @property
    def flops(self) -> dict[str, int]:
        """Operations of each order, without padding."""
        h, k, v, pairs = self.h, self.k, self.v, self.batch * self.pairs
        return {
            "lambda": 2 * pairs * k * v + 2 * self.batch * self.n * h * k * v,
            "attention": 2 * pairs * h * (k + v),
            "skewed": 2 * pairs * h * (2 * k + v),
        }

    @property
    def content(self) -> int:
        return 2 * self.batch * self.n * (1 + self.h) * self.k * self.v


CASES = [
    Case("c4 global", 128, (14, 14), None, 4, 16, 64),
    Case("c4 scope 23", 128, (14, 14), 23, 4, 16, 64),
    Case("c4 scope 7", 128, (14, 14), 7, 4, 16, 64),
    Case("c5 global", 128, (7, 7), None, 4, 16, 128),
    Case("c5 scope 7", 128, (7, 7), 7, 4, 16, 128),
    Case("64x64 global", 8, (64, 64), None, 4, 16, 64),
    Case("64x64 scope 23", 8, (64, 64), 23, 4, 16, 64),
    Case("64x64 scope 7", 8, (64, 64), 7, 4, 16, 64),
]


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def work() -> None:
    head = ["case", "pairs per example", "lambda first", "attention", "skewed", "content", "MB", "flops/byte"]
    rows = []
    for case in CASES:
        flops = case.flops
        rows.append(
            [
                case.name,
                f"{case.pairs:,}",
                *(f"{x / 1e9:.2f}" for x in flops.values()),
                f"{case.content / 1e9:.2f}",
                f"{case.bytes / 1e6:.1f}",
                " / ".join(f"{x / case.bytes:.0f}" for x in flops.values()),
            ]
        )
    table(head, rows)


def bounds() -> None:
    head = [
        "case",
        "card",
        "moved",
        "lambda first",
        "attention",
        "skewed",
        "content separately",
        "lambdas stored",
    ]
    rows = []
    for case in CASES:
        for card, (compute, copy) in CARDS.items():
            lambdas = 2 * ITEM * case.batch * case.n * case.k * case.v
            again = ITEM * case.batch * case.n * case.h * (case.k + 2 * case.v)  # q, and y read and written
            rows.append(
                [
                    case.name,
                    card,
                    f"{case.bytes / copy * 1e6:.1f}",
                    *(f"{x / compute * 1e6:.1f}" for x in case.flops.values()),
                    f"{(case.bytes + again) / copy * 1e6:.1f}",
                    f"{(case.bytes + lambdas) / copy * 1e6:.1f}",
                ]
            )
    table(head, rows)


def forms(h: int, k: int, v: int) -> dict[str, tuple[float, float]]:
    """Operations and bytes through shared memory of a form of the kernel, per pair and example."""
    products = {"lambda": 2 * k * v, "attention": 2 * h * (k + v), "skewed": 2 * h * (2 * k + v)}
    read = {order: flops / SHARED_OPERAND for order, flops in products.items()}
    # Of a pair, from the cache (which is the same memory) and into the operand; both serve many.
    embedding, values = 2 * ITEM * k, 2 * ITEM * v
    first, attention, skewed = read["lambda"] + values / 8, read["attention"], read["skewed"] + values / 16
    return {
        "lambda first, 1 example": (products["lambda"], first + embedding),
        "lambda first, 4 examples": (products["lambda"], first + embedding / 4),
        "lambda first, E as a view": (products["lambda"], first),
        "skewed in float32": (products["skewed"], skewed + h * (2 * WIDE + WIDE)),
        "skewed in bfloat16": (products["skewed"], skewed + h * (2 * ITEM + ITEM)),
        "by positions, 4 examples": (
            products["attention"],
            attention + values / 16 + embedding / 4 + h * 2 * ITEM,
        ),
    }


def clocks() -> None:
    head = ["form"]
    columns = [(4, 16, 64), (4, 16, 128), (8, 16, 32), (1, 16, 256)]
    for h, k, v in columns:
        head.append(f"h {h}, k {k}, v {v}")
    rows = []
    for form in forms(*columns[0]):
        row = [form]
        for sizes in columns:
            flops, moved = forms(*sizes)[form]
            tensor, shared = flops / TENSOR, moved / SHARED
            row.append(f"{tensor:.2f} / {shared:.2f}{' *' if shared > tensor else ''}")
        rows.append(row)
    table(head, rows)


def fetched() -> None:
    """What the programs fetch of the table and of the values, from the second-level cache."""
    head = ["program", "examples", "positions", "v 64", "v 128"]
    rows = []
    for name, examples, positions in (
        ("lambda first", 2, 8),
        ("lambda first", 4, 8),
        ("by positions", 2, 16),
        ("by positions", 4, 16),
    ):
        row = [name, str(examples), str(positions)]
        for v in (64, 128):
            h, k = 4, 16
            flops = 2 * k * v if name == "lambda first" else 2 * h * (k + v)
            moved = ITEM * (k / examples + v / positions)
            row.append(f"{moved:.0f} bytes, {flops / moved:.0f} flops/byte")
        rows.append(row)
    table(head, rows)


def tiles() -> None:
    """What a program holds: sums and maps in registers, operands of one step in shared memory."""
    head = ["tile", "sums, KiB", "map, KiB", "registers per thread", "operands, KiB"]
    rows = []
    h, k = 4, 16
    positions, context, threads, v = 8, 32, 256, 64
    for examples in (2, 4):
        sums = WIDE * examples * positions * k * v
        operands = ITEM * context * (positions * k + examples * v)
        name = f"lambda first: {examples} b, {positions} n, {context} m, {threads} threads"
        rows.append(_tile(name, sums, 0, threads, operands))
    for examples, positions, context, threads in ((4, 16, 32, 256), (4, 16, 16, 128), (2, 16, 32, 128)):
        sums = WIDE * examples * h * positions * v
        held = WIDE * examples * h * positions * context
        operands = ITEM * context * (positions * k + examples * v) + held // 2
        name = f"by positions: {examples} b, {positions} n, {context} m, {threads} threads"
        rows.append(_tile(name, sums, held, threads, operands))
    table(head, rows)


def _tile(name: str, sums: int, held: int, threads: int, operands: int) -> list[str]:
    registers = (sums + held) / WIDE / threads
    return [
        name,
        *(f"{x / 1024:.0f}" for x in (sums, held)),
        f"{registers:.0f}",
        f"{operands / 1024:.1f}",
    ]


def flash() -> None:
    """Operations beside those of softmax attention of equal heads and value depth, forward."""
    head = ["case", "attention", "skewed", "lambda first", "softmax attention", "its exponentials, million"]
    rows = []
    for case in CASES:
        if case.scope is None:
            softmax = 4 * case.batch * case.n**2 * case.h * case.v
            flops = case.flops
            exponentials = case.batch * case.h * case.n**2
            names = ("attention", "skewed", "lambda")
            rows.append(
                [
                    case.name,
                    *(f"{flops[name] / 1e9:.2f}" for name in names),
                    f"{softmax / 1e9:.2f}",
                    f"{exponentials / 1e6:.0f}",
                ]
            )
    table(head, rows)


if __name__ == "__main__":
    for title, part in (
        ("Work", work),
        ("Bounds", bounds),
        ("Clocks", clocks),
        ("Fetched", fetched),
        ("Tiles", tiles),
        ("Softmax attention", flash),
    ):
        print(f"<!-- {title} -->")
        part()
