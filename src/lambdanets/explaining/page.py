"""The explanation as one HTML page, which computes the map of any query in the browser.

The page needs queries, normalised keys and the table alone, (h + 1) n k numbers for each layer, in float16
(float32 where exponentials follow). It loads nothing, so that it works from a disk, an e-mail or an archive.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lambdanets.ops.position_table import trim_table
from lambdanets.utils.files import replacing

from .layer_maps import CLIPPED
from .scenes import tone

if TYPE_CHECKING:
    from .explanation import Explanation, Scene
    from .recording import Recorded

MAX_BYTES = 64 << 20
"""Largest page that is written: browsers become slow beyond it."""
SCRIPTS = ("maps.js", "drawing.js", "page.js")
LARGEST_HALF = 2.0**15
MAX_PICTURE = 1280  # longest side of the picture in the page, in pixels
PIXEL_ART = 128  # longest side up to which a picture is stored without loss


def write_page(explanation: Explanation, path: Path, queries: Sequence[Any]) -> None:
    """Write the page.

    Raises:
        ValueError: If it would be larger than 64 MiB.
    """
    text = page_text(explanation, queries)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"the page would take {len(text) / 2**20:,.0f} MiB, and browsers are slow above "
            f"{MAX_BYTES >> 20}: name fewer layers, or give a smaller input"
        )
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def page_text(explanation: Explanation, queries: Sequence[Any]) -> str:
    """Return the HTML of the page."""
    template = files("lambdanets.explaining") / "template"
    data = json.dumps(_payload(explanation, queries), separators=(",", ":"))
    parts = {
        "TITLE": escape(explanation.scene.title),
        "STYLE": (template / "page.css").read_text(encoding="utf-8"),
        "STILL": _still(explanation, queries),
        "ERROR": f"{explanation.error:.1e}",
        # A script ends at the first "</", wherever it is.
        "DATA": data.replace("<", "\\u003c"),
        "SCRIPT": "\n".join((template / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    pieces = (template / "page.html").read_text(encoding="utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _payload(explanation: Explanation, queries: Sequence[Any]) -> dict[str, Any]:
    """Return the data of the page: what the input shows, and the arrays of the layers."""
    scene = explanation.scene
    pictures = scene.picture if isinstance(scene.picture, list | tuple) else [scene.picture]
    pictures = [each for each in pictures if each is not None]
    size = pictures[0].size if pictures else None
    return {
        "title": scene.title,
        "model": scene.model,
        "pictures": [_data_uri(each) for each in pictures],
        "size": size,
        "tone": tone(pictures) if pictures else None,
        "tokens": None if scene.tokens is None else list(scene.tokens),
        "seconds": scene.seconds,
        "labels": [[label, value] for label, value in scene.labels],
        "marks": [[mark.label, mark.box, mark.score] for mark in scene.marks],
        "start": list(queries[0]) if len(queries) else _start(scene, explanation),
        "error": explanation.error,
        "clipped": CLIPPED,
        "layers": [_layer(each, explanation) for each in explanation.recorded.values()],
        "approximations": [
            {"method": each.method, "target": each.target, "values": _half(each.values)}
            for each in explanation.approximations
        ],
    }


def _start(scene: Scene, explanation: Explanation) -> list[float]:
    """Return the first query as fractions of the input: the best object, the last token, or the middle."""
    maps = next(iter(explanation.recorded.values())).maps
    if scene.marks and scene.picture is not None:
        left, top, right, bottom = scene.marks[0].box
        width, height = scene.picture.size
        return [(top + bottom) / 2 / height, (left + right) / 2 / width]
    return [0.999 if maps.causal else 0.5] * len(maps.grid)


def _layer(recorded: Recorded, explanation: Explanation) -> dict[str, Any]:
    """Return the arrays and the figures of a layer."""
    maps = recorded.maps
    causal = maps.log_norm is not None
    table = None
    centre: tuple[int, ...] = ()
    if maps.table is not None:
        table, centre = trim_table(maps.table, maps.context)
    reach = maps.reach()
    return {
        "name": maps.name,
        "grid": maps.grid,
        "context": maps.context_grid,
        "causal": maps.causal,
        "normalize": maps.normalize,
        "error": recorded.error,
        "q": _half(maps.q),
        # The browser takes exponentials of the keys of a causal layer, which float16 would make inexact.
        "keys": None if maps.keys is None else (_single if causal else _half)(maps.keys),
        "logNorm": None if maps.log_norm is None else _single(maps.log_norm),
        "decay": None if maps.decay is None else _single(maps.decay),
        "table": None if table is None else _half(table),
        "centre": centre,
        "step": maps.context.step,
        "lengths": _half(maps.v.norm(dim=1)),
        "mask": None if maps.mask is None or bool(maps.mask.all()) else maps.mask.int().tolist(),
        "bias": maps.bias is not None,
        "scales": maps.scales(),
        "share": _half(recorded.shares.fraction.nan_to_num(0.5)),
        "reach": None if reach is None else reach._asdict(),
        "entropy": [
            round(value, 3) if math.isfinite(value) else None
            for value in explanation.entropy(maps.name).tolist()
        ],
        "columns": _half(maps.columns()) if causal else None,
    }


def _half(x: Tensor) -> dict[str, Any]:
    """Return an array in float16 with a factor that moves its values to the precise range of the dtype."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    scale = largest / LARGEST_HALF if largest > 0 else 1.0
    values = (x.detach().cpu().double() / scale).to(torch.float16)
    return {"shape": list(x.shape), "scale": scale, "f16": _base64(values)}


def _single(x: Tensor) -> dict[str, Any]:
    """Return an array in float32."""
    return {"shape": list(x.shape), "scale": 1.0, "f32": _base64(x.detach().float())}


def _base64(x: Tensor) -> str:
    array = x.cpu().contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _data_uri(picture: Any) -> str:
    """Return a Pillow image as a data URI: PNG if it is small, else JPEG."""
    longest = max(picture.size)
    if longest > MAX_PICTURE:
        factor = MAX_PICTURE / longest
        picture = picture.resize([max(1, round(side * factor)) for side in picture.size])
    kind = "png" if longest <= PIXEL_ART else "jpeg"
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format=kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _still(explanation: Explanation, queries: Sequence[Any]) -> str:
    """Return a data URI of a sheet of maps, for browsers without scripts."""
    from .sheet import sheet_picture

    buffer = io.BytesIO()
    sheet_picture(explanation, queries).save(buffer, format="jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
