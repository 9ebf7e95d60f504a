"""`lambdanets eval` for runs of classifiers of several labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from lambdanets.cli.console import draw, draw_classes, print_files, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import option_flag, write_json

if TYPE_CHECKING:
    from lambdanets.evaluate.target import EvalTarget

FIGURES = {  # name -> label in the terminal, format
    "loss": ("loss", "{:,.4f}"),
    "map": ("mean average precision", "{:.2%}"),
    "f1": ("F1", "{:.2%}"),
    "macro_f1": ("mean F1", "{:.2%}"),
    "images": ("images", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
}


def evaluate_labels(
    what: str, target: "EvalTarget", per_class: Path | None, json: Path | None, **others: object
) -> int:
    """Measure a classifier of several labels; `others` are options of `eval` that it does not take."""
    for name, value in others.items():
        if value is not None:
            raise UsageError(
                f"{option_flag(name)} is for images with one label each, and {what} has several; --per-class "
                "and --json write its figures."
            )
    from lambdanets.evaluate.labels import measure_labels
    from lambdanets.train.checkpoint import write_text
    from lambdanets.train.multi_label import label_csv

    scores = measure_labels(target)
    rows = table(measure="left", value="right")
    for name, value in scores.figures().items():
        label, form = FIGURES[name]
        rows.add_row(label, form.format(value))
    draw(stdout(), f"{what}, {target.weights}, on {target.data.source}", rows)
    if per_class is not None:
        _print_classes(label_csv(scores.table, target.classes))
        per_class.parent.mkdir(parents=True, exist_ok=True)
        write_text(per_class, label_csv(scores.table, target.classes))
    if json is not None:
        shown = {"run": what, "weights": target.weights, "data": target.data.source}
        write_json(json, shown | scores.figures())
    print_files(("classes", per_class), ("figures", json))
    return 0


def _print_classes(text: str) -> None:
    import csv

    rows = [row for row in csv.DictReader(text.splitlines()) if int(row["positives"])]
    rows.sort(key=lambda row: -float(row["average_precision"]))

    def percent(cell: str) -> str:
        return f"{float(cell):.2%}" if cell else ""

    draw_classes(
        rows,
        {"class": "left", "images": "right", "average_precision": "right", "precision": "right",
         "recall": "right", "F1": "right"},
        lambda row: [row["class"], row["positives"], *map(percent, (
            row["average_precision"], row["precision"], row["recall"], row["f1"]))],
    )  # fmt: skip
