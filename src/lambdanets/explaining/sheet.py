"""The explanation as a sheet of maps for papers: a row per layer and head, columns of the parts per query."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch

from lambdanets.utils.files import replacing
from lambdanets.utils.fonts import legible, plain_text
from lambdanets.viz.figures import INK, QUIET, save_figure

from .layer_maps import CLIPPED, PARTS, LayerMaps
from .scenes import tone

if TYPE_CHECKING:
    from .explanation import Explanation, Scene

MAX_LAYERS = 6
MAX_QUERIES = 3
PLUS, MINUS = "#d65400", "#1b62ad"  # of the page, for every kind of colour vision
PANEL = 1.5  # height and width of a panel in inches
STILL_DPI = 80
LETTERS_PER_INCH = 16  # of the title
MAX_TOKENS = 9  # characters of a text around the query that a title shows


def write_sheet(
    explanation: Explanation, path: Path, queries: Sequence[Any], heads: Sequence[int] | None
) -> None:
    """Write the sheet as a PNG file; see `Explanation.save`."""
    scene = explanation.scene
    with plain_text(scene.title, scene.model), replacing(path) as unfinished:
        save_figure(_figure(explanation, queries, heads), unfinished)


def sheet_picture(explanation: Explanation, queries: Sequence[Any]) -> Any:
    """Return a small sheet as a Pillow image."""
    from PIL import Image

    buffer = io.BytesIO()
    scene = explanation.scene
    with plain_text(scene.title, scene.model):
        _figure(explanation, queries, None).savefig(buffer, format="png", dpi=STILL_DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def default_queries(explanation: Explanation) -> list[tuple[float, ...]]:
    """Return queries as fractions of the input: the centres of found objects, or spread places."""
    scene = explanation.scene
    maps = next(iter(explanation.recorded.values())).maps
    if scene.marks and scene.picture is not None:
        width, height = scene.picture.size
        boxes = [mark.box for mark in scene.marks[:2]]
        return [
            ((top + bottom) / 2 / height, (left + right) / 2 / width) for left, top, right, bottom in boxes
        ]
    if maps.causal:
        return [(0.999,), (0.5,)]
    rank = len(maps.grid)
    return [(0.5,) * rank, (*(0.5,) * (rank - 1), 0.2)]


def _figure(explanation: Explanation, queries: Sequence[Any], heads: Sequence[int] | None) -> Any:
    """Return the Matplotlib figure."""
    from matplotlib.figure import Figure

    places = [tuple(query) for query in queries] or default_queries(explanation)
    places = places[:MAX_QUERIES]
    rows = _rows(explanation, heads)
    scene, rank = explanation.scene, len(rows[0][0].grid)
    for place in places:
        if len(place) != rank or not all(0 <= fraction <= 1 for fraction in place):
            raise ValueError(f"a query is {rank} fractions from 0 to 1 here, got {place}")
    width = PANEL * 3 * len(places) + 1.7
    aspect = _aspect(scene, rows[0][0])
    height = (PANEL * aspect + 0.25) * len(rows) + 0.9
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    grid = figure.subplots(len(rows), 3 * len(places), squeeze=False)
    for number, (axes_row, (maps, head)) in enumerate(zip(grid, rows, strict=True)):
        scales = maps.scales()
        for index, axes in enumerate(axes_row):
            place, part = places[index // 3], PARTS[index % 3]
            _draw(axes, scene, maps, head, place, part, scales[part][head])
            if not number:
                title = part if index % 3 else f"{part}{_where(scene, maps, place)}"
                axes.set_title(title, fontsize=8, color=INK, loc="left")
            if index < 3:
                axes.set_xlabel(f"±{scales[part][head]:.2g}", fontsize=6.5, color=INK, labelpad=2)
        label = f"{legible(maps.name)}\nhead {head} of {maps.num_heads}"
        axes_row[0].set_ylabel(label, fontsize=7, color=INK)
    here = "line" if rank == 1 else "frame"
    lines = [
        "  ·  ".join(filter(None, (legible(scene.title), legible(scene.model)))),
        f"Weights of all positions in the output at the {here}: orange adds, blue subtracts. Scales end at "
        f"±, at most {CLIPPED:.0%} are beyond. Reconstruction error {explanation.error:.1e}.",
    ]
    wrapped = [part for line in lines for part in wrap(line, int(width * LETTERS_PER_INCH))]
    figure.suptitle("\n".join(wrapped), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def _rows(explanation: Explanation, heads: Sequence[int] | None) -> list[tuple[LayerMaps, int]]:
    """Return the layers and heads of the rows: of many layers some, of each by default the strongest head."""
    every = [each.maps for each in explanation.recorded.values()]
    count = min(MAX_LAYERS, len(every))
    chosen = [every[(index * len(every) + len(every) - 1) // count] for index in range(count)]
    rows = []
    for maps in dict.fromkeys(chosen):
        if heads is None:
            shares = explanation.recorded[maps.name].shares
            strength = (shares.content + shares.position).flatten(1).sum(1)
            rows.append((maps, int(strength.argmax())))
            continue
        for head in heads:
            if not 0 <= head < maps.num_heads:
                raise ValueError(f"{maps.name} has the heads 0 to {maps.num_heads - 1}, got {head}")
            rows.append((maps, head))
    return rows


def _aspect(scene: Scene, maps: LayerMaps) -> float:
    """Return the height of a panel as a fraction of its width."""
    if len(maps.grid) == 1:
        return 0.55
    pictures = scene.picture if isinstance(scene.picture, list | tuple) else [scene.picture]
    width, height = maps.grid[-1:-3:-1] if pictures[0] is None else pictures[0].size
    return min(2.0, max(0.5, height / width))


def _draw(
    axes: Any, scene: Scene, maps: LayerMaps, head: int, place: Sequence[float], part: str, scale: float
) -> None:
    """Draw one map."""
    import numpy as np

    index = [min(size - 1, int(fraction * size)) for fraction, size in zip(place, maps.grid, strict=True)]
    flat = 0
    for i, size in zip(index, maps.grid, strict=True):
        flat = flat * size + i
    weights = maps.weights(torch.tensor([flat], device=maps.q.device), part)[head, 0].sum(-1).cpu().numpy()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(QUIET)
    axes.set_box_aspect(_aspect(scene, maps))
    if len(maps.grid) == 1:
        colours = np.where(weights < 0, MINUS, PLUS)
        axes.bar(np.arange(len(weights)), weights.clip(-scale, scale), width=1.0, color=colours)
        axes.axvline(index[0], color=INK, linewidth=0.8)
        axes.axhline(0, color=QUIET, linewidth=0.6)
        axes.set_xlim(-0.5, len(weights) - 0.5)
        axes.set_ylim(-1.05 * scale, 1.05 * scale)
        return
    shape, depth = maps.context_grid, 0
    if len(shape) == 3:
        depth = min(shape[0] - 1, int(place[0] * shape[0]))
    values = weights.reshape((-1, *shape[-2:]))[depth] / scale
    extent = (0, 1, 1, 0)
    picture = scene.picture
    if isinstance(picture, list | tuple):
        picture = picture[min(len(picture) - 1, int(place[0] * len(picture)))]
    if picture is not None:
        levels = np.asarray(picture.convert("L")) / 255
        factor, offset = tone([picture])
        axes.imshow(factor * levels + offset, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
    colours = np.zeros((*values.shape, 4))
    colours[values >= 0, :3] = [int(PLUS[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    colours[values < 0, :3] = [int(MINUS[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    colours[..., 3] = np.abs(values).clip(0, 1) * 0.9
    axes.imshow(colours, extent=extent, interpolation="nearest", aspect="auto")
    height, width = maps.grid[-2:]
    box = (index[-1] / width, index[-2] / height)
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(box, 1 / width, 1 / height, fill=False, edgecolor="black", linewidth=1.4))
    axes.add_patch(Rectangle(box, 1 / width, 1 / height, fill=False, edgecolor="white", linewidth=0.6))


def _where(scene: Scene, maps: LayerMaps, place: Sequence[float]) -> str:
    """Return the words of a column's title that name the query."""
    if scene.tokens is not None:
        index = min(len(scene.tokens) - 1, math.floor(place[0] * len(scene.tokens)))
        before = "".join(scene.tokens[max(0, index + 1 - MAX_TOKENS) : index + 1]).replace("\n", "↵")
        return f", after “{legible(before)}”"
    if scene.seconds is not None:
        return f", query at {place[0] * scene.seconds:.2f} s"
    if len(maps.grid) > 1:
        return ", query in the frame"
    return f", query {min(math.prod(maps.grid) - 1, math.floor(place[0] * math.prod(maps.grid)))}"
