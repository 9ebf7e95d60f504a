"""`lambdanets eval`, `predict` and `export` for runs that classify recordings."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lambdanets.cli.console import (
    draw,
    draw_classes,
    exit_code_of_samples,
    print_files,
    stderr,
    stdout,
    table,
)
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.export import print_exported
from lambdanets.cli.options import check_outputs, engine_changes, resolved_location, write_json
from lambdanets.cli.predict import draw_predictions, to_plain

if TYPE_CHECKING:
    from lambdanets.evaluate.results import ClassRow
    from lambdanets.evaluate.scoring import Scores


def evaluate_run(
    run: Path,
    *,
    data: str | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    workers: int | None,
    precision: str | None,
    per_class: Path | None,
    json: Path | None,
) -> int:
    """Measure a classifier of recordings; the arguments are those of `lambdanets eval`."""
    from lambdanets.audio import evaluate, load_run
    from lambdanets.evaluate.results import class_rows, write_classes

    opened = load_run(run)
    config = opened.config
    changes = {"batch_size": batch_size, "workers": workers}
    with usage():
        form = replace(config.data, **{name: value for name, value in changes.items() if value is not None})
        if data is not None:
            other = replace(form, source=data)
            # The run's own recordings keep their split: the training side is not evaluated.
            if resolved_location(other) != resolved_location(form):
                form = replace(other, val_fraction=1.0)
        engine = replace(config.engine, **engine_changes(precision, None))
        opened = replace(opened, config=replace(config, engine=engine))
    scores = evaluate(opened, form, weights=weights)
    _print_scores(f"{run}, {weights} weights, on {form.source}", scores)
    if per_class is not None:
        rows = class_rows(scores, opened.classes)
        _print_classes(rows)
        write_classes(per_class, rows, samples="recordings")
    if json is not None:
        write_json(json, {"run": str(run), "weights": weights, "data": form.source} | _figures(scores))
    print_files(("classes", per_class), ("figures", json))
    return 0


def _figures(scores: "Scores") -> dict[str, float]:
    """Return the figures of an evaluation, with recordings in place of images."""
    return {name.replace("images", "recordings"): value for name, value in scores.figures().items()}


def _print_scores(title: str, scores: "Scores") -> None:
    figures = _figures(scores)
    labels = {"top1": "accuracy", "top5": "top-5 accuracy", "recordings_per_second": "recordings/s"}
    forms = {"top1": "{:.2%}", "top5": "{:.2%}", "recordings": "{:,.0f}", "recordings_per_second": "{:,.0f}"}
    if len(scores.images) <= 5:
        figures.pop("top5")  # always 100 %
    rows = table(measure="left", value="right")
    for name, value in figures.items():
        rows.add_row(labels.get(name, name), forms.get(name, "{:,.4f}").format(value))
    draw(stdout(), title, rows)


def _print_classes(rows: "list[ClassRow]") -> None:
    draw_classes(
        sorted(rows, key=lambda row: -row.top1),
        {"class": "left", "recordings": "right", "accuracy": "right"},
        lambda row: [row.name, f"{row.images:,}", f"{row.top1:.2%}"],
    )


def predict_run(
    run: Path,
    paths: tuple[Path, ...],
    *,
    samples: int | None,
    top: int | None,
    out: Path | None,
    json: Path | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    strict: bool,
) -> int:
    """Label recordings with a run; the arguments are those of `lambdanets predict`."""
    from lambdanets.audio import draw_spectrograms, load_run, predict, predict_samples

    sheet = out or run / "predictions.png"
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"--out is a PNG image, whose name ends in .png; got {str(sheet)!r}.")
    check_outputs({"--out": sheet})
    opened = load_run(run)
    top, batch_size = 5 if top is None else top, 32 if batch_size is None else batch_size
    if samples is not None:
        predictions = predict_samples(opened, samples, top=top, batch_size=batch_size, weights=weights)
    else:
        predictions = predict(opened, paths, top=top, batch_size=batch_size, weights=weights)
    draw_predictions(predictions, opened)
    if json is not None:
        write_json(json, to_plain(predictions))
    drawn = draw_spectrograms(predictions, sheet, f"{opened.config.model.name}  ·  {run}")
    print_files(*(("sheet", page) for page in drawn), ("predictions", json))
    unread = [each for each in predictions if each.error is not None]
    for each in unread:
        stderr().print(f"skipped {each.path}: {each.error or ''}.")
    return exit_code_of_samples(len(unread), len(predictions), strict=strict, samples="recordings")


def export_run(
    run: str,
    *,
    format: Literal["torch", "onnx"],
    out: Path | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    opset: int | None,
) -> int:
    """Export a classifier of recordings; the arguments are those of `lambdanets export`."""
    from lambdanets.audio import load_run
    from lambdanets.exporting import FORMATS
    from lambdanets.exporting.audio import export_audio

    file = out or Path(run) / f"network{FORMATS[format].SUFFIX}"
    exported = export_audio(
        load_run(run), file, format=format, weights=weights, batch_size=batch_size, opset=opset
    )
    difference = f"{exported.difference:.2g} in outputs up to {exported.largest:.2g}"
    print_exported(exported, difference, "random features")
    return 0
