"""`lambdanets eval`: what a run or a model reaches, on a run's validation set, on others, on ImageNet's."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import draw, stderr, stdout, table
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.options import check_outputs, place, refuse, shown, write_json
from lambdanets.data import DataConfig
from lambdanets.train import load_run
from lambdanets.train.config import stored_task

if TYPE_CHECKING:
    from lambdanets.evaluate.measurement import Evaluation
    from lambdanets.evaluate.results import ClassRow
    from lambdanets.evaluate.target import EvalTarget

LABELS = {
    "top1": ("accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "images": ("images", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
}
EXTREMES = 5  # best and worst classes that are printed


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
    crop: Annotated[float | None, shown("PART", "the run's or the model's")] = None,
    batch_size: Annotated[int | None, shown("N", "the run's, or 128")] = None,
    workers: Annotated[int | None, shown("N", "the run's, or 2")] = None,
    precision: Annotated[
        Literal["32", "bf16-mixed", "16-mixed", "64"] | None,
        shown("32 | bf16-mixed | 16-mixed | 64", "the run's, or 32"),
    ] = None,
    max_detections: Annotated[int | None, shown("N", "the run's")] = None,
    tile: Annotated[str | None, shown("auto | SIZE | off", "auto")] = None,
    per_class: Annotated[Path | None, shown("FILE.csv")] = None,
    csv: Annotated[Path | None, shown("FILE.csv")] = None,
    json: Annotated[Path | None, shown("FILE.json")] = None,
    results: Annotated[Path | None, shown("FOLDER")] = None,
) -> int:
    """Measure a run or a model on its validation set, on other images, or on ImageNet's test sets.

    One process does it, on one device. A run that detects objects is measured by COCO's figures, of boxes and
    masks.

    Args:
        what: The folder of a run, or a model of ImageNet: a name of timm's registry or ours, or hf-hub:NAME.
        data: Other images with the same classes, such as folder:PATH, of a detector coco:PATH; where they
            have no validation side of their own, all of them are measured. A model needs it.
        images: Where the images of a detector's --data are, when not beside it.
        as_: Which of ImageNet's sets the images are: its validation set, -V2, -A, -R, -Sketch or -C. On -A
            and -R only the classes in the folder are there to choose from.
        real: Measure by ReaL labels too: their real.json, or the copy that timm brings.
        checkpoint: Weights for a model.
        weights: The best weights of a run by validation, or those of its last epoch.
        accelerate: Compute the lambda layers of other packages with the kernels of this one.
        size: Height and width of the images in the test.
        crop: Part of the resized image's side that is kept, in the middle; ImageNet-C is whole unless said.
        batch_size: Images that go through the network at once.
        workers: Processes that read images.
        precision: Number format of the computation.
        max_detections: Of an image, the likeliest ones that count, of a detector; COCO's is 100.
        tile: Of a detector, look at large images in overlapping tiles, as predict does.
        per_class: Write the accuracy of each class, and print the best and the worst.
        csv: Add a row to a table of timm's results; with --real, by these labels.
        json: Write all figures for other programs.
        results: Write what a detector found, in COCO's results format: boxes.json and masks.json.
    """
    from lambdanets.train.launch import shard

    if shard()[1] > 1:
        raise UsageError("eval measures in one process: start it without torchrun or srun.")
    check_outputs({"--per-class": per_class, "--csv": csv, "--json": json})
    if stored_task(Path(what)) == "detection":
        given = {"--as": as_, "--real": real, "--checkpoint": checkpoint, "--accelerate": accelerate}
        refuse(given | {"--crop": crop, "--csv": csv}, "a classifier", Path(what))
        from lambdanets.cli.detecting import evaluate_run

        return evaluate_run(
            Path(what),
            data=data,
            images=images,
            weights=weights,
            size=size,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            max_detections=max_detections,
            tile=tile or "auto",
            per_class=per_class,
            json=json,
            results=results,
        )
    given = {"--images": images, "--max-detections": max_detections, "--tile": tile, "--results": results}
    refuse(given, "a detector", Path(what))
    if as_ is not None and data is None:
        raise UsageError("--as says what the images of --data are; name them with --data folder:PATH.")
    if real is not None and as_ not in (None, "imagenet"):
        raise UsageError(f"--real has labels for ImageNet's own validation set, not for --as {as_}.")

    from lambdanets.evaluate.measurement import guess_test_set, measure
    from lambdanets.evaluate.results import check_table
    from lambdanets.evaluate.test_sets import TEST_SETS

    if csv is not None:
        check_table(csv)
    target, elsewhere = _target(what, data, checkpoint, weights)
    test_set = TEST_SETS[as_] if as_ is not None else guess_test_set(target) if elsewhere else None
    if real is not None and test_set not in (None, TEST_SETS["imagenet"]):
        raise UsageError(f"--real has labels for ImageNet's own validation set, and this is {test_set.name}.")
    if crop is None and test_set is not None and test_set.cut:
        crop = 1.0
    changes = {"crop_pct": crop, "batch_size": batch_size, "workers": workers}
    with usage():
        form = replace(target.data, **{name: value for name, value in changes.items() if value is not None})
        target = replace(target, data=form)
        if size is not None:
            target = target.at_size(size)
    if precision is not None:
        target = replace(target, engine=replace(target.engine, precision=precision))
    if accelerate:
        from lambdanets import models

        target = replace(target, network=models.accelerate(target.network))
    evaluation = measure(target, test_set=test_set, real=real)
    _print(f"{what}, {target.weights}", evaluation)
    _write(what, target, evaluation, per_class, csv, json)
    return 0


def _target(
    what: str, data: str | None, checkpoint: str | None, weights: Literal["best", "last"]
) -> "tuple[EvalTarget, bool]":
    """Return the target, and whether its images are other than the run's own."""
    from lambdanets.evaluate.target import is_run_folder, target_from_model, target_from_run

    if is_run_folder(what):
        if checkpoint is not None:
            raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
        target = target_from_run(load_run(what), weights=weights)
        own = target.data
        if data is not None:
            with usage():
                target = replace(target, data=_elsewhere(own, data))
        return target, place(target.data) != place(own)
    if data is None:
        raise UsageError(f"{what} is a model without images of its own; name some with --data folder:PATH.")
    if weights != "best":
        raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
    return target_from_model(what, data, checkpoint=checkpoint), True


def _write(
    what: str,
    target: "EvalTarget",
    evaluation: "Evaluation",
    per_class: Path | None,
    csv: Path | None,
    json: Path | None,
) -> None:
    from lambdanets.evaluate.results import append_row, class_rows, timm_row, to_plain, write_classes

    if per_class is not None:
        rows = class_rows(evaluation.scores, target.classes)
        _print_classes(rows)
        write_classes(per_class, rows)
    if csv is not None:
        append_row(csv, timm_row(target, evaluation, label=what))
    if json is not None:
        write_json(json, to_plain(target, evaluation, label=what))
    for name, file in (("classes", per_class), ("table", csv), ("figures", json)):
        if file is not None:
            stdout().print(f"{name}: {file}", soft_wrap=True)


def _elsewhere(config: DataConfig, source: str) -> DataConfig:
    """All of another source; of the run's own, however its path is written, what the run has not seen."""
    other = replace(config, source=source)
    if place(other) == place(config):
        return other
    return replace(other, val_fraction=1.0)


def _print(label: str, evaluation: "Evaluation") -> None:
    figures = evaluation.scores.figures()
    if evaluation.choices <= 5:
        figures.pop("top5")  # always 100 %
    rows = table(measure="left", value="right")
    for name, value in figures.items():
        text, form = LABELS.get(name, (name, "{:,.4f}"))
        rows.add_row(text, form.format(value))
    if evaluation.real is not None:
        for name, value in evaluation.real.items():
            text, form = LABELS[name]
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
            "these are those that the folder holds."
        )


def _print_classes(rows: "list[ClassRow]") -> None:
    ranked = sorted(rows, key=lambda row: -row.top1)
    words = {"name": "wrap"} if any(row.description != row.name for row in rows) else {}
    parts = {"all classes": ranked}
    if len(rows) > 2 * EXTREMES:
        parts = {"best classes": ranked[:EXTREMES], "worst classes": ranked[-EXTREMES:]}
    for title, chosen in parts.items():
        drawn = table(**{"class": "left"}, **words, images="right", accuracy="right")
        for row in chosen:
            said = [row.description] if words else []
            drawn.add_row(row.name, *said, f"{row.images:,}", f"{row.top1:.2%}")
        draw(stdout(), title, drawn)
