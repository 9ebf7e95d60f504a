"""`explain`: the maps of all lambda layers of a model for one input, and their files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets.utils.text import did_you_mean

from .layer_maps import PARTS, LayerMaps, Reach, Shares
from .recording import Recorded, find_layers, recording

SUFFIXES = (".html", ".png", ".npz", ".json")


@dataclass(frozen=True)
class Mark:
    """A found object on the picture.

    Attributes:
        label: Its class.
        box: Left, top, right and bottom in pixels of the picture.
        score: Its score.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Approximation:
    """An attribution across all layers, by a method that is not exact.

    Attributes:
        method: Name of the method.
        target: The output that is attributed, such as a class.
        values: Attributions `[*grid]` on a grid over the input.
    """

    method: str
    target: str
    values: Tensor


@dataclass
class Scene:
    """What the input shows, for the files that people read.

    Attributes:
        title: Title, such as the name of the file.
        model: The model and its weights, in words.
        picture: The input as a picture: a Pillow image in RGB whose edges are those of the input; for volumes
            a list, one per slice; None for none.
        tokens: The elements of a text, one string each; None for other inputs.
        seconds: Length of a recording; None for other inputs.
        labels: Predicted classes with their probabilities.
        marks: Found objects.
    """

    title: str = "lambda layers"
    model: str = ""
    picture: Any = None
    tokens: Sequence[str] | None = None
    seconds: float | None = None
    labels: Sequence[tuple[str, float]] = ()
    marks: Sequence[Mark] = field(default_factory=list)


class Explanation:
    """The exact maps of the lambda layers of a model for one input.

    Layers are named as in `model.named_modules()`, or by their index in `layers`. A query is the row-major
    index of a position on the layer's grid, or its coordinates.

    Args:
        recorded: The calls of the layers.
        output: Output of the model.
        scene: What the input shows.

    Attributes:
        output: Output of the model for the whole batch.
        scene: What the input shows, which the HTML page and the PNG sheet draw.
        approximations: Attributions across layers, which the HTML page lists as approximate.

    Example:
        >>> model = create_model("lambda_resnet_mini").eval()
        >>> explanation = explain(model, torch.randn(1, 3, 64, 64))
        >>> explanation.error < 1e-4
        True
        >>> explanation.maps(explanation.layers[-1], query=(0, 1)).shape[0]  # heads
        4
    """

    def __init__(self, recorded: Sequence[Recorded], output: Any, scene: Scene) -> None:
        self.recorded = {each.maps.name: each for each in recorded}
        self.output, self.scene = output, scene
        self.approximations: list[Approximation] = []

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which the model calls them."""
        return tuple(self.recorded)

    @property
    def error(self) -> float:
        """Largest relative error of the reconstruction over all layers: `max |sum A v - y| / max |y|`.

        It is measured for every query, against the output that the layer gave in the model.
        """
        return max(self.errors.values())

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of the reconstruction, by layer."""
        return {name: each.error for name, each in self.recorded.items()}

    def layer(self, layer: str | int) -> LayerMaps:
        """Return the recorded tensors of a layer.

        Raises:
            ValueError: If there is no such layer.
        """
        return self._find(layer).maps

    def maps(
        self,
        layer: str | int,
        query: int | Sequence[int],
        head: int | None = None,
        part: str = "sum",
        *,
        weighted: bool = False,
    ) -> Tensor:
        """Return how much each context element contributes to the output at a query: A, exactly.

        Args:
            layer: Name or index of the layer.
            query: Row-major index or coordinates of the query on the layer's grid.
            head: Index of the head; None returns all heads.
            part: "content", "position" or "sum".
            weighted: Multiply by the length of the values `|v|`, that is by how much an element has to give.

        Returns:
            Signed weights `[h, *context_grid]`, or `[*context_grid]` of one head; with an intra-depth u > 1
            there is one more axis `u` at the end, and the output is the sum over u of A_u v_u.

        Raises:
            ValueError: If there is no such layer, query, head or part.
        """
        maps = self.layer(layer)
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        if head is not None and not 0 <= head < maps.num_heads:
            raise ValueError(f"{maps.name} has the heads 0 to {maps.num_heads - 1}, got {head}")
        index = torch.tensor([_index(query, maps.grid, maps.name)], device=maps.q.device)
        found = maps.weights(index, part)[:, 0]  # [h, m, u]
        if weighted:
            found = found * maps.v.norm(dim=1)
        found = found.unflatten(1, maps.context_grid)
        found = found[..., 0] if maps.dim_u == 1 else found
        return found if head is None else found[head]

    def content(self, layer: str | int) -> Tensor:
        """Return the content maps kbar `[columns, *context_grid]`, one picture for each column of the keys.

        Columns are ordered by sets of keys, k, u. All queries share them and each sums to 1 (with the usual
        softmax), except under a causal order, where those of the last query are returned.
        """
        return self.layer(layer).columns()

    def entropy(self, layer: str | int) -> Tensor:
        """Return the entropy of each content map in bits, `[columns]`: log2(m) if it weighs all m equally.

        It is defined for keys with a softmax; for others it is NaN.
        """
        maps = self.layer(layer)
        columns = maps.columns().flatten(1)
        if maps.normalize != "softmax":
            return columns.new_full((len(columns),), math.nan)
        return -torch.xlogy(columns, columns).sum(1) / math.log(2)

    def table(self, layer: str | int) -> Tensor | None:
        """Return the position table E as pictures `[columns, *offsets]`, in the order k, u; or None."""
        table = self.layer(layer).table
        return None if table is None else table.flatten(-2).movedim(-1, 0)

    def reach(self, layer: str | int) -> Reach | None:
        """Return how far the position table reaches; None for a layer without one."""
        return self.layer(layer).reach()

    def shares(self) -> dict[str, Shares]:
        """Return the squared norms of the content and position parts of the output, by layer."""
        return {name: each.shares for name, each in self.recorded.items()}

    def save(
        self, file: str | os.PathLike[str], *, queries: Sequence[Any] = (), heads: Sequence[int] | None = None
    ) -> Path:
        """Write the explanation to a file, by the ending of its name.

        Args:
            file: `.html`: one page that computes the map of any query in the browser, without a network.
                `.png`: a sheet of maps. `.npz`: all recorded arrays. `.json`: sizes, errors and figures.
            queries: `.png` and the first query of `.html`: fractions (y, x) of the input from 0 to 1, as
                many as the grid has axes; by default found objects, or places spread over the input.
            heads: `.png`: indices of the heads; by default the first four.

        Returns:
            The file.

        Raises:
            ValueError: If the ending is unknown, or a head does not exist.
        """
        path = Path(file)
        suffix = path.suffix.lower()
        if suffix == ".html":
            from .page import write_page

            write_page(self, path, queries)
        elif suffix == ".png":
            from .sheet import write_sheet

            write_sheet(self, path, queries, heads)
        elif suffix == ".npz":
            from .files import write_arrays

            write_arrays(self, path)
        elif suffix == ".json":
            from .files import write_figures

            write_figures(self, path)
        else:
            raise ValueError(
                f"an explanation is a file that ends in {', '.join(SUFFIXES)}; got {str(file)!r}"
            )
        return path

    def _find(self, layer: str | int) -> Recorded:
        names = self.layers
        if isinstance(layer, int) and 0 <= layer < len(names):
            layer = names[layer]
        if layer not in self.recorded:
            hint = did_you_mean(layer, names) if isinstance(layer, str) else ""
            raise ValueError(f"there is no layer {layer!r}{hint or '; there are ' + ', '.join(names)}")
        return self.recorded[str(layer)]


def explain(
    model: nn.Module,
    x: Any,
    layers: Sequence[str] | None = None,
    *,
    example: int = 0,
    scene: Scene | None = None,
    forward: Callable[..., Any] | None = None,
) -> Explanation:
    """Show what the lambda layers of a model look at: their exact maps for one input.

    The output of a lambda layer at a query is a sum of the values, whose weights A are linear in the queries:
    `A[h,n,m] = sum_k q[h,n,k] (kbar[m,k] + E[n,m,k])`, `y[h,n] = sum_m A[h,n,m] v[m]`. Nothing nonlinear
    follows inside the layer, except an output norm in some layers on sequences, so the map is the layer, not
    an estimate: `explanation.error` compares the two, after the norm. A says what one layer adds, not why the
    network decides as it does.

    Every lambda layer is found by its type: of this package on one, two or three axes; of timm,
    lucidrains/lambda-networks and d-li14/lambda.pytorch. One forward pass records queries, keys and values,
    (h + 1) n k numbers for each layer. A is computed for the query that is asked for.

    Args:
        model: A model in evaluation mode, of any task.
        x: Its input; a tuple is passed as several arguments.
        layers: Names of layers, or patterns such as "layer4.*"; None takes all.
        example: Index of the explained example in the batch.
        scene: What the input shows, for the page and the sheet. Default: of images the input itself.
        forward: Function that runs the model on x, such as another of its methods. Default: the model.

    Returns:
        The explanation, which keeps tensors on the device of the model.

    Raises:
        ValueError: If the model has no lambda layer, one is in training mode, a name is unknown, a layer is
            not called or continues from a state, its output is not finite, or the input is too large.
        MemoryError: If the recorded tensors need more memory than is available.

    Example:
        >>> model = timm.create_model("lambda_resnet26t", num_classes=10).eval()
        >>> explanation = explain(model, torch.randn(1, 3, 64, 64), layers=["stages.3.*"])
        >>> explanation.maps(0, query=(1, 0), head=0, part="position").shape
        torch.Size([4, 4])
    """
    found = find_layers(model, layers)
    with torch.no_grad(), recording(found, example) as recorded:
        call = model if forward is None else forward
        output = call(*x) if isinstance(x, tuple) else call(x)
    if not recorded:
        raise ValueError(f"the model did not call {', '.join(found)} for this input")
    if scene is None:
        from .scenes import scene_of_input

        scene = scene_of_input(x, example)
    return Explanation(recorded, output, scene)


def _index(query: int | Sequence[int], grid: tuple[int, ...], name: str) -> int:
    """Return the row-major index of a query on a grid."""
    sizes = "x".join(map(str, grid))
    if isinstance(query, int):
        if not 0 <= query < math.prod(grid):
            raise ValueError(f"{name} has the queries 0 to {math.prod(grid) - 1}, got {query}")
        return query
    if len(query) != len(grid) or not all(0 <= i < size for i, size in zip(query, grid, strict=True)):
        raise ValueError(f"{name} has a grid of {sizes}, which has no query {tuple(query)}")
    index = 0
    for i, size in zip(query, grid, strict=True):
        index = index * size + i
    return index
