"""Resizing, cropping and flipping of annotated images with their boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from .config import CocoConfig
from .masks import Masks, rasterise_at

Size = tuple[int, int]  # height and width

# Type checkers take its constructor for that of a Tensor.
_BoundingBoxes: Any = tv_tensors.BoundingBoxes


def corners(boxes: Tensor, size: Size) -> tv_tensors.BoundingBoxes:
    """Return (left, top, right, bottom), of shape [n, 4], as boxes on an image of a height and width."""
    return _BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)


@dataclass(frozen=True)
class Crop:
    """A scaling of an image, followed by a crop of a window, which may exceed the scaled image.

    All lengths are in pixels.

    Args:
        scaled: height and width to which the whole image is scaled.
        corner: top and left of the window in the scaled image; negative if it begins outside.
        window: height and width of the window.
    """

    scaled: Size
    corner: Size
    window: Size

    def image(self, image: Tensor, fill: tuple[int, int, int]) -> Tensor:
        """Return the window of an image, uint8 of shape [3, *window], with the colour `fill` outside it."""
        resized = F.resize(image, list(self.scaled), antialias=True)
        if self.scaled == self.window:
            return resized
        (top, bottom), (left, right) = self._inside()
        cut = torch.empty((3, *self.window), dtype=image.dtype)
        cut[:] = torch.tensor(fill, dtype=image.dtype)[:, None, None]
        y, x = self.corner
        cut[:, top - y : bottom - y, left - x : right - x] = resized[:, top:bottom, left:right]
        return cut

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        """Return boxes in the coordinates of the window, clipped to it.

        Args:
            boxes: left, top, right and bottom in the unscaled image, of shape [n, 4].
            size: height and width of that image.
        """
        (height, width), (top, left), (bottom, right) = self.scaled, self.corner, self.window
        ratio = boxes.new_tensor([width / size[1], height / size[0]] * 2)
        moved = boxes * ratio - boxes.new_tensor([left, top] * 2)
        return torch.minimum(moved.clamp(min=0), moved.new_tensor([right, bottom] * 2))

    def masks(self, masks: Masks) -> list[tuple[int, int, np.ndarray]]:
        """Return (top, left, part) for each mask: its visible part, uint8 [h, w], at its window offset.

        A pixel of the scaled image takes the value of the pixel of the image that contains its centre.
        """
        grids = []
        for (first, last), scaled, size in zip(
            self._inside(), self.scaled, (masks.height, masks.width), strict=True
        ):
            grids.append((2 * np.arange(first, last) + 1) * size // (2 * scaled))
        (top, _), (left, _) = self._inside()
        y, x = top - self.corner[0], left - self.corner[1]
        parts = (rasterise_at(each, masks.height, masks.width, *grids) for each in masks.segmentations)
        return [(y + row, x + column, part) for row, column, part in parts]

    def _inside(self) -> list[Size]:
        """Return begin and end of the window inside the scaled image, along the height and the width."""
        return [
            (max(0, first), min(length, first + side))
            for first, side, length in zip(self.corner, self.window, self.scaled, strict=True)
        ]


class ResizeLongerSide(nn.Module):
    """Resize the longer side of an image to a length; None keeps its size.

    The input is an image, or an image and its target with `Masks`; the output has rasterised masks.
    """

    def __init__(self, side: int | None):
        super().__init__()
        self.side = side

    def forward(self, image: Tensor, target: dict[str, Any] | None = None) -> Any:
        """Resize an image and, if given, its target."""
        size = height, width = _size(image)
        scaled = _scaled_size(height, width, self.side) if self.side else size
        crop = Crop(scaled, (0, 0), scaled)
        resized = tv_tensors.Image(crop.image(image, (0, 0, 0)))
        if target is None:
            return resized
        changed: dict[str, Any] = {"boxes": corners(crop.boxes(_plain(target["boxes"]), size), scaled)}
        if "masks" in target:
            changed["masks"] = _full_masks(crop.masks(target["masks"]), scaled)
        return resized, target | changed


def eval_transform_coco(config: CocoConfig) -> ResizeLongerSide:
    """Return the transform of evaluation, for images and their targets."""
    return ResizeLongerSide(config.image_size if config.resize else None)


class TrainAugment(nn.Module):
    """Scale, crop and flip an image at random, drawing from torch's global generator.

    Objects that are outside the window, or smaller than `config.min_area`, are dropped from boxes, labels,
    masks, area and iscrowd alike. Masks are rasterised last, for the remaining objects and inside the window
    only.

    The box of an object at the edge of the window shrinks to the visible part of its mask: a clipped box may
    contain areas without the object. Other boxes keep their annotated coordinates, which are not rounded to
    pixels as those of a mask are.
    """

    def __init__(self, config: CocoConfig):
        super().__init__()
        self.config = config

    def draw(self, size: Size) -> tuple[Crop, bool]:
        """Draw the crop of an image of a size, and whether it is flipped."""
        side, (least, most) = self.config.image_size, self.config.scale
        scale = least + torch.rand(()).item() * (most - least)
        scaled = _scaled_size(*size, scale * side)
        window = (side, side) if self.config.crop else scaled
        corner = _random_offset(scaled[0], window[0]), _random_offset(scaled[1], window[1])
        return Crop(scaled, corner, window), torch.rand(()).item() < self.config.flip

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return an augmented image and its target, with rasterised masks; the input has `Masks`."""
        size = _size(image)
        crop, flipped = self.draw(size)
        cropped = crop.image(image, self.config.fill)
        boxes = crop.boxes(_plain(target["boxes"]), size)
        kept = np.flatnonzero(self._large(boxes))
        parts = None
        if "masks" in target:
            parts = crop.masks(target["masks"][kept])
            tight = _shrink_boxes(boxes[kept], parts, crop.window)
            large = self._large(tight)
            kept, boxes = kept[large], tight[large]
            parts = [part for part, stays in zip(parts, large, strict=True) if stays]
        else:
            boxes = boxes[kept]
        if flipped:
            cropped = cropped.flip(-1)
            boxes[:, [0, 2]] = crop.window[1] - boxes[:, [2, 0]]
        changed: dict[str, Any] = {name: target[name][kept] for name in ("labels", "area", "iscrowd")}
        changed["boxes"] = corners(boxes, crop.window)
        if parts is not None:
            changed["masks"] = _full_masks(parts, crop.window, flipped=flipped)
        return tv_tensors.Image(cropped.contiguous()), target | changed

    def _large(self, boxes: Tensor) -> np.ndarray:
        sides = boxes[:, 2:] - boxes[:, :2]
        return ((sides >= 1).all(1) & (sides.prod(1) >= self.config.min_area)).numpy()


def _scaled_size(height: int, width: int, side: float) -> Size:
    """Return the size whose longer side has a given length, in the same aspect ratio; at least one pixel."""
    longer = max(height, width)
    return max(1, int(side * height / longer)), max(1, int(side * width / longer))


def _random_offset(length: int, window: int) -> int:
    """Return a random offset of a window in an image; negative if the window is longer than the image."""
    slack = length - window
    drawn = int(torch.randint(abs(slack) + 1, ())) if slack else 0
    return drawn if slack >= 0 else drawn + slack


def _shrink_boxes(boxes: Tensor, parts: list[tuple[int, int, np.ndarray]], window: Size) -> Tensor:
    """Shrink boxes at the edge of the window to their masks; a box without visible mask has no area."""
    extents = [
        (left, top, left + part.shape[1], top + part.shape[0]) if part.size else (0, 0, 0, 0)
        for top, left, part in parts
    ]
    seen = boxes.new_tensor(extents).reshape(-1, 4)
    least, most = torch.maximum(boxes, seen)[:, :2], torch.minimum(boxes, seen)[:, 2:]
    tight = torch.cat([least, torch.maximum(least, most)], dim=1)
    touches = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2:] >= boxes.new_tensor(window[::-1])).any(1)
    # Boxes of masks without a visible pixel shrink to no area.
    touches |= seen[:, 2] == 0
    return torch.where(touches[:, None], tight, boxes)


def _full_masks(
    parts: list[tuple[int, int, np.ndarray]], window: Size, *, flipped: bool = False
) -> tv_tensors.Mask:
    """Return masks of the whole window, uint8 of shape [n, *window], from their visible parts."""
    drawn = np.zeros((len(parts), *window), np.uint8)
    for own, (top, left, part) in zip(drawn[:, :, ::-1] if flipped else drawn, parts, strict=True):
        own[top : top + part.shape[0], left : left + part.shape[1]] = part
    return tv_tensors.Mask(torch.from_numpy(drawn))


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)
