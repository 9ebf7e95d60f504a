"""One split of annotated images for a detector: each sample is a function of (seed, epoch, index)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..config import MAX_PIXELS
from ..images import read_image
from ..randomness import RANDOM_CROP, keys, preserved, reseed
from .masks import Masks, coco_tool, rasterise, run_lengths
from .transforms import corners

Sample = tuple[tv_tensors.Image, dict[str, Any]]
Entry = dict[str, Any]
STORED_FIELDS = ("id", "file_name", "width", "height")  # fields of an image entry that are stored


class CocoSet(Dataset):
    """Images with annotated objects; the entries were checked already.

    Args:
        images: entries with id, file_name, width, height and path.
        annotations: annotations of each image, by image id.
        categories: names by id; labels count them in this order, from 1.
        transform: called with an image and its target, and returns both with the masks rasterised. It may
            draw from the global generators, which are seeded for each sample.
        train: leave crowds (iscrowd 1: groups of objects under one mask) out of the targets.
        masks: whether targets have masks.
        max_pixels: larger images are refused.
        skipped: one sentence for each entry of its json that was left out.

    Attributes:
        classes: category names, in the order of the labels.
        category_ids: ids in the json, in the same order.
        image_ids: ids in the json, int64 of shape [n].
        sizes: height and width of each stored image in pixels, int64 of shape [n, 2].
        objects: number of annotated objects that are no crowds.
        crowds: number of crowds.
    """

    def __init__(
        self,
        images: Sequence[Entry],
        annotations: dict[int, list[Entry]],
        categories: dict[int, str],
        transform: nn.Module,
        *,
        train: bool,
        masks: bool = True,
        max_pixels: int = MAX_PIXELS,
        skipped: Sequence[str] = (),
    ):
        self.max_pixels = max_pixels
        self.transform, self.train, self.masks, self.skipped = transform, train, masks, tuple(skipped)
        self.classes = tuple(categories.values())
        self.category_ids = tuple(categories)
        self._labels = {number: label for label, number in enumerate(categories, start=1)}
        self.image_ids = np.array([entry["id"] for entry in images], dtype=np.int64)
        self.sizes = np.array([(entry["height"], entry["width"]) for entry in images], dtype=np.int64)
        # Forked workers share one array of bytes without copying it. Millions of objects would be copied, as
        # reading one changes its reference count.
        self._paths = np.array([os.fsencode(entry["path"]) for entry in images], dtype=np.bytes_)
        own = [entry for image in images for entry in annotations[image["id"]]]
        self.crowds = sum(bool(entry.get("iscrowd")) for entry in own)
        self.objects = len(own) - self.crowds
        lines = [
            json.dumps([{key: entry[key] for key in STORED_FIELDS}, annotations[entry["id"]]]).encode()
            for entry in images
        ]
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._lines = np.frombuffer(b"".join(lines), np.uint8)

    def __len__(self) -> int:
        return len(self.image_ids)

    def without_masks(self) -> CocoSet:
        """Return the same set, whose targets have no masks: rasterising them takes time and memory."""
        bare = copy(self)
        bare.masks = False
        return bare

    def entry(self, index: int) -> tuple[Entry, list[Entry]]:
        """Return the entry of an image and the entries of its annotations, as in the json."""
        start = self._ends[index - 1] if index else 0
        image, annotations = json.loads(self._lines[start : self._ends[index]].tobytes())
        return image, annotations

    def content(self) -> bytes:
        """Return all entries without the paths of the images, for a fingerprint."""
        return self._lines.tobytes() + json.dumps(self.classes).encode()

    def path(self, index: int) -> str:
        """Return the file of a sample."""
        return os.fsdecode(self._paths[index])

    def original(self, index: int) -> Sample:
        """Return one sample without resizing and augmentation.

        The pixels match the annotations: an image whose stored size is that of the json is not rotated, even
        if it has an EXIF orientation; any other is rotated upright and must then have that size.

        Args:
            index: from 0 to len - 1.

        Returns:
            The RGB image, uint8 of shape [3, height, width], and its target: `boxes` float32 of shape [n, 4],
            left, top, right and bottom in pixels; `labels` int64 of shape [n], from 1 on; `masks` uint8 of
            shape [n, height, width]; `area` float32 of shape [n], in pixels of the stored image, and
            `iscrowd` int64 of shape [n]; `image_id`, an int; `orig_size`, (height, width) of the stored
            image.

        Raises:
            DataError: the image cannot be read, or is of another size; the message names it.
        """
        image, target = self.stored(index)
        if "masks" in target:
            masks = target["masks"]
            drawn = rasterise(masks.segmentations, masks.height, masks.width)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(drawn))
        return image, target

    def stored(self, index: int) -> Sample:
        """Return one sample as `original` does, but with encoded masks (`Masks`) instead of pixels."""
        image, annotations = self.entry(index)
        if self.train:
            annotations = [entry for entry in annotations if not entry.get("iscrowd")]
        height, width = size = image["height"], image["width"]
        pixels = np.array(read_image(self.path(index), size=(width, height), max_pixels=self.max_pixels))
        boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        boxes = boxes.clip(0, [width, height, width, height])
        target = {
            "boxes": corners(torch.from_numpy(boxes).float(), size),
            "labels": torch.tensor([self._labels[e["category_id"]] for e in annotations], dtype=torch.int64),
            "image_id": image["id"],
            "area": torch.tensor([self._area(e, size) for e in annotations], dtype=torch.float32),
            "iscrowd": torch.tensor([e.get("iscrowd", 0) for e in annotations], dtype=torch.int64),
            "orig_size": size,
        }
        if self.masks:
            target["masks"] = Masks([entry["segmentation"] for entry in annotations], height, width)
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)), target

    def item(self, index: int, epoch: int = 0, seed: int = 0) -> Sample:
        """Return one sample as the input of a detector: as `original`, resized and augmented.

        Args:
            index: from 0 to len - 1.
            epoch: counted from 0; with the seed and the index it decides the augmentation.
            seed: seed of the run.

        Returns:
            The image and its target, with masks rasterised at the size of the augmented image.
        """
        images, targets = self.batch([index], epoch, seed)
        return images[0], targets[0]

    def __getitem__(self, index: int) -> Sample:
        return self.item(index)

    def batch(
        self, indices: Sequence[int] | np.ndarray, epoch: int | np.ndarray = 0, seed: int = 0
    ) -> tuple[list[tv_tensors.Image], list[dict[str, Any]]]:
        """Return several samples, as `item` does each.

        Args:
            indices: b of them.
            epoch: one for all samples, or an array of shape [b].
            seed: seed of the run.

        Returns:
            A list of b images and a list of b targets.
        """
        rows = np.asarray(indices, dtype=np.intp)
        images, targets = [], []
        with preserved():
            for row, key in zip(rows, keys(seed, epoch, rows), strict=True):
                sample = self.stored(int(row))
                reseed(key, RANDOM_CROP)
                image, target = self.transform(*sample)
                images.append(image)
                targets.append(target)
        return images, targets

    def ground_truth(self) -> dict[str, list[Entry]]:
        """Return the set as the content of a COCO json, for pycocotools, without skipped entries."""
        images, annotations = [], []
        for index in range(len(self)):
            image, own = self.entry(index)
            size = image["height"], image["width"]
            images.append(image)
            annotations += (
                entry | {"area": self._area(entry, size), "iscrowd": entry.get("iscrowd", 0)} for entry in own
            )
        names = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _area(self, entry: Entry, size: tuple[int, int]) -> float:
        """Return the listed area in pixels or, without one, that of the mask, or of the box without masks."""
        if "area" in entry:
            return entry["area"]
        if not self.masks:
            return entry["bbox"][2] * entry["bbox"][3]
        return float(coco_tool().area(run_lengths(entry["segmentation"], *size)))
