"""`label`: what a teacher says about images without labels, and the choice of those to train on."""

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

from lambdanets.data import DataError, Labels, eval_transform, open_pictures, select
from lambdanets.data.config import written_out
from lambdanets.data.labels import folder_truths, parse_labels, to_csv
from lambdanets.data.loader import checked_workers
from lambdanets.data.pictures import Pictures
from lambdanets.data.pseudo import facts_path, overlap, places
from lambdanets.data.sources import open_source
from lambdanets.data.unlabelled import training_side
from lambdanets.train.checkpoint import write_text
from lambdanets.train.engine import arithmetic, quiet
from lambdanets.train.errors import RunError
from lambdanets.train.label_record import Record, read_record
from lambdanets.train.launch import local_rank, share
from lambdanets.train.progress import clock, say
from lambdanets.train.run import Run
from lambdanets.utils.processes import leave_signals_to_parent, locked
from lambdanets.utils.progress import progress_bar_column
from lambdanets.utils.text import json_text

SAY_EVERY = 30.0  # seconds between lines about the progress where no bar can be drawn
Answers = tuple[list[int], list[int | None], list[float]]  # images, classes, probabilities


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What came out.

    Attributes:
        everything: the images that could be read, each with its label.
        kept: those that were chosen.
        truths: classes of `everything`, of shape (n,), by the names of the folders; None where one has none.
        unreadable: names of the images that could not be read.
        left_out: number of images that the teacher was trained on.
        file: the chosen labels; a JSON beside it holds the facts. Where none was chosen, what was there of
            both stays.
    """

    everything: Labels
    kept: Labels
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
) -> Labelled | None:
    """Let a run label images, and choose the labels that another may be trained on.

    Each label is written down beside `out` before any is chosen: a run that was stopped goes on, and another
    choice needs no network. Where several processes were launched, each labels its part, and the one that
    finishes last chooses.

    Args:
        teacher: from `load_run`.
        source: "folder:PATH" or "tar:PATH", with images in any folders. Where it has train/ and val/, or
            archives named so, only the training images are labelled: the others measure the student.
        out: the CSV to be, with the columns image, label and probability.
        threshold: least probability of a label that is kept; Xie et al. take 0.3.
        per_class: keep so many of each class at most, the most confident ones.
        fill: repeat the images of a class with fewer until there are `per_class`.
        keep_labelled: label the images that the teacher was trained on, too.
        weights: of the teacher's best epoch, or of its last.
        batch_size, workers: of the labelling; None takes the teacher's.

    Returns:
        What came out; None where another process has still to label its part, and then chooses.

    Raises:
        ValueError: the threshold is no probability, a number is too small, or `fill` lacks `per_class`.
        DataError: there are no such images, none is left, or none could be read.
        RunError: labels of another teacher or of other images are in the way, or `out` is no regular file.
        InUseError: another process makes the same labels.

    References:
        Xie et al., Self-training with Noisy Student, arXiv 1911.04252, section 3; LambdaNetworks, Table 5.

    Example:
        >>> label(load_run("runs/teacher"), "folder:photos", "labels.csv", threshold=0.9)
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability from 0 to 1; got {threshold}")
    if fill and per_class is None:
        raise ValueError("fill repeats images until there are per_class of them, which is not given")
    numbers = (("per_class", per_class, 1), ("batch_size", batch_size, 1), ("workers", workers, 0))
    for name, value, least in numbers:
        if value is not None and value < least:
            raise ValueError(f"{name} is {least} or more; got {value}")
    config, path, source = teacher.config.data, Path(out), written_out(source)
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file that labels could be written to")
    pictures = open_pictures(source, config.in_chans, config.max_pixels)
    names = [pictures.path(index) for index in range(len(pictures))]
    if (rows := training_side(names)) is not None:
        say(f"{source} has a training and a validation side: only the training side is labelled")
        pictures, names = pictures.subset(np.array(rows)), [names[row] for row in rows]
    wanted = list(range(len(names))) if keep_labelled else unseen(teacher, source, pictures)
    if not wanted:
        raise DataError(f"the teacher was trained on all {len(names)} images of {source!r}; none is left.")
    network = teacher.model(weights)
    about = {
        "source": source,
        "teacher": teacher.config.model.name,
        "weights": digest(network),
        "images": _hash(names[index] for index in wanted),
        "classes": list(teacher.classes),
    }
    rank, parts = share()
    files = [_file(path, part, parts) for part in range(parts)]
    mine = wanted[rank::parts]
    records = [
        Record(file, about, [names[index] for index in wanted[part::parts]], teacher.classes)
        for part, file in enumerate(files)
    ]
    record = records[rank]
    size = config.batch_size if batch_size is None else batch_size
    with locked(record.lock, f"{record.path}"):
        done = record.start(size)
        if done:
            say(f"{done:,} of {len(mine):,} images are labelled already")
        if not files[rank].exists():
            reader = _Reader(pictures, mine[done:], eval_transform(config), size)
            loading = DataLoader(
                reader,
                batch_size=None,
                num_workers=checked_workers(config.workers if workers is None else workers),
                worker_init_fn=leave_signals_to_parent,
            )
            with record.appending() as file, _progress(len(mine), done) as advance:
                for chosen, targets, probabilities in _answers(teacher, network, loading):
                    record.append(file, [names[index] for index in chosen], targets, probabilities)
                    advance(len(chosen))
    if not all(each.exists() for each in files):
        return None
    for each in records:
        each.start(size)  # those of others must be of this teacher, too
    lines, unreadable = read_record(files)
    if len(lines) == 1:
        raise DataError(f"not one of the {len(unreadable)} images of {source!r} could be read.")
    everything = parse_labels(lines, path, teacher.classes)
    kept = select(everything, threshold=threshold, per_class=per_class, fill=fill)
    facts = about | {
        "threshold": threshold,
        "per_class": per_class,
        "fill": fill,
        "left_out": len(names) - len(wanted),
        "unreadable": len(unreadable),
        "labelled": dict(zip(teacher.classes, everything.counts().tolist(), strict=True)),
        "kept": dict(zip(teacher.classes, kept.counts().tolist(), strict=True)),
    }
    if len(kept):
        write_text(facts_path(path), json_text(facts, indent=1) + "\n")
        write_text(path, to_csv(kept))
    return Labelled(
        everything=everything,
        kept=kept,
        truths=folder_truths(everything),
        unreadable=tuple(unreadable),
        left_out=len(names) - len(wanted),
        file=path,
    )


def unseen(teacher: Run, source: str, pictures: Pictures) -> list[int]:
    """The pictures, by index, that a run was not trained on with labels of their own."""
    config = teacher.config.data
    if not overlap(source, config.source):
        return list(range(len(pictures)))
    seen = places(open_source(config, seed=teacher.config.seed, classes=teacher.classes).train)
    return [index for index in range(len(pictures)) if pictures.place(index) not in seen]


def digest(network: nn.Module) -> str:
    """A hash of a network's weights and statistics."""
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


def _file(path: Path, part: int, parts: int) -> Path:
    """Where all labels of a part are, chosen or not."""
    return path.with_name(f"{path.stem}.all{'' if parts == 1 else f'-{part + 1}-of-{parts}'}.csv")


class _Reader(Dataset):
    """Batches of images ready for the network; an image that cannot be read is missing in its batch."""

    def __init__(
        self, pictures: Pictures, indices: Sequence[int], transform: Callable[[Any], Tensor], batch_size: int
    ):
        self.pictures, self.indices, self.transform = pictures, indices, transform
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
                images.append(self.transform(self.pictures.read(index)))
            except DataError:
                readable.append(False)
            else:
                readable.append(True)
        return chosen, readable, torch.stack(images) if images else torch.empty(0)


@torch.inference_mode()
def _answers(teacher: Run, network: nn.Module, loading: DataLoader) -> Iterator[Answers]:
    """The label of each image and its probability, in the precision that the teacher was trained in."""
    engine = teacher.config.engine
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if engine.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    settings = arithmetic(engine)
    with quiet():
        fabric = Fabric(
            accelerator=settings["accelerator"],
            devices=[local_rank()] if torch.cuda.is_available() and settings["accelerator"] != "cpu" else 1,
            precision=settings["precision"],
            plugins=[LightningEnvironment()],  # alone, whatever started the process
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
    """A bar in a terminal, a line now and then elsewhere; yields what is told how many more are done."""
    console = Console(stderr=True)
    started = said = time.monotonic()
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

    def tell(more: int) -> None:
        nonlocal done, said
        done += more
        now = time.monotonic()
        if now - said > SAY_EVERY:
            said = now
            rate = (done - before) / (now - started)
            say(f"labelled {done:,} of {total:,}, {rate:,.0f} images/s, {clock((total - done) / rate)} left")

    yield tell
