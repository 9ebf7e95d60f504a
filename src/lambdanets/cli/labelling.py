"""`lambdanets pseudo-label`: a run labels images, and the labels to train on are chosen."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import numpy as np
from tyro import conf

from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown
from lambdanets.train import load_run
from lambdanets.wording import few

SHOWN = 30  # classes; the facts beside the labels have all of them


def run(
    teacher: Annotated[Path, conf.Positional, shown("RUN")],
    *,
    data: Annotated[str, shown("folder:PATH")],
    out: Annotated[Path, shown("LABELS.csv")],
    threshold: Annotated[float, shown("P")] = 0.3,
    per_class: Annotated[int | None, shown("N", "all")] = None,
    fill: bool = False,
    keep_labelled: bool = False,
    weights: Literal["best", "last"] = "best",
    batch_size: Annotated[int | None, shown("N", "the teacher's")] = None,
    workers: Annotated[int | None, shown("N", "the teacher's")] = None,
) -> int:
    """Let a run label images, and choose the labels to train on.

    All labels are kept beside LABELS.csv: the command goes on where it was stopped, and another threshold
    takes no time. Images that the teacher was trained on are left out.

    Args:
        teacher: The folder of a run.
        data: Images in any folders; of a folder with train/ and val/, those of train/ alone.
        out: The labels that were chosen: image, label, probability.
        threshold: Least probability of a label.
        per_class: Keep so many images of each class at most, the most confident ones.
        fill: Repeat images of classes with fewer until there are as many.
        keep_labelled: Label the images that the teacher was trained on, too.
        weights: The best weights by validation, or those of the last epoch.
        batch_size: Images that go through the network at once.
        workers: Processes that read images.
    """
    opened = load_run(teacher)

    from lambdanets.evaluate.pseudo_labels import label

    found = label(
        opened, data, out, threshold=threshold, per_class=per_class, fill=fill,
        keep_labelled=keep_labelled, weights=weights, batch_size=batch_size, workers=workers,
    )  # fmt: skip
    if found is None:
        stdout().print("the part of this process is labelled; the one that finishes last writes the choice")
        return 0
    all_labels, kept, console = found.all_labels, found.selected, stdout()
    if found.left_out:
        console.print(
            f"{found.left_out:,} images that the teacher was trained on are left out", soft_wrap=True
        )
    if found.unreadable:
        stderr().print(f"cannot read {few(found.unreadable)}")
    rows = table(label="wrap", labelled="right", kept="right", mean_probability="right", right="right")
    counts, chosen = all_labels.counts(), kept.counts()
    for target in np.argsort(-counts, kind="stable")[:SHOWN]:
        members = all_labels.targets == target
        rows.add_row(
            all_labels.classes[target],
            f"{counts[target]:,}",
            f"{chosen[target]:,}",
            f"{all_labels.probabilities[members].mean():.3f}" if counts[target] else "",
            _right(found.truths, all_labels.targets, members),
        )
    draw(console, f"{out}: {len(kept):,} of {len(all_labels):,} labels", rows)
    if found.truths is not None:
        known = dict(zip(all_labels.images, found.truths.tolist(), strict=True))
        right = np.array([known[image] for image in kept.images]) == kept.targets
        share = np.mean(found.truths == all_labels.targets)
        of_kept = f", {right.mean():.2%} of those kept" if len(kept) else ""
        console.print(f"By the folders' names {share:.2%} of all labels are right{of_kept}.", soft_wrap=True)
    if not len(kept):
        raise UsageError(f"no label reaches --threshold {threshold:g}.")
    path = quote(str(out))
    console.print(
        f"\nTrain on them: lambdanets train RECIPE --data SOURCE --set data.pseudo_labels={path}",
        soft_wrap=True,
    )
    return 0


def _right(truths: np.ndarray | None, targets: np.ndarray, members: np.ndarray) -> str:
    """The part of a class's labels that the folders' names confirm."""
    if truths is None or not members.any():
        return ""
    return f"{np.mean(truths[members] == targets[members]):.1%}"
