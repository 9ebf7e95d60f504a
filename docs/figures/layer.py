"""Draws the lambda layer: `python docs/figures/layer.py` writes layer.svg and layer.png beside it.

The cells are computed: this is one small layer (context 3x3, k 4, v 5, h 2, u 1). Every product stands below
its right factor and beside its left one, as in a multiplication of matrices done by hand.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

SIDE, DIM_K, DIM_V, HEADS = 3, 4, 5, 2
QUERY = (1, 0)  # row and column of the query that is drawn
WIDTH, HEIGHT, PER_INCH = 82.0, 64.0, 8.2
CELL = 1.3
MONO = "DejaVu Sans Mono"
PROJECTION = r"$1{\times}1$ projection"
X_KEYS, X_LAMBDAS = 18.5, 35.0
Y_VALUES, Y_CONTENT, Y_POSITION = 43.1, 29.2, 14.1

INK, FAINT, BAND = "#20262e", "#68717d", "#e9edf1"
KEYS, VALUES, POSITIONS, QUERIES = "#d9822b", "#2b9a77", "#3f6fb5", "#b03a6f"
LAMBDAS, OUTPUTS, PIXELS, MAP = "#6d5aa8", "#4a5260", "#8a939e", "#c0392b"


def main() -> None:
    mpl.rcParams |= {
        "font.family": "STIXGeneral",
        "mathtext.fontset": "stix",
        "svg.fonttype": "path",
        "svg.hashsalt": "lambdanets",
    }
    figure = Figure(figsize=(WIDTH / PER_INCH, HEIGHT / PER_INCH))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.axis("off")
    box(axes, 0.4, 0.4, WIDTH - 0.8, HEIGHT - 0.8, face="white", edge="#d5d9de")
    numbers = Numbers()
    context_to_lambdas(axes, numbers)
    lambdas_to_outputs(axes, numbers)
    attention(axes, numbers)
    here = Path(__file__).parent
    figure.savefig(here / "layer.svg", transparent=True, metadata={"Date": None})
    figure.savefig(here / "layer.png", transparent=True, dpi=200)


class Numbers:
    """The tensors of the picture, for one example; `*_n` belong to the query that is drawn."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        m = SIDE * SIDE
        self.pixels, self.inputs = rng.uniform(size=(2, SIDE, SIDE))
        self.k = rng.normal(size=(m, DIM_K))
        self.kbar = np.exp(1.2 * self.k)
        self.kbar /= self.kbar.sum(0)
        self.v = rng.normal(size=(m, DIM_V))
        self.table = rng.normal(scale=1 / 3, size=(2 * SIDE - 1, 2 * SIDE - 1, DIM_K))
        self.q_n = rng.normal(size=(HEADS, DIM_K))
        self.q = rng.normal(size=(m, DIM_K))
        top, left = (SIDE - 1 - place for place in QUERY)
        self.window = (top, left)  # offset position(m) - position(n) stands at offset + SIDE - 1
        self.e_n = self.table[top : top + SIDE, left : left + SIDE].reshape(m, DIM_K)
        self.content = self.kbar.T @ self.v
        self.position_n = self.e_n.T @ self.v
        self.lambda_n = self.content + self.position_n
        self.y_n = self.q_n @ self.lambda_n
        scores = np.exp(self.q @ self.k.T)
        self.map = scores / scores.sum(1, keepdims=True)


def context_to_lambdas(axes: Axes, numbers: Numbers) -> None:
    heading(axes, 4.0, 60.6, "1", "Summarise the context by lambdas")
    # The bands lead the eye from the factors to their product.
    band(axes, X_LAMBDAS, Y_POSITION, DIM_V * CELL, Y_VALUES - Y_POSITION)
    for y in (Y_CONTENT, Y_POSITION):
        band(axes, X_KEYS, y, X_LAMBDAS - X_KEYS, DIM_K * CELL)

    matrix(axes, 4.6, 45.35, numbers.pixels, PIXELS, cell=2.4)
    label(axes, 8.2, 56.0, "context", "m elements", INK)
    matrix(axes, X_LAMBDAS, Y_VALUES, numbers.v, VALUES)
    label(axes, X_LAMBDAS + 3.25, 58.4, "values", "b m v u", VALUES)
    sides(axes, X_LAMBDAS, Y_VALUES, numbers.v, "m", "v")
    arrow(axes, (12.4, 48.95), (X_LAMBDAS - 1.9, 48.95), VALUES)
    note(axes, 14.0, 50.1, PROJECTION + ", batch norm")

    matrix(axes, X_KEYS, Y_CONTENT, numbers.kbar.T, KEYS)
    label(axes, X_KEYS + 5.85, 38.4, "keys, softmax over m", "b m k u", KEYS)
    sides(axes, X_KEYS, Y_CONTENT, numbers.kbar.T, "k", "m")
    arrow(axes, (8.2, 44.7), (X_KEYS - 1.9, Y_CONTENT + 2 * CELL), KEYS, turn=-90)
    note(axes, 9.0, 34.6, PROJECTION)
    matrix(axes, X_LAMBDAS, Y_CONTENT, numbers.content, LAMBDAS)
    sides(axes, X_LAMBDAS, Y_CONTENT, numbers.content, "k", "v")

    x, y, cell = 4.2, 12.7, 1.6
    matrix(axes, x, y, numbers.table[..., 0], POSITIONS, cell=cell)
    top, left = numbers.window
    corner = (x + left * cell, y + (len(numbers.table) - top - SIDE) * cell)
    frame(axes, *corner, SIDE * cell)
    axes.add_patch(Circle((x + (SIDE - 0.5) * cell, y + (SIDE - 0.5) * cell), 0.3, fc=INK, zorder=6))
    middle = Y_POSITION + 2 * CELL
    arrow(axes, (corner[0] + SIDE * cell + 0.35, middle), (X_KEYS - 1.9, middle), POSITIONS)
    label(axes, 8.2, 10.6, "learned table", "*offsets k u", POSITIONS)
    stack(axes, X_KEYS, Y_POSITION, numbers.e_n.T, POSITIONS)
    label(axes, X_KEYS + 5.85, 10.6, "position embeddings", "n m k u", POSITIONS)
    sides(axes, X_KEYS, Y_POSITION, numbers.e_n.T, "k", "m")
    stack(axes, X_LAMBDAS, Y_POSITION, numbers.position_n, LAMBDAS)
    sides(axes, X_LAMBDAS, Y_POSITION, numbers.position_n, "k", "v")


def lambdas_to_outputs(axes: Axes, numbers: Numbers) -> None:
    x_sum, y_sum, x, y, y_out = 59.5, 24.2, 65.5, 21.6, 7.6
    heading(axes, 47.0, 38.6, "2", "Apply a lambda to each query")
    arrow(axes, (X_LAMBDAS + 7.1, Y_CONTENT + 2 * CELL), (x_sum, y_sum + 1.4), LAMBDAS, turn=0)
    label(axes, 44.4, 33.7, "content lambda", "", LAMBDAS, side="left")
    note(axes, 44.4, 30.1, "one, shared by all queries")
    arrow(axes, (X_LAMBDAS + 8.5, Y_POSITION + 2 * CELL), (x_sum, y_sum - 1.4), LAMBDAS, turn=0)
    label(axes, 45.6, 18.6, "position lambdas", "", LAMBDAS, side="left")
    note(axes, 45.6, 15.0, "one for each query")
    axes.add_patch(Circle((x_sum, y_sum), 1.15, fc="white", ec=LAMBDAS, lw=1.6, zorder=8))
    axes.text(x_sum, y_sum - 0.08, "+", size=15, color=LAMBDAS, ha="center", va="center", zorder=9)
    arrow(axes, (x_sum + 1.3, y_sum), (x - 1.9, y_sum), LAMBDAS)

    band(axes, x, y_out, DIM_V * CELL, y - y_out)
    band(axes, 54.0, y_out, x - 54.0, HEADS * CELL)
    stack(axes, x, y, numbers.lambda_n, LAMBDAS)
    label(axes, x + 4, 31.3, "lambdas", "b n k v", LAMBDAS)
    sides(axes, x, y, numbers.lambda_n, "k", "v")
    stack(axes, 54.0, y_out, numbers.q_n, QUERIES)
    stack(axes, x, y_out, numbers.y_n, OUTPUTS)
    matrix(axes, 42.0, 6.5, numbers.inputs, PIXELS, cell=1.6)
    frame(axes, 42.0 + QUERY[1] * 1.6, 6.5 + (SIDE - 1 - QUERY[0]) * 1.6, 1.6)
    label(axes, 44.4, 4.6, "input", "n elements", INK)
    arrow(axes, (47.2, 8.9), (52.0, 8.9), QUERIES)
    note(axes, 42.0, 12.6, PROJECTION + ", batch norm")
    label(axes, 56.6, 4.6, "queries", "b h n k", QUERIES)
    label(axes, x + 3.25, 4.6, "outputs", "b h n v", OUTPUTS)
    sides(axes, 54.0, y_out, numbers.q_n, "h", "k")
    sides(axes, x, y_out, numbers.y_n, "h", "v")


def attention(axes: Axes, numbers: Numbers) -> None:
    box(axes, 47.0, 42.6, 32.0, 19.0, face="#f6f7f9", edge="#e1e4e8")
    x, y, cell = 50.0, 45.2, 0.62
    matrix(axes, x, y, numbers.q, QUERIES, cell=cell)
    matrix(axes, x + 3.3, y + 6.4, numbers.k.T, KEYS, cell=cell)
    matrix(axes, x + 3.3, y, numbers.map, MAP, cell=cell)
    matrix(axes, x + 9.7, y + 6.4, numbers.v, VALUES, cell=cell)
    matrix(axes, x + 9.7, y, numbers.map @ numbers.v, OUTPUTS, cell=cell)
    axes.text(x - 0.9, y + 2.8, "$n$", size=11, color=FAINT, ha="center", va="center")
    axes.text(x + 6.1, y - 0.9, "$m$", size=11, color=FAINT, ha="center", va="center")
    axes.text(65.2, 58.6, "For comparison", size=13, color=INK, weight="bold", va="center")
    for height, words in ((55.9, "Attention contracts $k$"), (54.1, "first and forms a map")):
        axes.text(65.2, height, words, size=11.5, color=INK, va="center")
    axes.text(65.2, 52.3, "b h n m", size=10, color=MAP, va="center", family=MONO)
    for height, words in ((49.3, "Lambdas contract $m$"), (47.5, "first; no map is formed")):
        axes.text(65.2, height, words, size=11.5, color=INK, va="center")
    axes.text(65.2, 45.7, "b n k v", size=10, color=LAMBDAS, va="center", family=MONO)


def matrix(axes: Axes, x: float, y: float, values: np.ndarray, colour: str, cell: float = CELL) -> None:
    """Cells shaded by their values, from nearly white to the full colour; the corner (x, y) is below left."""
    rows, columns = values.shape
    low, high = values.min(), values.max()
    for (row, column), value in np.ndenumerate(values):
        place = (x + column * cell, y + (rows - 1 - row) * cell)
        shade = blend(colour, 0.12 + 0.8 * (value - low) / (high - low))
        axes.add_patch(
            Rectangle(place, cell, cell, fc=shade, ec="white", lw=0.5 if cell < 1 else 0.9, zorder=4)
        )
    axes.add_patch(Rectangle((x, y), columns * cell, rows * cell, fc="none", ec=colour, lw=1.1, zorder=5))


def stack(axes: Axes, x: float, y: float, values: np.ndarray, colour: str) -> None:
    """One matrix for each query: those of the others lie behind."""
    rows, columns = values.shape
    for depth, strength in ((1.4, 0.22), (0.7, 0.38)):
        place = (x + depth, y + depth)
        axes.add_patch(
            Rectangle(
                place, columns * CELL, rows * CELL, fc=blend(colour, strength), ec="white", lw=1.2, zorder=3
            )
        )
    matrix(axes, x, y, values, colour)
    axes.text(
        x + columns * CELL + 1.9, y + 0.3, "$n$", size=11.5, color=FAINT, ha="center", va="center", zorder=8
    )


def frame(axes: Axes, x: float, y: float, side: float) -> None:
    axes.add_patch(Rectangle((x, y), side, side, fc="none", ec=INK, lw=2.0, zorder=6))


def blend(colour: str, strength: float) -> tuple[float, ...]:
    return tuple(1 - strength * (1 - channel) for channel in to_rgb(colour))


def band(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fc=BAND, ec="none", zorder=1))


def box(axes: Axes, x: float, y: float, width: float, height: float, *, face: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc=face, ec=edge, lw=1.0, zorder=0))


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, turn: int | None = None
) -> None:
    """A straight arrow, or one with a right angle that sets out in the direction `turn`, 0 or -90 degrees."""
    route = "arc3" if turn is None else f"angle,angleA={turn},angleB={-90 - turn},rad=6"
    head = "-|>,head_width=2.6,head_length=5"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=route,
            arrowstyle=head,
            color=colour,
            lw=1.6,
            shrinkA=0,
            shrinkB=0,
            zorder=7,
        )
    )


def heading(axes: Axes, x: float, y: float, number: str, words: str) -> None:
    axes.add_patch(Circle((x + 0.2, y), 1.15, fc=INK, ec="none", zorder=3))
    axes.text(
        x + 0.2, y - 0.05, number, size=11, color="white", ha="center", va="center", weight="bold", zorder=4
    )
    axes.text(x + 2.2, y, words, size=14, color=INK, ha="left", va="center", weight="bold")


def label(axes: Axes, x: float, y: float, name: str, shape: str, colour: str, side: str = "center") -> None:
    """A name and, below it, the axes of the tensor in letters."""
    axes.text(x, y, name, size=12.5, color=colour, ha=side, va="center", zorder=8)
    axes.text(x, y - 1.8, shape, size=9.5, color=FAINT, ha=side, va="center", family=MONO, zorder=8)


def note(axes: Axes, x: float, y: float, words: str) -> None:
    axes.text(x, y, words, size=10.5, color=FAINT, ha="left", va="center", style="italic")


def sides(axes: Axes, x: float, y: float, values: np.ndarray, rows: str, columns: str) -> None:
    """The letters of a matrix, at its left and below it."""
    style = {"size": 11.5, "color": FAINT, "ha": "center", "va": "center", "zorder": 8}
    axes.text(x - 0.85, y + values.shape[0] * CELL / 2, f"${rows}$", **style)
    axes.text(x + values.shape[1] * CELL / 2, y - 0.85, f"${columns}$", **style)


if __name__ == "__main__":
    main()
