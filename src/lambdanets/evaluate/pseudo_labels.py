"""Pseudo-labels: a teacher labels images without labels, and some of them are selected for training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lambdanets.data import DataError, Labels, eval_transform, open_unlabelled, select
from lambdanets.data.config import resolved_source
from lambdanets.data.image_source import ImageSource
from lambdanets.data.labels import folder_truths, parse_labels, to_csv
from lambdanets.data.loader import checked_workers
from lambdanets.data.pseudo import locations, metadata_path, overlap
from lambdanets.data.sources import open_source
from lambdanets.data.unlabelled import training_side
from lambdanets.evaluate.label_file import LabelFile, read_label_files
from lambdanets.models import to_channels_last
from lambdanets.train.checkpoint import write_text
from lambdanets.train.errors import RunError
from lambdanets.train.launch import local_rank, rank_and_world_size
from lambdanets.train.progress import format_duration, log_once
from lambdanets.train.run import Run
from lambdanets.train.trainer import device_and_precision, quiet_lightning
from lambdanets.utils.processes import leave_signals_to_parent, locked
from lambdanets.utils.progress import progress_bar_column
from lambdanets.utils.text import json_text

LOG_EVERY = 30.0  # seconds between two progress lines outside a terminal
# Indices of images, their class indices (None if an image could not be read), and probabilities.
Predictions = tuple[list[int], list[int | None], list[float]]


@dataclass(frozen=True, kw_only=True)
class PseudoLabelling:
    """The result of `label`.

    Attributes:
        all_labels: All images that could be read, with their labels.
        selected: The selected ones.
        truths: Class indices of `all_labels` by the names of their folders, `[n]`; None if any image has
            none.
        unreadable: Names of the images that could not be read.
        left_out: Number of images that the teacher was trained on.
        file: The selected labels, with a JSON file of their settings beside it. If none was selected, the
            previous files stay.
    """

    all_labels: Labels
    selected: Labels
    truths: np.ndarray | None
    unreadable: tuple[str, ...]
    left_out: int
    file: Path


def label(
    teacher: Run,
    source: str,
    out: str | Path,
    *,
    threshold: float = 0.3,
    per_class: int | None = None,
    fill: bool = False,
    keep_labelled: bool = False,
    weights: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    workers: int | None = None,
) -> PseudoLabelling | None:
    """Label images with a run, and select the labels that another run may be trained on.

    All labels are written beside `out` before any is selected: an interrupted call continues, and another
    selection needs no network. If several processes were launched, each labels its shard, and the last to
    finish selects.

    Args:
        teacher: A run opened by `load_run`.
        source: "folder:PATH" or "tar:PATH", with images in any folders. If it has train/ and val/, or
            archives of these names, only the training images are labelled: the others evaluate the student.
        out: The CSV file to write, with the columns image, label and probability.
        threshold: Lowest probability of a selected label; Xie et al. take 0.3.
        per_class: Select at most this many of each class, the most confident ones.
        fill: Repeat the images of a smaller class until there are `per_class`.
        keep_labelled: Also label the images that the teacher was trained on.
        weights: Weights of the teacher's best epoch, or of its last.
        batch_size: Images in a batch; None takes the teacher's.
        workers: Processes that read images; None takes the teacher's.

    Returns:
        The result; None if another process still has to label its shard, and then selects.

    Raises:
        ValueError: The threshold is no probability, a number is too small, or `fill` lacks `per_class`.
        DataError: There are no such images, none is left, or none could be read.
        RunError: Files beside `out` hold labels of another teacher or of other images, or `out` is no regular
            file.
        InUseError: Another process makes the same labels.

    References:
        Xie et al., Self-training with Noisy Student, arXiv 1911.04252, section 3; LambdaNetworks, Table 5.

    Example:
        >>> label(load_run("runs/teacher"), "folder:photos", "labels.csv", threshold=0.9)
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability from 0 to 1; got {threshold}")
    if fill and per_class is None:
        raise ValueError("fill repeats images up to per_class of each class: give per_class too")
    numbers = (("per_class", per_class, 1), ("batch_size", batch_size, 1), ("workers", workers, 0))
    for name, value, least in numbers:
        if value is not None and value < least:
            raise ValueError(f"{name} is {least} or more; got {value}")
    if teacher.config.data.multi_label:
        raise DataError("pseudo-labels are one label for each image, and the teacher gives several.")
    config, path, source = teacher.config.data, Path(out), resolved_source(source)
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file that labels could be written to")
    images = open_unlabelled(source, config.in_chans, config.max_pixels)
    names = [images.path(index) for index in range(len(images))]
    if (rows := training_side(names)) is not None:
        log_once(f"{source} has a training and a validation side: only the training side is labelled")
        images, names = images.subset(np.array(rows)), [names[row] for row in rows]
    indices = list(range(len(names))) if keep_labelled else images_not_trained_on(teacher, source, images)
    if not indices:
        raise DataError(f"the teacher was trained on all {len(names)} images of {source!r}; none is left.")
    network = teacher.model(weights)
    settings = {
        "source": source,
        "teacher": teacher.config.model.name,
        "weights": weights_hash(network),
        "images": _hash(names[index] for index in indices),
        "classes": list(teacher.classes),
    }
    rank, world_size = rank_and_world_size()
    files = [_shard_file(path, number, world_size) for number in range(world_size)]
    own_indices = indices[rank::world_size]
    label_files = [
        LabelFile(file, settings, [names[index] for index in indices[number::world_size]], teacher.classes)
        for number, file in enumerate(files)
    ]
    label_file = label_files[rank]
    size = config.batch_size if batch_size is None else batch_size
    with locked(label_file.lock, f"{label_file.path}"):
        done = label_file.start(size)
        if done:
            log_once(f"{done:,} of {len(own_indices):,} images are labelled already")
        if not files[rank].exists():
            reader = _ImageBatches(images, own_indices[done:], eval_transform(config), size)
            loading = DataLoader(
                reader,
                batch_size=None,
                num_workers=checked_workers(config.workers if workers is None else workers),
                worker_init_fn=leave_signals_to_parent,
            )
            with label_file.appending() as file, _progress(len(own_indices), done) as advance:
                for chosen, targets, probabilities in _predictions(teacher, network, loading):
                    label_file.append(file, [names[index] for index in chosen], targets, probabilities)
                    advance(len(chosen))
    if not all(each.exists() for each in files):
        return None
    for each in label_files:
        each.start(size)  # checks that the labels of other shards are of this teacher
    lines, unreadable = read_label_files(files)
    if len(lines) == 1:
        raise DataError(f"not one of the {len(unreadable)} images of {source!r} could be read.")
    all_labels = parse_labels(lines, path, teacher.classes)
    selected = select(all_labels, threshold=threshold, per_class=per_class, fill=fill)
    metadata = settings | {
        "threshold": threshold,
        "per_class": per_class,
        "fill": fill,
        "left_out": len(names) - len(indices),
        "unreadable": len(unreadable),
        "labelled": dict(zip(teacher.classes, all_labels.counts().tolist(), strict=True)),
        "kept": dict(zip(teacher.classes, selected.counts().tolist(), strict=True)),
    }
    if len(selected):
        write_text(metadata_path(path), json_text(metadata, indent=1) + "\n")
        write_text(path, to_csv(selected))
    return PseudoLabelling(
        all_labels=all_labels,
        selected=selected,
        truths=folder_truths(all_labels),
        unreadable=tuple(unreadable),
        left_out=len(names) - len(indices),
        file=path,
    )


def images_not_trained_on(teacher: Run, source: str, images: ImageSource) -> list[int]:
    """Return the indices of the images that a run was not trained on with their own labels."""
    config = teacher.config.data
    if not overlap(source, config.source):
        return list(range(len(images)))
    seen = locations(open_source(config, seed=teacher.config.seed, classes=teacher.classes).train)
    return [index for index in range(len(images)) if images.location(index) not in seen]


def weights_hash(network: nn.Module) -> str:
    """Return a hash of a network's weights and statistics."""
    hashed = blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def _hash(names: Iterator[str]) -> str:
    hashed = blake2b(digest_size=16)
    for name in names:
        hashed.update(f"{name}\0".encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _shard_file(path: Path, rank: int, world_size: int) -> Path:
    """Return the file of all labels of a rank's shard, before the selection."""
    shard = "" if world_size == 1 else f"-{rank + 1}-of-{world_size}"
    return path.with_name(f"{path.stem}.all{shard}.csv")


class _ImageBatches(Dataset):
    """Batches: indices, whether each image could be read, and the images that could, `[r, c, h, w]`."""

    def __init__(
        self,
        images: ImageSource,
        indices: Sequence[int],
        transform: Callable[[Any], Tensor],
        batch_size: int,
    ):
        self.images, self.indices, self.transform = images, indices, transform
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[list[int], list[bool], Tensor]:
        if batch >= len(self):
            raise IndexError(batch)
        chosen = list(self.indices[batch * self.batch_size : (batch + 1) * self.batch_size])
        readable, images = [], []
        for index in chosen:
            try:
                images.append(self.transform(self.images.read(index)))
            except DataError:
                readable.append(False)
            else:
                readable.append(True)
        return chosen, readable, torch.stack(images) if images else torch.empty(0)


@torch.inference_mode()
def _predictions(teacher: Run, network: nn.Module, loading: DataLoader) -> Iterator[Predictions]:
    """Yield the predictions of each batch, computed in the precision of the teacher's training."""
    engine = teacher.config.engine
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if engine.channels_last:
        to_channels_last(network)
    settings = device_and_precision(engine)
    with quiet_lightning():
        fabric = Fabric(
            accelerator=settings["accelerator"],
            devices=[local_rank()] if torch.cuda.is_available() and settings["accelerator"] != "cpu" else 1,
            precision=settings["precision"],
            plugins=[LightningEnvironment()],  # a single process, even under a launcher
        )
        model = fabric.setup_module(network)
        for chosen, readable, images in loading:
            answers: Iterator[tuple[float, int]] = iter(())
            if any(readable):
                best = model(fabric.to_device(images)).float().softmax(-1).max(-1)
                answers = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            rows = [next(answers) if each else (0.0, None) for each in readable]
            yield chosen, [target for _, target in rows], [number for number, _ in rows]


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar in a terminal, lines elsewhere; yield a function that takes the number of further images."""
    console = Console(stderr=True)
    started = logged = time.monotonic()
    before = done
    if console.is_terminal:
        columns = (
            TextColumn("labelling"),
            progress_bar_column(),
            MofNCompleteColumn(),
            TextColumn("[grey62]{task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=done, rate=0.0)

            def draw(more: int) -> None:
                nonlocal done
                done += more
                rate = (done - before) / (time.monotonic() - started)
                bar.update(task, completed=done, rate=rate)

            yield draw
        return

    def log(more: int) -> None:
        nonlocal done, logged
        done += more
        now = time.monotonic()
        if now - logged > LOG_EVERY:
            logged = now
            rate = (done - before) / (now - started)
            left = format_duration((total - done) / rate)
            log_once(f"labelled {done:,} of {total:,}, {rate:,.0f} images/s, {left} left")

    yield log
