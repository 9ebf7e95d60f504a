"""`lambdanets eval`, `predict` and `export` for runs that classify recordings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lambdanets.cli.console import draw, print_files, stdout
from lambdanets.cli.errors import usage
from lambdanets.cli.export import print_exported
from lambdanets.cli.options import (
    EVAL_DEVICES,
    PREDICT_DEVICES,
    check_outputs,
    check_suffix,
    chosen_device,
    default_output,
    engine_changes,
    resolved_location,
    write_json,
)
from lambdanets.cli.predictions import write_predictions
from lambdanets.cli.scores import ScoreFiles, score_rows

if TYPE_CHECKING:
    from lambdanets.evaluate.samples import Samples


def evaluate_run(
    run: Path,
    *,
    data: str | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    workers: int | None,
    precision: str | None,
    device: str | None,
    per_class: Path | None,
    errors: Path | None,
    predictions: Path | None,
    confusion: Path | None,
    calibration: Path | None,
    json: Path | None,
) -> int:
    """Measure a classifier of recordings; the arguments are those of `lambdanets eval`."""
    from lambdanets.audio import evaluate, load_run
    from lambdanets.evaluate.results import detailed_figures
    from lambdanets.evaluate.samples import Recorder

    on = chosen_device(device, EVAL_DEVICES)
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
    files = ScoreFiles(per_class, errors, predictions, confusion, calibration)
    files.check(form.source, len(opened.classes))
    recorder = Recorder() if files.per_sample else None
    scores = evaluate(opened, form, weights=weights, recorder=recorder, device=on)
    rows = score_rows(scores, choices=len(opened.classes), samples="recordings")
    draw(stdout(), f"{run}, {weights} weights, on {form.source}", rows)
    samples = None if recorder is None else recorder.samples(np.arange(len(opened.classes)))
    title = f"{config.model.name}  ·  {run} on {form.source}"
    written = files.write(scores, samples, opened.classes, title=title, draw=draw_errors, noun="recordings")
    if json is not None:
        figures = detailed_figures(scores, opened.classes, samples="recordings")
        write_json(json, {"run": str(run), "weights": weights, "data": form.source} | figures)
    print_files(*written, ("figures", json))
    return 0


def draw_errors(
    samples: "Samples", rows: np.ndarray, names: Sequence[str], sheet: Path, title: str, summary: str
) -> list[Path]:
    """Draw some wrongly classified recordings; `names` are those of the classes."""
    from lambdanets.audio import draw_spectrograms
    from lambdanets.audio.evaluation import as_prediction

    predictions = [as_prediction(samples, row, names) for row in rows]
    return draw_spectrograms(predictions, sheet, title, columns=6, summary=summary)


def predict_run(
    run: Path,
    paths: tuple[Path, ...],
    *,
    samples: int | None,
    top: int | None,
    out: Path | None,
    json: Path | None,
    csv: Path | None,
    weights: Literal["best", "last"],
    device: str | None,
    batch_size: int | None,
    strict: bool,
) -> int:
    """Label recordings with a run; the arguments are those of `lambdanets predict`."""
    from lambdanets.audio import AudioPrediction, draw_spectrograms, load_run, predict_samples
    from lambdanets.audio.prediction import predict_files
    from lambdanets.audio.sheet import MAX_DRAWN

    sheet = out or default_output(run, "predictions.png")
    check_suffix("--out", sheet, ".png")
    check_outputs({"--out": sheet})
    on = chosen_device(device, PREDICT_DEVICES)
    opened = load_run(run)
    name = opened.config.model.name
    top, batch_size = 5 if top is None else top, 32 if batch_size is None else batch_size
    if samples is not None:
        found = predict_samples(opened, samples, top=top, batch_size=batch_size, weights=weights, device=on)
    else:
        found = predict_files(opened, paths, top=top, batch_size=batch_size, weights=weights, device=on)

    def draw_sheet(predictions: Sequence[AudioPrediction], summary: str) -> list[Path]:
        return draw_spectrograms(predictions, sheet, f"{name}  ·  {run}", summary=summary)

    return write_predictions(
        found, title=f"{name} from {run}", ranks=min(top, len(opened.classes)), truths=samples is not None,
        csv=csv, json=json, draw=draw_sheet, most=MAX_DRAWN, strict=strict, sample="recording",
        part=batch_size,
    )  # fmt: skip


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

    file = out or default_output(run, f"network{FORMATS[format].SUFFIX}")
    exported = export_audio(
        load_run(run), file, format=format, weights=weights, batch_size=batch_size, opset=opset
    )
    difference = f"{exported.difference:.2g} in outputs up to {exported.largest:.2g}"
    print_exported(exported, difference, "random features")
    return 0
