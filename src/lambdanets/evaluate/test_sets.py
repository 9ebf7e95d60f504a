"""ImageNet's validation set and the test sets derived from it, with their class numbering."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lambdanets.data import DataError
from lambdanets.data.sources.folder import TRAIN_NAMES, VAL_NAMES
from lambdanets.evaluate.corruptions import ALEXNET, EXTRA
from lambdanets.utils.text import join_some


@dataclass(frozen=True, kw_only=True)
class ImageNetSet:
    """A test set for networks trained on ImageNet.

    Args:
        name: Published name.
        numbered: Class folders are named 0 to 999, the indices of the sorted wnids (WordNet ids, such as
            n01440764); otherwise by wnids.
        restricted: Predictions are restricted to the classes of the set, as in its paper.
        cropped: Images are centre crops already, and are not cropped again.
        reference: The publication.
    """

    name: str
    numbered: bool = False
    restricted: bool = False
    cropped: bool = False
    reference: str


TEST_SETS = {
    "imagenet": ImageNetSet(name="ImageNet", reference="Russakovsky et al. 2015, arXiv:1409.0575"),
    "v2": ImageNetSet(name="ImageNet-V2", numbered=True, reference="Recht et al. 2019, arXiv:1902.10811"),
    "a": ImageNetSet(name="ImageNet-A", restricted=True, reference="Hendrycks et al. 2019, arXiv:1907.07174"),
    "r": ImageNetSet(name="ImageNet-R", restricted=True, reference="Hendrycks et al. 2020, arXiv:2006.16241"),
    "sketch": ImageNetSet(name="ImageNet-Sketch", reference="Wang et al. 2019, arXiv:1905.13549"),
    "c": ImageNetSet(
        name="ImageNet-C", cropped=True, reference="Hendrycks and Dietterich 2019, arXiv:1903.12261"
    ),
}


@cache
def wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes, sorted: the order of published logits."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def imagenet_classes(classes: Sequence[str]) -> tuple[str, ...] | None:
    """Return the wnids of a network's classes in the order of its logits; None if they are not ImageNet's.

    Args:
        classes: Wnids, or the numbers of all 1,000 classes in order, as in shards.
    """
    if tuple(classes) == tuple(map(str, range(len(wnids())))):
        return wnids()
    return tuple(classes) if classes and set(classes) <= set(wnids()) else None


def folder_names(test_set: ImageNetSet, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a test set's class folders in the order of the logits.

    Args:
        test_set: A member of `TEST_SETS`.
        classes: Wnids in the order of the logits.

    Example:
        >>> folder_names(TEST_SETS["v2"], ("n01440764", "n01484850"))
        ('0', '2')
    """
    if not test_set.numbered:
        return tuple(classes)
    return tuple(str(wnids().index(wnid)) for wnid in classes)


def describe_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return readable names: WordNet's words for wnids, and other class names as they are."""
    from timm.data.imagenet_info import ImageNetInfo

    info, known = ImageNetInfo("imagenet-1k"), set(wnids())
    names = imagenet_classes(classes) or classes
    return tuple(info.label_name_to_description(name) if name in known else name for name in names)


def recognise_test_set(root: Path) -> str:
    """Return the key in `TEST_SETS` of the set that a folder holds, by the names of its subfolders.

    If it holds val/, or else train/, the subfolders of that one count. ImageNet-A and -R are recognised by
    their 200 classes, ImageNet-Sketch by the names of its files.

    Raises:
        DataError: The folder does not exist, or is none of the sets.
    """
    names = _subfolders(root)
    lower = {name.lower(): name for name in names}
    if side := next((lower[name] for name in (*VAL_NAMES, *TRAIN_NAMES) if name in lower), None):
        return recognise_test_set(root / side)
    if not names:
        raise DataError(f"{root} holds no class folders; each class of a test set has a folder of its own.")
    if all(name.isdecimal() and str(int(name)) == name and int(name) < len(wnids()) for name in names):
        return "v2"
    strange = sorted(set(names) - set(wnids()))
    known = {*ALEXNET, *EXTRA}
    if any(name in known or known & set(_subfolders(root / name)) for name in strange):
        return "c"
    if strange:
        raise DataError(
            f"{root} holds folders that are no classes of ImageNet: {join_some(strange, 3)}; "
            "expected wnids such as 'n01440764', or the numbers from 0 to 999."
        )
    for key in ("a", "r"):
        if set(names) == set(_published(key)):
            return key
    is_sketch = any(file.name.startswith("sketch_") for file in (root / sorted(names)[0]).iterdir())
    return "sketch" if is_sketch else "imagenet"


@cache
def _published(key: str) -> tuple[str, ...]:
    """Return the classes of ImageNet-A or -R from timm's files."""
    content = pkgutil.get_data("timm.data", f"_info/imagenet_{key}_synsets.txt") or b""
    return tuple(content.decode().split())


def _subfolders(path: Path) -> list[str]:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}.")
    return [each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")]
