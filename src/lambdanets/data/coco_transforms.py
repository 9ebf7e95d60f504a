"""How annotated images are resized, cut and flipped: torchvision's transforms, put together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from .coco_config import CocoConfig

_BoundingBoxes: Any = (
    tv_tensors.BoundingBoxes
)  # type checkers take it for a Tensor, with a Tensor's arguments


def corners(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return left, top, right and bottom, of shape (n, 4), as boxes on an image of that height and width."""
    return _BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)


class Jitter(v2.ScaleJitter):
    """torchvision's, for long images, too: a side of less than a pixel is one pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size to resize to."""
        height, width = super().make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}


class TightenCutBoxes(nn.Module):
    """Shrink the boxes of objects that a crop has cut to what is left of their masks.

    Cutting a box keeps parts of it in which the object may have nothing. Boxes that do not touch the edge
    stay as they are, as annotations are finer than pixels; objects of which nothing is left get a box without
    area.
    """

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Take and return an image and its target."""
        if "masks" not in target:
            return image, target
        boxes, masks = (target[name].as_subclass(Tensor) for name in ("boxes", "masks"))
        height, width = image.shape[-2:]
        left = torch.stack([*_extent(masks.amax(1)), *_extent(masks.amax(2))])[[0, 2, 1, 3]].T
        least, most = torch.maximum(boxes, left)[:, :2], torch.minimum(boxes, left)[:, 2:]
        tight = torch.cat([least, torch.maximum(least, most)], dim=1)
        touches = (boxes[:, :2] <= 0).any(1) | (boxes[:, 2:] >= boxes.new_tensor([width, height])).any(1)
        touches |= left[:, 2] == 0
        boxes = torch.where(touches[:, None], tight, boxes)
        return image, target | {"boxes": corners(boxes, (height, width))}


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """Where what is not zero begins and ends in each row, of shape (n, length); 0 and 0 where all is zero."""
    places = torch.arange(line.shape[1], dtype=torch.float32)
    end = torch.where(line > 0, places + 1, 0).amax(1)
    begin = torch.where(line > 0, places, line.shape[1]).amin(1)
    return torch.minimum(begin, end), end


def train_transform(config: CocoConfig) -> v2.Compose:
    """Return what varies training images, drawing from torch's generator: scale, crop and flip.

    It takes and returns (image, target). What is not seen any more, or is smaller than `config.min_area`, is
    dropped from boxes, labels, masks, area and iscrowd alike.
    """
    side = config.image_size
    steps: list[nn.Module] = [Jitter((side, side), config.scale)]
    if config.crop:
        fill = {tv_tensors.Image: config.fill, "others": 0}
        steps.append(v2.RandomCrop(side, pad_if_needed=True, fill=fill))
    return v2.Compose(
        [
            *steps,
            TightenCutBoxes(),
            v2.RandomHorizontalFlip(config.flip),
            v2.SanitizeBoundingBoxes(min_area=config.min_area, labels_getter=_by_object),
        ]
    )


def eval_transform_coco(config: CocoConfig) -> v2.Transform:
    """Return what brings evaluated images to their size; targets follow."""
    return v2.Resize(size=None, max_size=config.image_size) if config.resize else v2.Identity()


def _by_object(inputs: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(inputs[1][name] for name in ("labels", "area", "iscrowd"))
