"""What to detect on: COCO's annotations, the size of the images, and how they are varied."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from ..config import MAX_PIXELS, _check, _is_fraction, _is_range

COCO_SOURCES = "coco:FOLDER with annotations/instances_train2017.json and the like, or coco:ANNOTATIONS.json"


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """Where annotated images come from, and the form in which a detector gets them.

    Args:
        source: "coco:FOLDER" (annotations/instances_train2017.json and instances_val2017.json, or the same
            without the year; or train/_annotations.coco.json and valid/_annotations.coco.json), or
            "coco:ANNOTATIONS.json", one file, whose images are split by `val_fraction`.
        images: the folder that the file names start from; None looks in that of the split, in images/, in the
            source's folder itself, which is above annotations/, and beside the json.
        train_split, val_split: names of the splits of a folder, for files of other names; None takes
            train2017 or train, and val2017, val or valid. Of a single file they must be None.
        val_fraction: part of the images of one file that is held out; 1.0 holds out everything, to evaluate.
            A photo that is listed twice is on one side.
        masks: whether there are masks to learn, or boxes alone.
        image_size: side of the square that training cuts out, in pixels, and the longer side of an image at
            scale 1.
        scale: smallest and largest size of a training image, with 1 for `image_size` on the longer side. The
            paper takes (0.1, 2.0).
        crop: cut a random square of `image_size` out of the training image, padded where that is smaller;
            else the image is taken whole and batches differ in size.
        flip: probability of a left-right flip.
        fill: colour of the padding, from 0 to 255; ImageNet's mean becomes 0 when it is normalised.
        resize: bring the longer side of evaluated images to `image_size`; else they are left as they are.
        min_area: an object whose box is smaller than so many pixels after scaling and cropping is not
            trained on.
        batch_size: images in a step of one process.
        workers: processes that read images; 0 reads in the training process.
        group_by_ratio: put wide images into batches of their own, and tall ones; of use without `crop`.
        drop_empty: do not train on images without objects; else they show what is background.
        on_bad_annotation: "refuse" to start when an annotation is broken, or "skip" it with a warning.
        on_bad_image: the same for an image that is missing, cannot be decoded or is of another size than
            the annotations say. Under "refuse" one whose end is damaged is met when it is read; under
            "skip" all are decoded before the start.
        max_pixels: width times height that an image may have at most, as in `DataConfig`.
    """

    source: str
    images: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
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
        known = len(self.fill) == 3 and all(value in range(256) for value in self.fill)
        _check(known, "data.fill", "three whole numbers from 0 to 255", self.fill)
        _check(_is_fraction(self.flip), "data.flip", "a probability from 0 to 1", self.flip)
        known = _is_fraction(self.val_fraction) and self.val_fraction > 0
        _check(known, "data.val_fraction", "above 0 and at most 1", self.val_fraction)
        _check(self.min_area >= 1, "data.min_area", "1 or more", self.min_area)
        for name in ("on_bad_annotation", "on_bad_image"):
            value = getattr(self, name)
            _check(value in ("refuse", "skip"), f"data.{name}", "one of refuse, skip", value)

    def resolved(self) -> CocoConfig:
        """Return the same configuration with its paths written out, to be found from any directory."""
        root = os.path.abspath(os.path.expanduser(self.source.removeprefix("coco:")))
        images = self.images and os.path.abspath(os.path.expanduser(self.images))
        return replace(self, source=f"coco:{root}", images=images)

    def placeless(self) -> CocoConfig:
        """Return the same without the places where images and annotations lie."""
        return replace(self, source="coco:.", images=None)
