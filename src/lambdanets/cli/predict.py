"""`lambdanets predict`: labels images, in the terminal, on a contact sheet and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from tyro import conf

from lambdanets.cli.console import draw, exit_code_of_samples, print_files, stderr, stdout, table
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import check_images, check_outputs, shown, write_json
from lambdanets.cli.tasks import run_verb
from lambdanets.evaluate.prediction import Prediction, predict, predict_samples
from lambdanets.train import Run, load_run


def run(
    run: Annotated[Path, conf.Positional, shown("RUN")],
    paths: Annotated[tuple[Path, ...], conf.Positional, shown("FILE | FOLDER")] = (),
    *,
    samples: Annotated[int | None, shown("N")] = None,
    top: Annotated[int | None, shown("N", "5")] = None,
    threshold: Annotated[float | None, shown("SCORE", "0.5")] = None,
    tile: Annotated[str | None, shown("auto | SIZE | off", "auto")] = None,
    out: Annotated[
        Path | None, shown("SHEET.png | FOLDER", "predictions.png or predictions/ in the run")
    ] = None,
    json: Annotated[Path | None, shown("FILE.json")] = None,
    csv: Annotated[Path | None, shown("FILE.csv")] = None,
    counts: Annotated[Path | None, shown("FILE.csv")] = None,
    label_images: Annotated[Path | None, shown("FOLDER")] = None,
    pixel_size: Annotated[float | None, shown("MICROMETRES")] = None,
    weights: Literal["best", "last"] = "best",
    batch_size: Annotated[int | None, shown("N", "32")] = None,
    max_pixels: Annotated[int | None, shown("N", "the run's")] = None,
    strict: bool = False,
) -> int:
    """Label images with a run and draw them on a contact sheet, or draw the objects that a detector finds.

    Recordings are labelled and drawn as spectrograms. A language model reports how well it predicts each file
    of text, in bits. Files that cannot be read are reported and skipped; the command fails if none could be
    read.

    Args:
        run: Folder of a run.
        paths: Files, and folders, which are searched recursively.
        samples: Instead of files, use this many images or recordings of the run's validation set, and show
            their labels.
        top: Classifiers: number of classes to show for each image.
        threshold: Detectors: least score of an object.
        tile: Detectors: process large images in overlapping tiles: auto for images that would be shrunk far
            more than those of the training, a size in pixels for all larger images, off for none.
        out: Classifiers: the contact sheet, whose further pages get a number. Detectors: the folder of the
            drawings, or with --samples the sheet.
        json: Write the predictions to a JSON file.
        csv: Detectors: write a row for each object: file, number, class, score, box, centroid, area and
            diameter in pixels.
        counts: Detectors: write the number of objects of each class in each image.
        label_images: Detectors: folder for a TIFF image of each image, whose values are the numbers of the
            objects as in --csv, and 0 elsewhere.
        pixel_size: Detectors: side of a pixel, for areas and diameters in micrometres in --csv.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
        batch_size: Images, recordings or windows of text in a batch; detectors process one at a time.
        max_pixels: Largest width times height of an image that is read.
        strict: Fail if any file could not be read.
    """
    for option, number in (
        ("--samples", samples),
        ("--top", top),
        ("--batch-size", batch_size),
        ("--max-pixels", max_pixels),
    ):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1, got {number}.")
    check_outputs({"--json": json, "--csv": csv, "--counts": counts})
    if not run.exists() and timm.is_model(str(run)):
        raise UsageError(
            f"{run} is a model, and predict takes the folder of a run: train it on images of your classes "
            f"first, with lambdanets train folder --model {run} --data folder:PATH."
        )
    return run_verb(
        "predict", run, paths, samples=samples, top=top, threshold=threshold, tile=tile, out=out, json=json,
        csv=csv, counts=counts, label_images=label_images, pixel_size=pixel_size,
        weights=weights, batch_size=batch_size, max_pixels=max_pixels, strict=strict,
    )  # fmt: skip


def predict_labels(
    run: Path,
    paths: tuple[Path, ...],
    *,
    samples: int | None,
    top: int | None,
    out: Path | None,
    json: Path | None,
    weights: Literal["best", "last"],
    batch_size: int | None,
    max_pixels: int | None,
    strict: bool,
) -> int:
    """Label images with a classifier; the arguments are those of `lambdanets predict`."""
    check_images(paths, samples)
    sheet = out or run / "predictions.png"
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"--out is a PNG image, whose name ends in .png; got {str(sheet)!r}.")
    check_outputs({"--out": sheet})
    opened = load_run(run)
    top, batch_size = 5 if top is None else top, 32 if batch_size is None else batch_size
    if samples is not None:
        predictions = predict_samples(opened, samples, top=top, batch_size=batch_size, weights=weights)
    else:
        predictions = predict(
            opened, paths, top=top, batch_size=batch_size, weights=weights, max_pixels=max_pixels
        )
    draw_predictions(predictions, opened)
    if json is not None:
        write_json(json, to_plain(predictions))
    unread = [each for each in predictions if each.error is not None]
    written = _draw(predictions, sheet, opened)
    print_files(*(("contact sheet", page) for page in written), ("predictions", json))
    for each in unread:
        stderr().print(f"skipped {each.path}: {each.error or ''}.")
    return exit_code_of_samples(len(unread), len(predictions), strict=strict)


def to_plain(predictions: Sequence[Prediction]) -> list[dict[str, object]]:
    """Return predictions as they are written to JSON: path, and labels with probabilities or an error."""
    entries = []
    for each in predictions:
        entry: dict[str, object] = {"path": each.path}
        if each.error is not None:
            entry["error"] = each.error
        else:
            entry |= {
                "labels": each.labels,
                "probabilities": [round(value, 6) for value in each.probabilities],
            }
        if each.truth is not None:
            entry["truth"] = each.truth
        entries.append(entry)
    return entries


def draw_predictions(predictions: Sequence[Prediction], run: Run[Any]) -> None:
    """Print a table of predictions."""
    readable = [each for each in predictions if each.error is None]
    if not readable:
        return
    ranks = max(len(each.labels) for each in readable)
    truths = any(each.truth is not None for each in readable)
    headings = {run.config.WORDING.sample: "left"} | ({"true": "wrap"} if truths else {})
    headings |= {f"{rank}._guess" if rank == 1 else f"{rank}.": "wrap" for rank in range(1, ranks + 1)}
    title = f"{run.config.model.name} from {run.directory}"
    right = sum(bool(each.right) for each in readable)
    rows, console = table(**headings), stdout()
    for each in readable:
        best = {None: "bold", True: "bold green", False: "bold red"}[each.right]
        guesses = [
            console.render_str(label, style="" if rank else best).append(f" {probability:.1%}", "dim")
            for rank, (label, probability) in enumerate(zip(each.labels, each.probabilities, strict=True))
        ]
        rows.add_row(each.path, *([each.truth or ""] if truths else []), *guesses)
    draw(console, f"{title}: {right} of {len(readable)} correct" if truths else title, rows)


def _draw(predictions: list[Prediction], sheet: Path, run: Run) -> list[Path]:
    from lambdanets.viz.contact_sheet import draw_sheets

    return draw_sheets(predictions, sheet, title=f"{run.config.model.name}  ·  {run.directory}")
