"""`lambdanets predict`: labels images, in the terminal, on a contact sheet, as CSV and as JSON."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import (
    PREDICT_DEVICES,
    check_distinct,
    check_images,
    check_outputs,
    check_suffix,
    chosen_device,
    shown,
)
from lambdanets.cli.predictions import to_stdout, write_predictions
from lambdanets.cli.tasks import run_verb

if TYPE_CHECKING:
    from lambdanets.evaluate.prediction import Prediction

MAX_LABELS = 10  # of an image with several labels, unless --top says otherwise


def run(
    what: Annotated[Path, conf.Positional, shown("RUN | MODEL")],
    paths: Annotated[tuple[Path, ...], conf.Positional, shown("FILE | FOLDER")] = (),
    *,
    samples: Annotated[int | None, shown("N")] = None,
    top: Annotated[int | None, shown("N", "5")] = None,
    threshold: Annotated[float | None, shown("SCORE", "0.5")] = None,
    tta: Annotated[Literal["flip"] | None, shown("flip")] = None,
    tile: Annotated[str | None, shown("auto | SIZE | off", "auto")] = None,
    out: Annotated[
        Path | None, shown("SHEET.png | FOLDER", "predictions.png or predictions/ in the run")
    ] = None,
    json: Annotated[Path | None, shown("FILE.json")] = None,
    csv: Annotated[Path | None, shown("FILE.csv | -")] = None,
    counts: Annotated[Path | None, shown("FILE.csv")] = None,
    label_images: Annotated[Path | None, shown("FOLDER")] = None,
    pixel_size: Annotated[float | None, shown("MICROMETRES")] = None,
    checkpoint: Annotated[str | None, shown("FILE | FOLDER | hf-hub:NAME", "published ones")] = None,
    weights: Literal["best", "last"] = "best",
    device: Annotated[str | None, shown("cpu | cuda | cuda:1 | mps | xpu", "the best")] = None,
    batch_size: Annotated[int | None, shown("N", "32")] = None,
    max_pixels: Annotated[int | None, shown("N", "the run's")] = None,
    strict: bool = False,
) -> int:
    """Label images with a run or a model and draw them on a contact sheet, or draw the objects in them.

    A detector finds objects. Recordings are labelled and drawn as spectrograms. A language model reports how
    well it predicts each file of text, in bits. Files that cannot be read are reported and skipped; the
    command fails if none could be read. A contact sheet has the first 200 images.

    Args:
        what: Folder of a run, or a classifier for ImageNet: a name in timm's registry (this package's models
            are in it) or hf-hub:NAME. A model prepares images as it was published, and names its classes.
        paths: Files, and folders, which are searched recursively.
        samples: Instead of files, use this many images or recordings of the run's validation set, and show
            their labels.
        top: Classifiers: number of classes to show for each image.
        threshold: Detectors: least score of an object. Classifiers of several labels: least probability of a
            label.
        tta: Classifiers of images: average the probabilities over each image and its mirror image.
        tile: Detectors: process large images in overlapping tiles: auto for images that would be shrunk far
            more than those of the training, a size in pixels for all larger images, off for none.
        out: Classifiers: the contact sheet, whose further pages get a number. Detectors: the folder of the
            drawings, or with --samples the sheet.
        json: Write the predictions to a JSON file.
        csv: Classifiers: write a row per file: file, label, probability, the next labels with theirs, error.
            Detectors: write a row per object: file, number, class, score, box, centroid, area and diameter in
            pixels. `-` writes to the standard output, in place of the table.
        counts: Detectors: write the number of objects of each class in each image.
        label_images: Detectors: folder for a TIFF image of each image, whose values are the numbers of the
            objects as in --csv, and 0 elsewhere.
        pixel_size: Detectors: side of a pixel, for areas and diameters in micrometres in --csv.
        checkpoint: Weights for a model.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
        device: Device of the computation.
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
    files = {"--json": json, "--csv": None if to_stdout(csv) else csv, "--counts": counts}
    check_outputs(files)
    check_distinct({**files, "--out": out, "--label-images": label_images})
    return run_verb(
        "predict", what, paths, samples=samples, top=top, threshold=threshold, tta=tta, tile=tile, out=out,
        json=json, csv=csv, counts=counts, label_images=label_images, pixel_size=pixel_size,
        checkpoint=checkpoint, device=device, weights=weights, batch_size=batch_size, max_pixels=max_pixels,
        strict=strict,
    )  # fmt: skip


def predict_labels(
    what: Path,
    paths: tuple[Path, ...],
    *,
    samples: int | None,
    top: int | None,
    threshold: float | None,
    tta: Literal["flip"] | None,
    out: Path | None,
    json: Path | None,
    csv: Path | None,
    checkpoint: str | None,
    weights: Literal["best", "last"],
    device: str | None,
    batch_size: int | None,
    max_pixels: int | None,
    strict: bool,
) -> int:
    """Label images with a classifier; the arguments are those of `lambdanets predict`."""
    from lambdanets.evaluate.prediction import predict_files, predict_held_out
    from lambdanets.evaluate.target import is_run_folder, target_from_model, target_from_run
    from lambdanets.evaluate.test_sets import describe_classes
    from lambdanets.evaluate.views import FlipAveraged
    from lambdanets.train import load_run
    from lambdanets.viz.contact_sheet import MAX_PAGES, PER_PAGE, draw_sheets

    check_images(paths, samples)
    is_run = is_run_folder(str(what))
    if is_run and checkpoint is not None:
        raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
    if not is_run and samples is not None:
        raise UsageError(f"{what} is a model and has no validation set: name images or folders.")
    if not is_run and weights != "best":
        raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
    sheet = out or (what if is_run else Path()) / "predictions.png"
    check_suffix("--out", sheet, ".png")
    check_outputs({"--out": sheet})
    on = chosen_device(device, PREDICT_DEVICES)
    if is_run:
        target = target_from_run(load_run(what), weights=weights)
        title, heading = f"{target.name}  ·  {what}", f"{target.name} from {what}"
    else:
        target = target_from_model(str(what), checkpoint=checkpoint)
        target = replace(target, classes=describe_classes(target.classes))
        title, heading = f"{what}  ·  {target.weights}", f"{what}, {target.weights}"
    target = replace(target, device=on)
    several = target.data.multi_label
    if threshold is not None and not several:
        raise UsageError(
            f"--threshold is for several labels, and {what} gives one: --top shows more classes."
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is a probability from 0 to 1, got {threshold}.")
    if tta is not None:
        target = replace(target, network=FlipAveraged(target.network, multi_label=several or target.binary))
    top = (MAX_LABELS if several else 5) if top is None else top
    batch_size = 32 if batch_size is None else batch_size
    options = {"top": top, "threshold": 0.5 if threshold is None else threshold, "batch_size": batch_size}
    if samples is not None:
        found = predict_held_out(target, samples, **options)
    else:
        found = predict_files(target, paths, **options, max_pixels=max_pixels)

    def draw(predictions: "Sequence[Prediction]", summary: str) -> list[Path]:
        return draw_sheets(predictions, sheet, title=title, summary=summary)

    return write_predictions(
        found, title=heading, ranks=min(top, len(target.classes)), truths=samples is not None, csv=csv,
        json=json, draw=draw, most=PER_PAGE * MAX_PAGES, strict=strict, part=batch_size,
    )  # fmt: skip
