"""`lambdanets pseudo-label`: labels images with a run and selects the labels to train on."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown
from lambdanets.utils.text import join_some

if TYPE_CHECKING:
    import numpy as np

SHOWN = 30  # classes in the table; the JSON file beside the labels has all of them


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
    """Label images with a run, and select the labels to train another model on.

    All labels are stored beside LABELS.csv: an interrupted command continues where it stopped, and another
    threshold needs no further computation. Images that the teacher was trained on are left out.

    Args:
        teacher: Folder of a run.
        data: Images in any folders; of a folder with train/ and val/, only those in train/.
        out: File for the selected labels: image, label, probability.
        threshold: Least probability of a label.
        per_class: Largest number of images of a class; the most confident ones are selected.
        fill: Repeat images of smaller classes until each has --per-class images.
        keep_labelled: Label the images that the teacher was trained on too.
        weights: Weights of the teacher's best epoch by validation, or of its last epoch.
        batch_size: Images in a batch.
        workers: Processes that read images.
    """
    import numpy as np

    from lambdanets.train import load_run

    opened = load_run(teacher)

    from lambdanets.evaluate.pseudo_labels import label

    found = label(
        opened, data, out, threshold=threshold, per_class=per_class, fill=fill,
        keep_labelled=keep_labelled, weights=weights, batch_size=batch_size, workers=workers,
    )  # fmt: skip
    if found is None:
        stdout().print("the shard of this process is labelled; the last process to finish selects the labels")
        return 0
    all_labels, kept, console = found.all_labels, found.selected, stdout()
    if found.left_out:
        console.print(
            f"{found.left_out:,} images that the teacher was trained on are left out", soft_wrap=True
        )
    if found.unreadable:
        stderr().print(f"cannot read {join_some(found.unreadable)}")
    rows = table(label="wrap", labelled="right", kept="right", mean_probability="right", correct="right")
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
        console.print(
            f"By the names of their folders, {share:.2%} of all labels are correct{of_kept}.", soft_wrap=True
        )
    if not len(kept):
        raise UsageError(f"no label reaches --threshold {threshold:g}.")
    path = quote(str(out))
    console.print(
        f"\nTrain on them: lambdanets train RECIPE --data SOURCE --set data.pseudo_labels={path}",
        soft_wrap=True,
    )
    return 0


def _right(truths: "np.ndarray | None", targets: "np.ndarray", members: "np.ndarray") -> str:
    """Return the share of a class's labels that agree with the folders' names."""
    if truths is None or not members.any():
        return ""
    return f"{(truths[members] == targets[members]).mean():.1%}"
