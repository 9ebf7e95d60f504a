"""The configuration of the data: source, size and normalisation of the images, and augmentation."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.449,), (0.226,))  # ImageNet's channels averaged
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_PIXELS = 2**28  # most pixels of an image, which needs 768 MiB as RGB
GROUP = "folder, a regular expression with one part in parentheses such as '^([^_]+)_', or None"
HoldOut = Literal["exact", "stable"]
_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t\w+))*")


def _check(valid: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError with the field's name, the expected values and the value got, unless it is valid."""
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {got!r}.")


def is_group(value: str | None) -> bool:
    """Return whether a value of `data.group` is valid: None, "folder" or an expression with one group."""
    try:
        return value in (None, "folder") or re.compile(value).groups == 1
    except (re.error, TypeError):
        return False


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _is_range(value: tuple[float, ...]) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] < math.inf


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The augmentation of training images; all of it is off by default.

    The steps run in this order: crop, flip, RandAugment, colour jitter, normalisation, erasing, mixing.

    Args:
        crop: "none" (as in evaluation), "pad" (pad by `pad` black pixels, then crop a random square, for
            small images), or "random_resized" (a random part of the image, resized: for photographs).
        pad: pixels added to each side by "pad".
        scale: smallest and largest part of the area that "random_resized" keeps.
        ratio: smallest and largest width / height of a crop of "random_resized".
        flip: probability of a left-right flip.
        rand_augment: configuration string of timm's RandAugment, such as "rand-m9-n2-mstd0.5".
        color_jitter: strength of random changes of brightness, contrast and saturation.
        random_erasing: probability that a random rectangle is set to the mean colour.
        mixup: blend each image of a batch with another, and their labels in the same ratio, which is drawn
            from Beta(mixup, mixup) for each batch, such as 0.2; 0 is off. The training accuracy is then that
            of the class with the larger part.
        cutmix: the same with a rectangle of the other image, of an area drawn from Beta(cutmix, cutmix), such
            as 1.0; 0 is off. With both, each batch takes one of them at random.
        mix_prob: probability that a batch is mixed.
        mix_off_epochs: last epochs of a run, which are not mixed.
    """

    crop: Literal["none", "pad", "random_resized"] = "none"
    pad: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rand_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_off_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            value = getattr(self, name)
            _check(_is_range(value), f"augment.{name}", "two numbers, 0 < smallest <= largest", value)
        _check(self.scale[1] <= 1, "augment.scale", "parts of the area, at most 1", self.scale)
        crops = ("none", "pad", "random_resized")
        _check(self.crop in crops, "augment.crop", f"one of {', '.join(crops)}", self.crop)
        _check(isinstance(self.pad, int) and self.pad >= 0, "augment.pad", "pixels, 0 or more", self.pad)
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            _check(0 <= value < math.inf, f"augment.{name}", "0 (off) or more", value)
        off = self.mix_off_epochs
        _check(isinstance(off, int) and off >= 0, "augment.mix_off_epochs", "epochs, 0 or more", off)
        for name in ("flip", "random_erasing", "mix_prob"):
            value = getattr(self, name)
            _check(_is_fraction(value), f"augment.{name}", "a probability from 0 to 1", value)
        jitter = self.color_jitter
        valid = jitter is None or _is_fraction(jitter)
        _check(valid, "augment.color_jitter", "a strength from 0 to 1, or None", jitter)
        spec = self.rand_augment
        valid = spec is None or _RAND_AUGMENT.fullmatch(spec) is not None
        _check(valid, "augment.rand_augment", "like 'rand-m9-n2-mstd0.5' (see timm), or None", spec)

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of the images, and their form as the input of a model.

    A folder has train/ and val/ with one folder per class, or is one folder of class folders, which is split.
    "csv:FILE.csv" is a table of files, with the columns path and label, and perhaps split and group.
    "tar:PATH" names tar archives with random access: a folder of them, a pattern, or one, with class folders
    or WebDataset's .cls files inside, and with train or val in their names, in the folders around them or
    inside them, else they are split. "torch/NAME:PATH" is a data set of torchvision, such as "torch/cifar10",
    and "hfds/NAME" one of the Hugging Face hub; "hfids/NAME" streams the same, or a folder, from parquet
    files. "wds/NAME:PATH" streams the tar files of WebDataset from a folder, a URL or a command ("pipe:").

    Args:
        source: the images: "digits", "folder:PATH", "csv:FILE.csv", "tar:PATH", "torch/NAME:PATH",
            "hfds/NAME", "hfids/NAME" or "wds/NAME:PATH".
        image_size: height and width of a model's input, in pixels.
        in_chans: 3 for RGB, 1 for grey.
        mean: mean of each channel, on a scale from 0 to 1; None takes that of the digits, or of ImageNet.
        std: standard deviation of each channel, on the same scale; None as for `mean`.
        batch_size: images in a step of one process.
        workers: processes that read images; 0 reads in the training process.
        augment: augmentation of the training images.
        val_fraction: fraction that is held out when a source is not split already; 1.0 holds out everything,
            to evaluate on a folder that is not split.
        hold_out: method of splitting a folder or archives that are not split already. "exact" holds out
            exactly `val_fraction` of each class, rounded, and at least one image; when files are added or
            removed, a few others may change sides. "stable" assigns each file to a side by its own name, for
            good, and holds out `val_fraction` on average only.
        group: keep all images of a group, such as a patient or a plate, on one side. "folder" takes the
            folder of a file below its class, anything else is a regular expression with one part in
            parentheses, which is looked for in the path below the class, such as "^([^_]+)_". The path of
            csv: is the one in the table, and of shards with .cls files the one in the archive. None takes the
            column `group` of csv:, if there is one.
        group_column: column of csv: with the groups, in place of `group`.
        multi_label: images of csv: may have several labels each: separated by semicolons in the column of
            labels, or one column of 0 and 1 for each class, which `label_column` names, separated by commas.
        sampling: images of an epoch: "uniform" takes each once, "balanced" takes equally many of each class,
            in an epoch of the same length. Not for streamed sources.
        train_per_class: number of training images of each class (all, where it has fewer), chosen by their
            names alone: the same for every seed. None takes all. Not for streamed sources.
        pseudo_labels: CSV file of labels given by a network (`lambdanets pseudo-label` writes it): train on
            these images, too.
        unlabelled: source of the images of `pseudo_labels`, such as "folder:PATH"; None takes the one that
            the JSON beside that file names.
        pseudo_ratio: number of pseudo-labelled images for each labelled one in a batch, such as 3. An epoch
            is still one pass over the labelled images.
        crop_pct: fraction of the resized image's side that evaluation keeps, in the middle.
        interpolation: interpolation of resizing: nearest, bilinear, bicubic or lanczos.
        on_bad_image: "refuse" to start when an image cannot be decoded or an archive was cut off, or "skip"
            damaged parts with a warning.
        max_pixels: highest width times height of an image; a larger one is refused before it is decoded, as
            a small file may hold an image that fills the memory. Set it higher for large scans.
        check: decode every image of a folder or of archives before training starts. Without it (for
            millions of images) a bad one is found only during training: it is replaced by its neighbour
            under "skip", else it ends the run.
        cache: keep the decoded images in memory; "auto" does so if they need less than 1 GiB.
        order: order of the training images in an epoch. "global" shuffles all of them; "shards" visits the
            archives of tar:PATH in random order and shuffles the images of 16 archives at a time, for storage
            with slow random access.
        train_split: name of the training split of a torch/, hfds/, hfids/ or wds/ source. Of wds/ it is a
            split that _info.json beside the tar files lists, or tar files by name, such as
            "train-{000000..000009}.tar".
        val_split: name of the validation split, in the same form; an empty name divides the training images
            of torch/ and hfds/ by `val_fraction`.
        image_column: column of the images in a csv: or Hugging Face data set (hfds/, hfids/); None takes
            "image", of csv: also "path", "file" or "filename", of hfids/ the only column of images.
        label_column: column of the labels; None takes "label", of csv: also "class", of hfids/ the only
            column of named classes.
        num_classes: number of classes, for a streamed source (wds/, hfids/) that does not name its classes.
        download: download the data set of a torch/ source if it is not in its folder.
    """

    source: str = "digits"
    image_size: int = 224
    in_chans: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int = 128
    workers: int = 2
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    val_fraction: float = 0.1
    hold_out: HoldOut = "exact"
    group: str | None = None
    group_column: str | None = None
    multi_label: bool = False
    sampling: Literal["uniform", "balanced"] = "uniform"
    train_per_class: int | None = None
    pseudo_labels: str | None = None
    unlabelled: str | None = None
    pseudo_ratio: float = 1.0
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    max_pixels: int = MAX_PIXELS
    check: bool = True
    cache: bool | Literal["auto"] = "auto"
    order: Literal["global", "shards"] = "global"
    train_split: str = "train"
    val_split: str = "validation"
    image_column: str | None = None
    label_column: str | None = None
    num_classes: int | None = None
    download: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            _check(False, "data.source", _registry().source_forms(), self.source)
        for name, least in (("image_size", 1), ("batch_size", 1), ("workers", 0), ("max_pixels", 1)):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= least, f"data.{name}", f"{least} or more", value)
        _check(self.in_chans in (1, 3), "data.in_chans", "1 (grey) or 3 (RGB)", self.in_chans)
        valid = self.num_classes is None or self.num_classes >= 1
        _check(valid, "data.num_classes", "1 or more, or None", self.num_classes)
        valid = self.train_per_class is None or self.train_per_class >= 1
        _check(valid, "data.train_per_class", "1 or more, or None", self.train_per_class)
        ratio = self.pseudo_ratio
        valid = isinstance(ratio, int | float) and 0 < ratio < math.inf
        _check(valid, "data.pseudo_ratio", "a number above 0", ratio)
        for name in ("pseudo_labels", "unlabelled"):
            _check(getattr(self, name) != "", f"data.{name}", "a path, or None", "")
        for name in ("val_fraction", "crop_pct"):
            value = getattr(self, name)
            _check(_is_fraction(value) and value > 0, f"data.{name}", "above 0 and at most 1", value)
        choices = {
            "interpolation": INTERPOLATIONS,
            "hold_out": ("exact", "stable"),
            "on_bad_image": ("refuse", "skip"),
            "cache": (True, False, "auto"),
            "sampling": ("uniform", "balanced"),
            "order": ("global", "shards"),
        }
        for name, allowed in choices.items():
            expected = f"one of {', '.join(map(str, allowed))}"
            _check(getattr(self, name) in allowed, f"data.{name}", expected, getattr(self, name))
        _check(is_group(self.group), "data.group", GROUP, self.group)
        valid = self.group is None or self.group_column is None
        _check(valid, "data.group", "None where data.group_column names the groups", self.group)
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
                expected = f"{self.in_chans} numbers (in_chans), on a scale from 0 to 1"
                _check(len(value) == self.in_chans, f"data.{name}", expected, value)
        _check(self.std is None or min(self.std) > 0, "data.std", "above 0", self.std)

    def resolved(self) -> DataConfig:
        """Return the same configuration with explicit `mean` and `std`, and with absolute paths.

        A run stores this form: evaluation on another source then uses the same normalisation, and the paths
        are valid in any working directory.
        """
        source = _registry().find_source(self.source)
        if source is not None and source.statistics is not None:
            mean, std = (value * self.in_chans for value in source.statistics)
        else:
            mean, std = IMAGENET if self.in_chans == 3 else GREY
        return replace(
            self,
            source=resolved_source(self.source),
            pseudo_labels=self.pseudo_labels and os.path.abspath(os.path.expanduser(self.pseudo_labels)),
            unlabelled=self.unlabelled and resolved_source(self.unlabelled),
            mean=self.mean or mean,
            std=self.std or std,
        )

    def without_paths(self) -> DataConfig:
        """Return the same configuration without paths of images and labels, which differ between machines."""
        # A placeholder records whether there are pseudo-labels, without their path.
        labels = self.pseudo_labels and "labels"
        return replace(self, source="digits", pseudo_labels=labels, unlabelled=None)


def resolved_source(text: str) -> str:
    """Return a value of `data.source` with its folder as an absolute path, valid in any working directory."""
    source = _registry().find_source(text)
    return text if source is None else source.resolved()


def _registry() -> Any:
    """Return the registry of sources, imported late because its modules import this one."""
    from . import sources

    return sources
