"""The explanation as arrays (.npz) and as figures (.json)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lambdanets.utils.files import replacing
from lambdanets.utils.text import json_text

if TYPE_CHECKING:
    from .explanation import Explanation


def write_arrays(explanation: Explanation, path: Path) -> None:
    """Write the recorded tensors of all layers, named LAYER/q, LAYER/keys and so on, as a NumPy archive.

    With them `A[h,n,m] = sum_k q[h,n,k] (keys[g,m,k] + table[offset,k])`; `docs/explain.md` has the details.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    for name, recorded in explanation.recorded.items():
        maps, shares = recorded.maps, recorded.shares
        tensors = {
            "q": maps.q, "keys": maps.keys, "log_norm": maps.log_norm, "v": maps.v, "table": maps.table,
            "bias": maps.bias, "decay": maps.decay, "mask": maps.mask, "share_content": shares.content,
            "share_position": shares.position,
        }  # fmt: skip
        arrays |= {f"{name}/{key}": _plain(each) for key, each in tensors.items() if each is not None}
        context = maps.context
        geometry = {"grid": maps.grid, "context_grid": maps.context_grid}
        if maps.table is not None:
            geometry |= {"centre": context.centre, "step": context.step}
        arrays |= {f"{name}/{key}": np.array(value) for key, value in geometry.items()}
        arrays[f"{name}/error"] = np.array(recorded.error)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_figures(explanation: Explanation, path: Path) -> None:
    """Write sizes, errors, shares, reach and entropies of all layers as JSON."""
    text = json_text(figures(explanation), indent=1) + "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def figures(explanation: Explanation) -> dict[str, Any]:
    """Return sizes, errors, shares, reach and entropies of all layers as plain values."""
    layers = []
    for name, recorded in explanation.recorded.items():
        maps, reach = recorded.maps, recorded.maps.reach()
        fraction = recorded.shares.fraction.flatten(1)
        layers.append(
            {
                "name": name,
                "grid": maps.grid,
                "context_grid": maps.context_grid,
                "heads": maps.num_heads,
                "dim_k": maps.q.shape[2],
                "dim_u": maps.dim_u,
                "causal": maps.causal,
                "error": recorded.error,
                "content_share": [_number(row.nanmean()) for row in fraction],
                "reach": None if reach is None else reach._asdict(),
                "entropy_bits": [_number(value) for value in explanation.entropy(name)],
            }
        )
    scene = explanation.scene
    return {
        "title": scene.title,
        "model": scene.model,
        "labels": [{"label": label, "probability": value} for label, value in scene.labels],
        "objects": [{"label": mark.label, "box": mark.box, "score": mark.score} for mark in scene.marks],
        "error": explanation.error,
        "layers": layers,
    }


def _plain(x: Tensor) -> Any:
    return x.detach().cpu().numpy()


def _number(value: Tensor) -> float | None:
    """Return a number that JSON has: null for NaN, an undefined one."""
    number = float(value)
    return number if math.isfinite(number) else None
