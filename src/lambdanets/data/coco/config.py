"""The configuration of data for detectors: annotations, size of the images, and augmentation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from ..config import GROUP, MAX_PIXELS, _check, _is_fraction, _is_range, is_group

COCO_SOURCES = "coco:FOLDER with annotations/instances_train2017.json and the like, or coco:ANNOTATIONS.json"


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """The source of annotated images, and their form as the input of a detector.

    Args:
        source: "coco:FOLDER" (annotations/instances_train2017.json and instances_val2017.json, or the same
            without the year; or train/_annotations.coco.json and valid/_annotations.coco.json), or
            "coco:ANNOTATIONS.json", one file, whose images are split by `val_fraction`.
        images: folder that the file names start from; None searches the folder of the split, images/, the
            folder of the source, which contains annotations/, and the folder of the json.
        train_split: name of the training split of a folder, for files of other names; None takes train2017 or
            train. Of a single file it must be None.
        val_split: name of the validation split, in the same way; None takes val2017, val or valid.
        val_fraction: fraction of the images of one file that is held out; 1.0 holds out everything, to
            evaluate. A photo that is listed twice is on one side.
        group: keep all images of a group, such as a plate or a patient, on one side. "folder" takes the
            folder in the `file_name` of an image, anything else is a regular expression with one part in
            parentheses, which is looked for in it, such as "^([^_]+)_". A source that has both sides is
            refused if a group is on both.
        masks: train on masks and boxes; False trains on boxes alone.
        image_size: side of the square that training crops, in pixels, and the longer side of an image at
            scale 1.
        scale: smallest and largest size of a training image, with 1 for `image_size` on the longer side. The
            paper takes (0.1, 2.0).
        crop: crop a random square of `image_size` from a training image, padded if the image is smaller; else
            the whole image is used and batches differ in size.
        flip: probability of a left-right flip.
        fill: colour of the padding, from 0 to 255; ImageNet's mean becomes 0 when it is normalised.
        resize: resize the longer side of evaluated images to `image_size`; else their size is unchanged.
        min_area: smallest area of a box, in pixels after scaling and cropping; smaller objects are not
            trained on.
        batch_size: images in a step of one process.
        workers: processes that read images; 0 reads in the training process.
        group_by_ratio: make batches of images of similar aspect ratio; without effect if `crop` is set.
        drop_empty: do not train on images without objects; else they serve as examples of background.
        on_bad_annotation: "refuse" to start when an annotation is broken, or "skip" it with a warning.
        on_bad_image: "refuse" to start when an image is missing, cannot be decoded or differs in size from
            its entry, or "skip" it with a warning. Under "refuse" only headers are read before the start, so
            that a damaged end is found when the image is read; under "skip" all images are decoded before the
            start.
        max_pixels: highest width times height of an image; a larger one is refused before it is decoded.
    """

    source: str
    images: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
    group: str | None = None
    masks: bool = True
    image_size: int = 1024
    scale: tuple[float, float] = (1.0, 1.0)
    crop: bool = True
    flip: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)
    resize: bool = True
    min_area: float = 1.0
    batch_size: int = 8
    workers: int = 2
    group_by_ratio: bool = False
    drop_empty: bool = False
    on_bad_annotation: Literal["refuse", "skip"] = "refuse"
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        kind, _, root = str(self.source).partition(":")
        _check(kind == "coco" and bool(root), "data.source", COCO_SOURCES, self.source)
        for name in ("images", "train_split", "val_split"):
            _check(getattr(self, name) != "", f"data.{name}", "a name, or None", "")
        for name, least in (("image_size", 1), ("batch_size", 1), ("workers", 0), ("max_pixels", 1)):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= least, f"data.{name}", f"{least} or more", value)
        for name in ("scale", "fill"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check(_is_range(self.scale), "data.scale", "two numbers, 0 < smallest <= largest", self.scale)
        valid = len(self.fill) == 3 and all(value in range(256) for value in self.fill)
        _check(valid, "data.fill", "three whole numbers from 0 to 255", self.fill)
        _check(_is_fraction(self.flip), "data.flip", "a probability from 0 to 1", self.flip)
        valid = _is_fraction(self.val_fraction) and self.val_fraction > 0
        _check(valid, "data.val_fraction", "above 0 and at most 1", self.val_fraction)
        _check(is_group(self.group), "data.group", GROUP, self.group)
        _check(self.min_area >= 1, "data.min_area", "1 or more", self.min_area)
        for name in ("on_bad_annotation", "on_bad_image"):
            value = getattr(self, name)
            _check(value in ("refuse", "skip"), f"data.{name}", "one of refuse, skip", value)

    def resolved(self) -> CocoConfig:
        """Return the same configuration with absolute paths, which are valid in any working directory."""
        root = os.path.abspath(os.path.expanduser(self.source.removeprefix("coco:")))
        images = self.images and os.path.abspath(os.path.expanduser(self.images))
        return replace(self, source=f"coco:{root}", images=images)

    def without_paths(self) -> CocoConfig:
        """Return the same configuration without paths of images and annotations."""
        return replace(self, source="coco:.", images=None)
