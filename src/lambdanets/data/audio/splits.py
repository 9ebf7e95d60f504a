"""The training and validation side of a folder of recordings: checked and ready to load."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lambdanets.utils.progress import MANY, Progress, progress_bar
from lambdanets.utils.text import join_some

from ..balance import warn_dominant_class
from ..check import MEMORY_LIMIT, SIZE_SAMPLES, run_in_threads
from ..errors import DataError, SourceWarning, listing
from ..sources.csv import read_table
from ..sources.folder import Folder, Sample, folder_fingerprint, read_folder, warn_without_validation
from .audio_set import AudioSet
from .config import AudioDataConfig
from .recordings import RECORDINGS, require_packages, sample_rate

RATE_SAMPLES = 1000  # files, about, whose rate is read to find the most frequent one


@dataclass(frozen=True)
class AudioSplits:
    """The training and validation side of a source.

    Attributes:
        train: training recordings, augmented as configured.
        val: validation recordings, without augmentation.
        classes: names, in the order of the targets.
        fingerprint: a hash of the names and classes of the files on each side.
    """

    train: AudioSet
    val: AudioSet
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def skipped(self) -> tuple[str, ...]:
        """One sentence for each recording that was left out."""
        return (*self.train.skipped, *self.val.skipped)


def open_audio(config: AudioDataConfig, *, seed: int = 0, progress: Progress | None = None) -> AudioSplits:
    """Open a source of recordings for training.

    Args:
        config: the source and its options; without a sample rate, that of most files is taken.
        seed: seed of the split, used if the folder is not split already.
        progress: called with (recordings done, all recordings) while files are decoded; None shows a bar in a
            terminal if there are many.

    Returns:
        Both sides and the names of the classes.

    Raises:
        DataError: there is no such folder, it is empty or of one class, its sides do not agree, a package is
            missing, or files in it cannot be used and `on_bad_recording` is "refuse".
    """
    require_packages()
    config = config.resolved()
    found = _read(config, seed=seed)
    if len(found.classes) < 2:
        held = join_some(found.classes)
        raise DataError(f"{config.source!r} holds one class ({held}); at least two are needed to train on.")
    sides = {
        name: _make_set(samples, found.classes, config, train=name == "training")
        for name, samples in (("training", found.train), ("validation", found.val))
    }
    for name, side in sides.items():
        if not len(side):
            raise DataError(f"no recordings are left for {name}: val_fraction is {config.val_fraction}.")
    _check_or_cache(sides, config, progress)
    train, val = sides.values()
    warn_dominant_class(val.targets, found.classes, "recordings")
    files = [list(zip(side.paths, side.targets.tolist(), strict=True)) for side in (train, val)]
    root = Path(config.root)
    fingerprint = folder_fingerprint(root.parent if is_table(config) else root, files, found.classes)
    return AudioSplits(train, val, found.classes, fingerprint)


def open_audio_split(
    config: AudioDataConfig,
    split: Literal["train", "val"] = "val",
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> AudioSet:
    """Open one side of a source of recordings for evaluation, without augmentation.

    Args:
        config: the source; with `val_fraction=1.0` all of a folder that is not split is its "val" side.
        split: "train" or "val".
        seed: seed of the split.
        classes: classes of the run to evaluate; the folder may have some of them and no others. None takes
            those of the folder.
        progress: as in `open_audio`.

    Raises:
        DataError: as in `open_audio`, or for other classes.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}.")
    require_packages()
    config = config.resolved()
    found = _read(config, seed=seed, classes=classes)
    side = _make_set(found.train if split == "train" else found.val, found.classes, config)
    if not len(side):
        raise DataError(f"the {split} side of {config.source!r} holds no recordings.")
    _check_or_cache({"validation": side}, config, progress)
    return side


def most_frequent_rate(config: AudioDataConfig) -> int:
    """Return the sample rate of most files of a source, the highest of equally frequent ones.

    Raises:
        DataError: there is no such folder, or no file in it can be read.
    """
    require_packages()
    with warnings.catch_warnings():
        # The source is opened again, and warns then.
        warnings.simplefilter("ignore", SourceWarning)
        found = _read(replace(config, val_fraction=1.0), seed=0)
    paths = [path for path, _ in (*found.train, *found.val)]
    rates: Counter[int] = Counter()
    reason = ""
    for path in paths[:: max(1, len(paths) // RATE_SAMPLES)]:
        try:
            rates[sample_rate(path)] += 1
        except DataError as error:
            reason = reason or str(error)
    if not rates:
        raise DataError(f"not one recording of {config.source!r} can be read; the first: {reason}")
    return max(rates, key=lambda rate: (rates[rate], rate))


def is_table(config: AudioDataConfig) -> bool:
    """Return whether the source is a table of files, audio:FILE.csv."""
    return config.root.lower().endswith(".csv")


def _read(config: AudioDataConfig, *, seed: int, classes: Sequence[str] | None = None) -> Folder:
    """Find the recordings of a folder or of a table, and their split."""
    how: Any = {"seed": seed, "classes": classes, "val_fraction": config.val_fraction, "kind": RECORDINGS}
    read = read_table if is_table(config) else read_folder
    return read(config.root, **how, hold_out=config.hold_out, group=config.group)


def _make_set(
    samples: Sequence[Sample], classes: Sequence[str], config: AudioDataConfig, *, train: bool = False
) -> AudioSet:
    targets = np.array([target for _, target in samples], np.int64)
    return AudioSet([path for path, _ in samples], targets, classes, config, train=train)


def _check_or_cache(sides: dict[str, AudioSet], config: AudioDataConfig, progress: Progress | None) -> None:
    """Read the recordings of all sides, and keep their features if that is small; refuse or skip bad ones."""
    cache = config.cache
    if cache == "auto":
        cache = config.check and sum(map(_cache_bytes, sides.values())) < MEMORY_LIMIT
    if not cache and not config.check:
        return
    total = sum(map(len, sides.values()))
    bad: dict[str, dict[int, str]] = {}
    bar = nullcontext(progress) if progress else progress_bar("Reading recordings", total, least=MANY)
    with bar as report:
        before = 0
        for name, side in sides.items():
            features: list = [None] * len(side)

            def read(index: int, side: AudioSet = side, features: list = features) -> None:
                found = side.read(index)
                if cache:
                    features[index] = found

            bad[name] = run_in_threads(
                read, len(side), lambda done, before=before: report(before + done, total)
            )
            side.cached = features if cache else None
            before += len(side)
    _report(sides, bad, total, config)


def _cache_bytes(side: AudioSet) -> int:
    """Return the bytes of the features of a side, estimated from a sample of its recordings."""
    sizes = []
    for index in range(0, len(side), max(1, len(side) // SIZE_SAMPLES)):
        try:
            sizes.append(side.read(index).nbytes)
        except DataError:
            continue  # the check reports the same error
    return len(side) * int(np.mean(sizes)) if sizes else 0


def _report(
    sides: dict[str, AudioSet], bad: dict[str, dict[int, str]], total: int, config: AudioDataConfig
) -> None:
    """Refuse recordings that cannot be used, or leave them out with a warning."""
    sentences = [found[index] for found in bad.values() for index in sorted(found)]
    if not sentences:
        return
    summary = f"{len(sentences)} of {total} recordings cannot be used:{listing(sentences)}"
    if config.on_bad_recording == "refuse":
        raise DataError(
            f"{summary}\nRepair or remove them, or leave them out with --set data.on_bad_recording=skip."
        )
    for name, side in sides.items():
        emptied = side.leave_out(bad[name])
        if emptied and (name == "training" or not len(side)):
            raise DataError(f"without its bad recordings, class {emptied[0]!r} is empty.")
        if name == "validation":
            where = f"without its bad recordings the validation side of {config.source!r}"
            warn_without_validation(where, emptied, RECORDINGS)
    warnings.warn(f"{summary}\nThey are left out.", SourceWarning, stacklevel=4)


def describe_audio(splits: AudioSplits) -> dict[str, int | str]:
    """Return numbers of classes and recordings, to print or to write into a run's folder."""
    summary: dict[str, int | str] = {"classes": len(splits.classes)}
    for name, side in (("train", splits.train), ("val", splits.val)):
        counts = np.bincount(side.targets, minlength=len(splits.classes))
        least, most = int(counts.argmin()), int(counts.argmax())
        summary[name] = len(side)
        summary[f"{name} recordings per class"] = (
            str(counts[least])
            if counts[least] == counts[most]
            else f"{counts[least]} ({splits.classes[least]}) to {counts[most]} ({splits.classes[most]})"
        )
    summary["skipped"] = len(splits.skipped)
    return summary
