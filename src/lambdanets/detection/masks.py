"""Masks of detected objects, from the mask head's output to run lengths in pixels of the image.

A *mask* is a tensor or array of pixels: probabilities as the mask head returns them [28, 28], or boolean.
*Run lengths* are COCO's compressed encoding of a mask, `{"size": [height, width], "counts": text}`; the masks
of an image are held as `Masks` of run lengths, because the boolean masks of n objects would take n times the
memory of the image. *Polygons* occur in annotations only.

`encode_regions` pastes each mask over its box and encodes it once, in pixels of the whole image; results,
scores, tiles and drawings take the run lengths from there. `decode_masks` is the way back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from lambdanets.data.coco.masks import (
    Masks,
    Segmentation,
    coco_tool,
    encode_uncompressed,
    rasterise,
    run_lengths,
)

RunLengths = dict[str, Any]
"""COCO's compressed encoding of a mask: `size` ([height, width]) and `counts` (text)."""

Regions = dict[str, Tensor]
"""Objects as the network returns them: `boxes` [n, 4] in pixels of its input, `labels` [n], `scores` [n] and,
with a mask head, `masks` [n, 1, 28, 28], probabilities stretched over the boxes."""

Objects = dict[str, Any]
"""Objects in pixels of the stored image, on the CPU: tensors `boxes`, `labels` and `scores`, and `masks`,
either `Masks` of run lengths or a tensor [n, 1, height, width]."""

# A pixel of a higher probability belongs to the object, as in torchvision's reference.
MASK_THRESHOLD = 0.5


def paste_regions(
    regions: Regions, size: Sequence[int], target_size: Sequence[int], *, binary: bool = True
) -> dict[str, Tensor]:
    """Resize the boxes of regions and paste their masks into images of another size.

    Args:
        regions: Of one image, from `Detector.regions`.
        size: (height, width) of the network's input.
        target_size: (height, width) of the result.
        binary: Return boolean masks instead of probabilities.

    Returns:
        The regions with resized `boxes` and, where there are masks, `masks` [n, 1, *target_size].
    """
    pasted = regions | {"boxes": resize_boxes(regions["boxes"], list(size), list(target_size))}
    if "masks" in regions:
        masks = regions["masks"]
        dtype = torch.bool if binary else masks.dtype
        pasted["masks"] = masks.new_zeros((len(masks), 1, *target_size), dtype=dtype)
        parts = _pasted_masks(regions, size, target_size)
        for image, (top, left, part) in zip(pasted["masks"][:, 0], parts, strict=True):
            values = part > MASK_THRESHOLD if binary else part
            image[top : top + part.shape[0], left : left + part.shape[1]] = values
    return pasted


def encode_regions(
    regions: Regions,
    size: Sequence[int],
    target_size: Sequence[int],
    *,
    offset: tuple[int, int] = (0, 0),
    image_size: Sequence[int] | None = None,
) -> Objects:
    """Resize the boxes of regions and encode their masks as run lengths, one mask at a time.

    Args:
        regions: Of one image or tile, from `Detector.regions`.
        size: (height, width) of the network's input.
        target_size: (height, width) of the image, or of the tile, in pixels of the image.
        offset: (top, left) of the tile in the image.
        image_size: (height, width) of the image, for a tile; None stands for `target_size`.

    Returns:
        The objects on the CPU, in pixels of the image, with `Masks` where there are masks.
    """
    boxes = resize_boxes(regions["boxes"], list(size), list(target_size))
    objects: Objects = {name: value.cpu() for name, value in (regions | {"boxes": boxes}).items()}
    if image_size is not None:
        objects["boxes"] = objects["boxes"] + boxes.new_tensor([offset[1], offset[0]] * 2).cpu()
    if "masks" in regions:
        height, width = target_size if image_size is None else image_size
        encoded = [
            encode_mask(
                (part > MASK_THRESHOLD).cpu().numpy(), offset[0] + top, offset[1] + left, height, width
            )
            for top, left, part in _pasted_masks(regions, size, target_size)
        ]
        objects["masks"] = Masks(encoded, height, width)
    return objects


@torch.no_grad()
def _pasted_masks(
    regions: Regions, size: Sequence[int], target_size: Sequence[int]
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the first row, the first column and the probabilities [h, w] of each mask over its box.

    The targets of the mask head are pooled by torchvision's RoIAlign, which places a pixel at its upper left
    corner: the object is half an input pixel further down and to the right. torchvision pastes masks without
    this shift, and over boxes rounded to whole pixels; on small objects even perfect masks then reach an AP
    of about 0.7 only (benchmarks/detection/masks.csv).
    """
    # Half an input pixel, in pixels of the target.
    half_pixels = [target / (2 * side) for target, side in zip(target_size, size, strict=True)]
    boxes = resize_boxes(regions["boxes"], list(size), list(target_size)).tolist()
    for mask, (left, top, right, bottom) in zip(regions["masks"], boxes, strict=True):
        corner, coordinates = [], []
        for side, begin, end, half in zip(
            target_size, (top, left), (bottom, right), half_pixels, strict=True
        ):
            # The centres of pixels first, ..., last - 1 are inside the box; a thin box has one pixel.
            first = min(max(math.ceil(begin - 0.5), 0), side - 1)
            last = max(min(math.ceil(end - 0.5), side), first + 1)
            centres = torch.arange(first, last, dtype=mask.dtype, device=mask.device) + 0.5
            coordinates.append(2 * (centres - half - begin) / max(end - begin, 1e-6) - 1)
            corner.append(first)
        y, x = coordinates
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1)  # [h, w, 2]
        part = F.grid_sample(mask[None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        yield corner[0], corner[1], part


def encode_mask(part: np.ndarray, top: int, left: int, height: int, width: int) -> RunLengths:
    """Return the run lengths of a mask that is zero outside a part of its image.

    Args:
        part: Pixels of the part, bool [h, w].
        top: First row of the part in the image.
        left: First column of the part in the image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    return encode_segmentation(encode_uncompressed(part, top, left, height, width), height, width)


def encode_masks(masks: Tensor) -> list[RunLengths]:
    """Return the run lengths of masks [n, 1, height, width], boolean or probabilities."""
    encoded = []
    for mask in masks.detach()[:, 0]:
        inside = (mask if mask.dtype == torch.bool else mask > MASK_THRESHOLD).cpu().numpy()
        # Empty columns at both sides are skipped.
        columns = np.flatnonzero(inside.any(axis=0))
        first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        encoded.append(encode_mask(inside[:, first:end], 0, first, *inside.shape))
    return encoded


def encode_segmentation(segmentation: Segmentation, height: int, width: int) -> RunLengths:
    """Return the run lengths of an annotation's segmentation: polygons, or run lengths of either form."""
    return _plain_text(run_lengths(segmentation, height, width))


def merge_masks(encoded: Sequence[RunLengths]) -> RunLengths:
    """Return the run lengths of the union of masks of one image."""
    return _plain_text(coco_tool().merge(encoded))


def _plain_text(encoded: RunLengths) -> RunLengths:
    """Return run lengths of pycocotools, whose counts are bytes, as JSON holds them."""
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def decode_masks(objects: Objects) -> dict[str, Tensor]:
    """Return objects with boolean masks [n, 1, height, width] instead of run lengths."""
    masks = objects.get("masks")
    if not isinstance(masks, Masks):
        return objects
    pixels = rasterise(masks.segmentations, masks.height, masks.width)
    return objects | {"masks": torch.from_numpy(pixels)[:, None].bool()}
