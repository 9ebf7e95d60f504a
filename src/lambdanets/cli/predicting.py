"""`lambdanets predict`: labels for photos, in the terminal, on a contact sheet, and as JSON."""

from pathlib import Path
from typing import Annotated, Literal

import timm
from tyro import conf

from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import FAILURE, UsageError
from lambdanets.cli.options import check_outputs, refuse, shown, write_json
from lambdanets.evaluate.prediction import Prediction, predict, predict_samples
from lambdanets.train import Run, load_run
from lambdanets.train.config import stored_task


def run(
    run: Annotated[Path, conf.Positional, shown("RUN")],
    paths: Annotated[tuple[Path, ...], conf.Positional, shown("IMAGE | FOLDER")] = (),
    *,
    samples: Annotated[int | None, shown("N")] = None,
    top: Annotated[int | None, shown("N", "5")] = None,
    threshold: Annotated[float | None, shown("SCORE", "0.5")] = None,
    tile: Annotated[str | None, shown("auto | SIZE | off", "auto")] = None,
    out: Annotated[
        Path | None, shown("SHEET.png | FOLDER", "predictions.png or predictions/ in the run")
    ] = None,
    json: Annotated[Path | None, shown("FILE.json")] = None,
    weights: Literal["best", "last"] = "best",
    batch_size: Annotated[int | None, shown("N", "32")] = None,
    max_pixels: Annotated[int | None, shown("N", "the run's")] = None,
    strict: bool = False,
) -> int:
    """Label photos with a run and draw them on a contact sheet, or draw the objects that a detector finds.

    A file that is no readable image is named and skipped; the command fails when none could be read.

    Args:
        run: The folder of a run.
        paths: Image files, and folders, which are searched with everything inside.
        samples: Instead of files, take this many samples of the run's own validation set and show the truth.
        top: Classes to show for each image, of a classifier.
        threshold: Least score of an object, of a detector.
        tile: Of a detector, look at large images in overlapping tiles: auto does so where an image would be
            shrunk far more than those of the training; a size in pixels for all images that are larger.
        out: Where to draw: of a classifier the contact sheet, whose further pages get a number; of a detector
            the folder of the drawings, or with --samples the sheet.
        json: Where to write the predictions for other programs.
        weights: The best weights by validation, or those of the last epoch.
        batch_size: Images that go through a classifier at once.
        max_pixels: Width times height of the largest image that is read.
        strict: Fail when any image could not be read.
    """
    if bool(paths) == (samples is not None):
        raise UsageError(
            "name images or folders, or take --samples 20 of the run's validation set; one of both."
        )
    for option, number in (
        ("--samples", samples),
        ("--top", top),
        ("--batch-size", batch_size),
        ("--max-pixels", max_pixels),
    ):
        if number is not None and number < 1:
            raise UsageError(f"{option} must be at least 1, got {number}.")
    check_outputs({"--json": json})
    if not run.exists() and timm.is_model(str(run)):
        raise UsageError(
            f"{run} is a model, and predict takes the folder of a run: train it on images of your classes "
            f"first, with lambdanets train folder --model {run} --data folder:PATH."
        )
    if stored_task(run) == "detection":
        refuse({"--top": top, "--batch-size": batch_size}, "a classifier", run)
        from lambdanets.cli.detecting import predict_run

        return predict_run(
            run,
            paths,
            samples=samples,
            threshold=0.5 if threshold is None else threshold,
            tile=tile or "auto",
            max_pixels=max_pixels,
            out=out,
            json=json,
            weights=weights,
            strict=strict,
        )
    refuse({"--threshold": threshold, "--tile": tile}, "a detector", run)
    sheet = out or run / "predictions.png"
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"--out is a PNG image, so its name ends in .png; got {str(sheet)!r}.")
    check_outputs({"--out": sheet})
    opened = load_run(run)
    top, batch_size = 5 if top is None else top, 32 if batch_size is None else batch_size
    if samples is not None:
        predictions = predict_samples(opened, samples, top=top, batch_size=batch_size, weights=weights)
    else:
        predictions = predict(
            opened, paths, top=top, batch_size=batch_size, weights=weights, max_pixels=max_pixels
        )
    _print(predictions, opened)
    if json is not None:
        write_json(json, to_plain(predictions))
    unread = [each for each in predictions if each.error is not None]
    written = _draw(predictions, sheet, opened)
    for label, files in (("contact sheet", written), ("predictions", [json] if json else [])):
        for file in files:
            stdout().print(f"{label}: {file}", soft_wrap=True)
    for each in unread:
        stderr().print(f"skipped {each.path}: {each.error or ''}.")
    failed = len(unread) == len(predictions) or (strict and bool(unread))
    if failed:
        stderr().print(f"lambdanets: {len(unread)} of {len(predictions)} images could not be read.")
    return FAILURE if failed else 0


def to_plain(predictions: list[Prediction]) -> list[dict[str, object]]:
    """Return predictions for JSON: a path each, and labels with probabilities or an error."""
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


def _print(predictions: list[Prediction], run: Run) -> None:
    readable = [each for each in predictions if each.error is None]
    if not readable:
        return
    ranks = max(len(each.labels) for each in readable)
    truths = any(each.truth is not None for each in readable)
    headings = {"image": "left"} | ({"true": "wrap"} if truths else {})
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
    draw(console, f"{title}: {right} of {len(readable)} right" if truths else title, rows)


def _draw(predictions: list[Prediction], sheet: Path, run: Run) -> list[Path]:
    from lambdanets.viz.contact_sheet import draw_sheets

    return draw_sheets(predictions, sheet, title=f"{run.config.model.name}  ·  {run.directory}")
