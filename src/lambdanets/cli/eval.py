"""`lambdanets eval`: measures a run or a model on validation images or ImageNet's test sets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import draw, print_files, stderr, stdout, table
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.options import (
    EVAL_DEVICES,
    check_distinct,
    check_outputs,
    chosen_device,
    engine_changes,
    resolved_location,
    shown,
    write_json,
)
from lambdanets.cli.scores import FIGURES, WORST, ScoreFiles, check_score_files, score_rows
from lambdanets.cli.tasks import run_verb

if TYPE_CHECKING:
    import numpy as np

    from lambdanets.data import DataConfig
    from lambdanets.evaluate.measurement import Evaluation
    from lambdanets.evaluate.samples import Samples
    from lambdanets.evaluate.target import EvalTarget


def run(
    what: Annotated[str, conf.Positional, shown("RUN | MODEL")],
    *,
    data: Annotated[str | None, shown("SOURCE", "the run's own validation set")] = None,
    images: Annotated[Path | None, shown("FOLDER", "beside --data")] = None,
    as_: Annotated[
        Literal["imagenet", "v2", "a", "r", "sketch", "c"] | None,
        conf.arg(
            name="as",
            metavar="imagenet | v2 | a | r | sketch | c",
            help_behavior_hint="(default: by the folders)",
        ),
    ] = None,
    real: Annotated[str | None, shown("FILE.json | timm")] = None,
    checkpoint: Annotated[str | None, shown("FILE | FOLDER | hf-hub:NAME", "published ones")] = None,
    weights: Literal["best", "last"] = "best",
    accelerate: bool = False,
    size: Annotated[int | None, shown("PIXELS", "the run's or the model's")] = None,
    context: Annotated[int | None, shown("TOKENS", "the run's")] = None,
    crop: Annotated[float | None, shown("PART", "the run's or the model's")] = None,
    batch_size: Annotated[int | None, shown("N", "the run's, or 128")] = None,
    workers: Annotated[int | None, shown("N", "the run's, or 2")] = None,
    precision: Annotated[
        Literal["32", "bf16-mixed", "16-mixed", "64"] | None,
        shown("32 | bf16-mixed | 16-mixed | 64", "the run's, or 32"),
    ] = None,
    memory_format: Annotated[
        Literal["contiguous", "channels-last"] | None,
        shown("contiguous | channels-last", "the run's; of a model channels-last on a CPU"),
    ] = None,
    max_detections: Annotated[int | None, shown("N", "the run's")] = None,
    tile: Annotated[str | None, shown("auto | SIZE | off", "auto")] = None,
    threshold: Annotated[float | None, shown("SCORE", "the run's")] = None,
    device: Annotated[str | None, shown("cpu | cuda | cuda:1 | mps", "the run's, or the best")] = None,
    tta: Annotated[Literal["flip"] | None, shown("flip")] = None,
    per_class: Annotated[Path | None, shown("FILE.csv")] = None,
    errors: Annotated[Path | None, shown("FILE.csv")] = None,
    predictions: Annotated[Path | None, shown("FILE.csv")] = None,
    confusion: Annotated[Path | None, shown("FILE.png | FILE.csv")] = None,
    calibration: Annotated[Path | None, shown("FILE.png")] = None,
    csv: Annotated[Path | None, shown("FILE.csv")] = None,
    json: Annotated[Path | None, shown("FILE.json")] = None,
    results: Annotated[Path | None, shown("FOLDER")] = None,
) -> int:
    """Measure a run or a model on its validation set, on other data, or on ImageNet's test sets.

    It runs in one process on one device. A detector is measured by COCO's average precision of boxes and
    masks, a language model by its loss and in bits per character and byte.

    Args:
        what: Folder of a run, or a model for ImageNet: a name in timm's registry (this package's models are
            in it) or hf-hub:NAME.
        data: Other data with the same classes: folder:PATH, tar:PATH and so on, for a detector coco:PATH, for
            recordings audio:PATH, for a language model text:PATH. The validation split is measured, or all of
            it if there is none. A model needs this option.
        images: Detectors: folder of the images of --data, if it is not beside the annotations.
        as_: Which of ImageNet's sets the images are: its validation set, -V2, -A, -R, -Sketch or -C. With a
            and r, predictions are limited to the classes in the folder.
        real: Measure by ReaL labels too: the file real.json, or the copy in timm.
        checkpoint: Weights for a model.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
        accelerate: Compute the lambda layers of other packages with the kernels of this one.
        size: Height and width to which images are resized and cropped.
        context: Language models: tokens of a window, which are predicted from those before them in it.
        crop: Side of the centre crop as a part of the resized image's side. Images of ImageNet-C are not
            cropped by default.
        batch_size: Images, recordings or windows of text in a batch.
        workers: Processes that read images.
        precision: Precision of the computation, in Lightning's notation.
        memory_format: Memory format of the images, which changes the speed and the rounding.
        max_detections: Detectors: number of detections in an image that count, by score; 100 for COCO.
        tile: Detectors: process large images in overlapping tiles; see predict.
        threshold: Detectors: least score of an object for precision, recall, F1, counts and --errors.
        device: Device of the computation.
        tta: Classifiers of images: average the probabilities over each image and its mirror image.
        per_class: Write accuracy, precision, recall and F1 of each class to a file (of a detector also the
            average precision), and print the best and the worst classes.
        errors: Classifiers: write the wrongly classified images or recordings to a file, the largest loss
            first: file, truth, guess, their probabilities and the loss. The first 24 are drawn beside it on
            FILE.png. Detectors: write the missed and the false objects, with their boxes; the 16 images with
            the most are drawn.
        predictions: Classifiers: write the same for all images or recordings.
        confusion: Classifiers: draw the confusion matrix, or write its counts.
        calibration: Classifiers: draw how often predictions of each confidence are correct.
        csv: Append a row to a table in the format of timm's results; with --real, by ReaL labels.
        json: Write all results to a JSON file.
        results: Detectors: folder for all detections in COCO's results format (boxes.json and masks.json).
    """
    from lambdanets.train.launch import rank_and_world_size

    if rank_and_world_size()[1] > 1:
        raise UsageError("eval measures in one process: start it without torchrun or srun.")
    tables = {"--per-class": per_class, "--csv": csv, "--json": json}
    check_outputs(tables)
    scores = {"--errors": errors, "--predictions": predictions, "--confusion": confusion}
    check_distinct({**tables, **scores, "--calibration": calibration})
    check_score_files(errors, predictions, confusion, calibration)
    return run_verb(
        "eval", what, data=data, images=images, as_=as_, real=real, checkpoint=checkpoint, weights=weights,
        accelerate=accelerate, size=size, context=context, crop=crop, batch_size=batch_size, workers=workers,
        precision=precision, memory_format=memory_format, max_detections=max_detections, tile=tile,
        threshold=threshold, device=device, tta=tta, per_class=per_class, errors=errors,
        predictions=predictions,
        confusion=confusion, calibration=calibration, csv=csv, json=json, results=results,
    )  # fmt: skip


def evaluate_classifier(
    what: str,
    *,
    data: str | None,
    as_: str | None,
    real: str | None,
    checkpoint: str | None,
    weights: Literal["best", "last"],
    accelerate: bool,
    size: int | None,
    crop: float | None,
    batch_size: int | None,
    workers: int | None,
    precision: str | None,
    memory_format: str | None,
    device: str | None,
    tta: Literal["flip"] | None,
    per_class: Path | None,
    errors: Path | None,
    predictions: Path | None,
    confusion: Path | None,
    calibration: Path | None,
    csv: Path | None,
    json: Path | None,
) -> int:
    """Measure a classifier; the arguments are those of `lambdanets eval`."""
    if as_ is not None and data is None:
        raise UsageError("--as describes the images of --data: name them with --data folder:PATH.")
    if real is not None and as_ not in (None, "imagenet"):
        raise UsageError(f"--real has labels for ImageNet's own validation set, not for --as {as_}.")

    from lambdanets.evaluate.measurement import guess_test_set, measure
    from lambdanets.evaluate.results import append_row, check_table, timm_row, to_plain
    from lambdanets.evaluate.test_sets import TEST_SETS

    if csv is not None:
        check_table(csv)
    on = chosen_device(device, EVAL_DEVICES)
    target, elsewhere = _target(what, data, checkpoint, weights)
    test_set = TEST_SETS[as_] if as_ is not None else guess_test_set(target) if elsewhere else None
    if real is not None and test_set not in (None, TEST_SETS["imagenet"]):
        raise UsageError(f"--real has labels for ImageNet's own validation set, and this is {test_set.name}.")
    if crop is None and test_set is not None and test_set.cropped:
        crop = 1.0
    changes = {"crop_pct": crop, "batch_size": batch_size, "workers": workers}
    with usage():
        form = replace(target.data, **{name: value for name, value in changes.items() if value is not None})
        target = replace(target, data=form)
        if size is not None:
            target = target.at_size(size)
    files = ScoreFiles(per_class, errors, predictions, confusion, calibration)
    if not target.data.multi_label:
        files.check(target.data.source, len(target.classes))
    engine = replace(target.engine, **engine_changes(precision, memory_format))
    target = replace(target, engine=engine, device=on)
    if accelerate:
        from lambdanets import models

        target = replace(target, network=models.accelerate(target.network))
    if tta is not None:
        from lambdanets.evaluate.views import FlipAveraged

        averaged = FlipAveraged(target.network, multi_label=target.data.multi_label or target.binary)
        target = replace(target, network=averaged, weights=f"{target.weights}, averaged over mirror images")
    if target.data.multi_label:
        from lambdanets.cli.labels import evaluate_labels

        return evaluate_labels(
            what, target, per_class, json, as_=as_, real=real, csv=csv, errors=errors,
            predictions=predictions, confusion=confusion, calibration=calibration,
        )  # fmt: skip
    evaluation = measure(target, test_set=test_set, real=real, samples=files.per_sample)
    _print(f"{what}, {target.weights}", evaluation)
    title = f"{target.name}  ·  {what} on {evaluation.data.source}"
    written = files.write(
        evaluation.scores, evaluation.samples, target.classes, title=title, draw=draw_errors
    )
    if csv is not None:
        append_row(csv, timm_row(target, evaluation, label=what))
    if json is not None:
        write_json(json, to_plain(target, evaluation, label=what))
    print_files(*written, ("table", csv), ("figures", json))
    return 0


def draw_errors(
    samples: "Samples", rows: "np.ndarray", names: Sequence[str], sheet: Path, title: str, summary: str
) -> list[Path]:
    """Draw some wrongly classified images on a contact sheet; `names` are those of the classes."""
    from lambdanets.viz.contact_sheet import draw_sheets

    predictions = [samples.as_prediction(row, names) for row in rows]
    return draw_sheets(predictions, sheet, title=title, summary=summary, per_page=WORST, columns=6)


def _target(
    what: str, data: str | None, checkpoint: str | None, weights: Literal["best", "last"]
) -> "tuple[EvalTarget, bool]":
    """Return the target, and whether its images are other than the run's own."""
    from lambdanets.evaluate.target import is_run_folder, target_from_model, target_from_run
    from lambdanets.train import load_run

    if is_run_folder(what):
        if checkpoint is not None:
            raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
        target = target_from_run(load_run(what), weights=weights)
        own = target.data
        if data is not None:
            with usage():
                target = replace(target, data=_elsewhere(own, data))
        return target, resolved_location(target.data) != resolved_location(own)
    if data is None:
        raise UsageError(f"{what} is a model and has no validation set: name images with --data folder:PATH.")
    if weights != "best":
        raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
    return target_from_model(what, data, checkpoint=checkpoint), True


def _elsewhere(config: "DataConfig", source: str) -> "DataConfig":
    """Select all images of another source, and the validation split of the run's own."""
    other = replace(config, source=source)
    if resolved_location(other) == resolved_location(config):
        return other
    return replace(other, val_fraction=1.0)


def _print(label: str, evaluation: "Evaluation") -> None:
    rows = score_rows(evaluation.scores, choices=evaluation.choices)
    if evaluation.real is not None:
        for name, value in evaluation.real.items():
            text, form = FIGURES[name]
            how = "with" if name == "images" else "by"
            rows.add_row(f"{text} {how} ReaL labels", form.format(value))
    title = f"{label}, on {evaluation.data.source}"
    if evaluation.test_set is not None:
        title += f" ({evaluation.test_set.name}, {evaluation.choices:,} classes to choose from)"
    draw(stdout(), title, rows)
    if evaluation.corruptions:
        _print_corruptions(evaluation)


def _print_corruptions(evaluation: "Evaluation") -> None:
    rows = table(corruption="left", severities="left", error="right", of_AlexNet="right")
    for each in evaluation.corruptions:
        share = "" if each.normalised is None else f"{each.normalised:.1%}"
        rows.add_row(each.name, " ".join(map(str, each.severities)), f"{each.error:.2%}", share)
    if evaluation.mce is not None:
        rows.add_row("mean corruption error", "", "", f"{evaluation.mce:.1%}")
    draw(stdout(), "top-1 error by corruption", rows)
    if evaluation.mce is None:
        stderr().print(
            "lambdanets: the mean corruption error needs all 15 corruptions at all 5 severities; "
            "the table has those in the folder."
        )
