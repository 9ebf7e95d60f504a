"""The scores of a classifier of images or recordings: tables in the terminal, and the files of `eval`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lambdanets.cli.console import draw_classes, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import check_outputs, check_suffix

if TYPE_CHECKING:
    import numpy as np

    from lambdanets.evaluate.results import ClassRow
    from lambdanets.evaluate.samples import Samples
    from lambdanets.evaluate.scoring import Scores

FIGURES = {  # name -> label in the terminal, format
    "loss": ("loss", "{:,.4f}"),
    "top1": ("accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "balanced_accuracy": ("balanced accuracy (mean recall)", "{:.2%}"),
    "macro_precision": ("mean precision", "{:.2%}"),
    "macro_f1": ("mean F1", "{:.2%}"),
    "calibration_error": ("expected calibration error", "{:.2%}"),
    "images": ("images", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
}
WORST = 24  # wrong predictions that are drawn
MAX_CONFUSION = 5000  # most classes of a confusion matrix: 200 MB
# Draws some rows of the samples: samples, rows, class names, file, title, line below it.
DrawErrors = Callable[["Samples", "np.ndarray", Sequence[str], Path, str, str], list[Path]]


def score_rows(scores: "Scores", *, choices: int, samples: str = "images") -> Table:
    """Return the table of the figures of all samples.

    Args:
        scores: The scores.
        choices: Number of classes that the predictions were chosen from.
        samples: Noun of the samples.
    """
    figures, present = scores.figures(), scores.images[scores.images > 0]
    if choices <= 5:
        figures.pop("top5")  # always 100 %
    if (present == present[0]).all():
        figures.pop("balanced_accuracy")  # the accuracy itself
    rows = table(measure="left", value="right")
    for name, value in figures.items():
        text, form = FIGURES[name]
        rows.add_row(text.replace("images", samples), form.format(value))
    return rows


def print_classes(rows: "Sequence[ClassRow]", samples: str = "images") -> None:
    """Print the classes, or the best and the worst of many."""
    described = any(row.description != row.name for row in rows)
    columns = {"class": "left"} | ({"name": "wrap"} if described else {})
    draw_classes(
        sorted(rows, key=lambda row: -row.top1),
        columns | {samples: "right", "accuracy": "right", "precision": "right", "F1": "right"},
        lambda row: [
            row.name, *([row.description] if described else []), f"{row.images:,}", f"{row.top1:.2%}",
            f"{row.precision:.2%}", f"{row.f1:.2%}",
        ],
    )  # fmt: skip


def check_score_files(
    errors: Path | None, predictions: Path | None, confusion: Path | None, calibration: Path | None
) -> None:
    """Raise UsageError, before long work, if a file could not be written or has the wrong ending."""
    check_suffix("--errors", errors, ".csv")
    check_suffix("--predictions", predictions, ".csv")
    check_suffix("--confusion", confusion, ".png", ".csv")
    check_suffix("--calibration", calibration, ".png")
    files = {"--errors": errors, "--predictions": predictions}
    check_outputs(files | {"--confusion": confusion, "--calibration": calibration})
    if errors is not None:
        check_outputs({"--errors": errors_sheet(errors)})


def errors_sheet(errors: Path) -> Path:
    """Return the path of the sheet beside a file of errors."""
    return errors.with_suffix(".png")


@dataclass(frozen=True)
class ScoreFiles:
    """The files that options of `eval` ask for; None is one that was not requested."""

    per_class: Path | None
    errors: Path | None
    predictions: Path | None
    confusion: Path | None
    calibration: Path | None

    @property
    def per_sample(self) -> bool:
        """Whether the predictions for single samples are needed."""
        return any(each is not None for each in (self.errors, self.predictions, self.confusion))

    def check(self, source: str, num_classes: int) -> None:
        """Raise UsageError if the files cannot be made for a source of data and a number of classes."""
        from lambdanets.data.sources import find_source
        from lambdanets.data.sources.protocol import StreamedSource

        option = "--errors" if self.errors else "--predictions" if self.predictions else None
        if option is not None and isinstance(find_source(source), StreamedSource):
            raise UsageError(f"{option} names files, and the samples of {source} are streamed without names.")
        if self.confusion is not None and num_classes > MAX_CONFUSION:
            raise UsageError(
                f"--confusion is for at most {MAX_CONFUSION:,} classes, and there are {num_classes:,}."
            )

    def write(
        self,
        scores: "Scores",
        samples: "Samples | None",
        classes: tuple[str, ...],
        *,
        title: str,
        draw: DrawErrors,
        noun: str = "images",
    ) -> list[tuple[str, Path | None]]:
        """Write the files, and print the classes if their file was requested.

        Args:
            scores: The scores.
            samples: The predictions for single samples, if they are needed.
            classes: Class names, in the order of the logits.
            title: Title of the sheet of errors.
            draw: Draws the sheet.
            noun: Noun of the samples.

        Returns:
            The files with their labels, for `print_files`.
        """
        from lambdanets.evaluate.results import class_rows, write_classes

        written: list[tuple[str, Path | None]] = []
        if self.per_class is not None:
            rows = class_rows(scores, classes)
            print_classes(rows, noun)
            write_classes(self.per_class, rows, samples=noun)
            written.append(("classes", self.per_class))
        if samples is not None:
            written += self._write_samples(samples, classes, title, draw, noun)
        if self.calibration is not None:
            from lambdanets.viz.figures import draw_calibration

            self.calibration.parent.mkdir(parents=True, exist_ok=True)
            draw_calibration(
                scores.calibration.tolist(), self.calibration, error=scores.calibration_error, samples=noun
            )
            written.append(("calibration", self.calibration))
        return written

    def _write_samples(
        self, samples: "Samples", classes: tuple[str, ...], title: str, draw: DrawErrors, noun: str
    ) -> list[tuple[str, Path | None]]:
        """Write the files that need the predictions for single samples."""
        from lambdanets.evaluate.samples import write_confusion
        from lambdanets.evaluate.test_sets import describe_classes

        written: list[tuple[str, Path | None]] = []
        names = describe_classes(classes)
        if self.errors is not None:
            wrong = samples.errors()
            samples.write(self.errors, classes, wrong)
            written.append(("errors", self.errors))
            summary = f"{len(wrong):,} of {len(samples):,} {noun} are wrong"
            if len(wrong) > WORST:
                summary += f"  ·  the {WORST} with the largest loss"
            pages = draw(samples, wrong[:WORST], names, errors_sheet(self.errors), title, summary)
            written += [("sheet of errors", page) for page in pages]
            if not pages:
                stdout().print("there are no errors to draw")
        if self.predictions is not None:
            samples.write(self.predictions, classes)
            written.append(("predictions", self.predictions))
        if self.confusion is not None:
            matrix = samples.confusion()
            self.confusion.parent.mkdir(parents=True, exist_ok=True)
            if self.confusion.suffix.lower() == ".csv":
                write_confusion(self.confusion, matrix, [classes[index] for index in samples.allowed])
            else:
                _draw_confusion(matrix, [names[index] for index in samples.allowed], self.confusion, noun)
            written.append(("confusion", self.confusion))
        return written


def _draw_confusion(matrix: "np.ndarray", names: Sequence[str], file: Path, noun: str) -> None:
    """Draw a confusion matrix; of many classes, without those that neither occur nor are predicted."""
    import numpy as np
    from torch import from_numpy

    from lambdanets.viz.figures import MAX_NAMED_CLASSES, draw_confusion

    if len(names) > MAX_NAMED_CLASSES:
        used = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
        matrix, names = matrix[used][:, used], [names[index] for index in used.tolist()]
    draw_confusion(from_numpy(matrix), names, file, samples=noun)
