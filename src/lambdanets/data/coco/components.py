"""Connected parts and bounding boxes of the objects in a mask, from runs of equal values along the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Runs:
    """Horizontal runs of equal values besides 0, row by row and from left to right; all are int64 [n].

    Args:
        rows: row of each run.
        starts: first column.
        stops: column after the last one.
        values: value of its pixels.
    """

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> _Runs:
        """Return the runs of a mask, integers or bool of shape [height, width]."""
        height, width = mask.shape
        begins = np.ones((height, width + 1), bool)
        # The column behind the last one has a begin of its own, which ends the last run of the row.
        np.not_equal(mask[:, 1:], mask[:, :-1], out=begins[:, 1:width])
        rows, columns = np.divmod(np.flatnonzero(begins), width + 1)
        inside = np.flatnonzero(columns < width)
        values = mask[rows[inside], columns[inside]]
        inside, values = inside[values != 0], values[values != 0]
        return cls(rows[inside], columns[inside], columns[inside + 1], values.astype(np.int64))


def label_parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected parts of a mask, in which pixels touch by edges or corners.

    Args:
        mask: bool of shape [height, width].

    Returns:
        The number of each pixel's part, int32 of shape [height, width], 0 outside and otherwise counted from
        1 by the first pixel of the part, row by row; and the number of parts. scipy.ndimage.label with a 3x3
        structure of ones gives the same.
    """
    labels = np.zeros(mask.shape, np.int32)
    if not mask.size:
        return labels, 0
    runs = _Runs.of(mask)
    parents = _roots(*_touching(runs, mask.shape[1]), len(runs.rows))
    first, numbers = np.unique(parents, return_inverse=True)
    lengths = runs.stops - runs.starts
    labels[mask.astype(bool)] = np.repeat(numbers + 1, lengths)
    return labels, len(first)


def _touching(runs: _Runs, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of runs of successive rows that touch, as indices of the upper and the lower runs."""
    # In one line, a row after the other with a gap of 2 pixels, runs of the row above are found by sorting.
    stride = width + 2
    starts, stops = runs.rows * stride + runs.starts, runs.rows * stride + runs.stops
    # A run above touches if it stops behind the first pixel less 1, and starts before the last one plus 2.
    first = np.searchsorted(stops, starts - stride, side="left")
    end = np.searchsorted(starts, stops - stride, side="right")
    counts = (end - first).clip(0)
    lower = np.repeat(np.arange(len(starts)), counts)
    offsets = np.arange(len(lower)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + offsets, lower


def _roots(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Return the lowest index of each index's component, of a graph with `count` nodes and these edges."""
    roots = np.arange(count)
    while len(first):
        low, high = np.minimum(roots[first], roots[second]), np.maximum(roots[first], roots[second])
        np.minimum.at(roots, high, low)
        # Every node points to the root of its tree before the next round.
        while not np.array_equal(roots, further := roots[roots]):
            roots = further
        apart = roots[first] != roots[second]
        first, second = first[apart], second[apart]
    return roots


def bounding_boxes(numbered: np.ndarray, count: int) -> list[tuple[slice, slice]]:
    """Return the rows and the columns of each object, such that `numbered[box]` is the least crop with it.

    Args:
        numbered: integers of shape [height, width]: each of 1, 2, ... `count` occurs, and 0.
        count: number of objects.
    """
    runs = _Runs.of(numbered)
    order = np.argsort(runs.values, kind="stable")
    begins = np.searchsorted(runs.values[order], np.arange(1, count + 1))
    if not count:
        return []
    rows, starts, stops = (each[order] for each in (runs.rows, runs.starts, runs.stops))
    top, bottom = np.minimum.reduceat(rows, begins), np.maximum.reduceat(rows, begins) + 1
    left, right = np.minimum.reduceat(starts, begins), np.maximum.reduceat(stops, begins)
    edges = zip(*(each.tolist() for each in (top, bottom, left, right)), strict=True)
    return [(slice(t, b), slice(x, y)) for t, b, x, y in edges]


def even_pixels(numbered: np.ndarray) -> np.ndarray:
    """Return whether all eight neighbours of each pixel that are in the image have its value."""
    height, width = numbered.shape
    padded = np.pad(numbered, 1, mode="edge")
    even = np.ones((height, width), bool)
    for top in range(3):
        for left in range(3):
            even &= padded[top : top + height, left : left + width] == numbered
    return even
