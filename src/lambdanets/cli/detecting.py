"""`lambdanets eval` and `lambdanets predict` for runs that detect objects."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from lambdanets.cli.options import (
    EVAL_DEVICES,
    PREDICT_DEVICES,
    check_images,
    chosen_device,
    default_output,
    engine_changes,
    resolved_location,
    write_json,
)
from lambdanets.cli.predictions import to_stdout
from lambdanets.cli.scores import errors_sheet
from lambdanets.data import CocoConfig
from lambdanets.detection.config import MIN_MAX_DETECTIONS

if TYPE_CHECKING:
    from PIL import Image

    from lambdanets.detection import DetectionConfig, Detections, Scores
    from lambdanets.detection.measuring import Row
    from lambdanets.detection.tiling import TileOption
    from lambdanets.train import Run

WORST = 16  # images on the sheet of errors
FIGURES = {
    "ap": "AP (IoU 0.50 to 0.95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP of small objects (below 32x32)",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects (above 96x96)",
}


def evaluate_run(
    what: str,
    *,
    data: str | None,
    images: Path | None,
    weights: Literal["best", "last"],
    size: int | None,
    batch_size: int | None,
    workers: int | None,
    precision: str | None,
    memory_format: str | None,
    device: str | None,
    max_detections: int | None,
    tile: str | None,
    threshold: float | None,
    per_class: Path | None,
    errors: Path | None,
    json: Path | None,
    results: Path | None,
) -> int:
    """Compute COCO's figures of a run; the arguments are those of `lambdanets eval`."""
    from lambdanets.detection import draw_pairs, evaluate, load_run, write_kinds, write_per_class
    from lambdanets.detection.error_sheet import LEGEND, error_pairs
    from lambdanets.detection.error_sheet import NAMES as ERROR_NAMES
    from lambdanets.detection.matching import ERROR_COLUMNS
    from lambdanets.detection.measuring import write_rows

    if max_detections is not None and max_detections < MIN_MAX_DETECTIONS:
        raise UsageError(f"--max-detections is {MIN_MAX_DETECTIONS} or more; got {max_detections}.")
    if images is not None and data is None:
        raise UsageError("--images is the folder of the images of --data: give --data coco:PATH too.")
    option, on = _tile_option(tile or "auto"), chosen_device(device, EVAL_DEVICES)
    if threshold is not None:
        _check_threshold(threshold)
    run = Path(what)
    opened = load_run(run)
    threshold = opened.config.validation.threshold if threshold is None else threshold
    changes = {"image_size": size, "batch_size": batch_size, "workers": workers}
    own = opened.config.data
    with usage():
        data_config = replace(own, **{name: value for name, value in changes.items() if value is not None})
        if data is not None:
            data_config = _other_data(data_config, data, images)
        config = opened.config
        config = replace(config, engine=replace(config.engine, **engine_changes(precision, memory_format)))
        opened = replace(opened, config=config)
    evaluation = evaluate(
        opened, data=data_config, weights=weights, max_detections=max_detections, tile=option, device=on
    )
    scores = evaluation.scores
    if evaluation.tiled:
        stdout().print(_tiles_note(evaluation.tiled, scores.images, opened, option), soft_wrap=True)
    _print_scores(f"{run}, {weights} weights, on {data_config.source}", scores)
    matches = evaluation.matches()
    figures, (best, best_f1) = matches.figures(threshold), matches.best_threshold()
    _print_matches(figures, best, best_f1)
    if per_class is not None:
        of_classes = matches.class_figures(threshold)
        _print_classes(scores, of_classes)
        write_per_class(scores, per_class, of_classes)
    if json is not None:
        plain = {"run": str(run), "weights": weights, "data": data_config.source} | scores.to_plain()
        at_threshold = figures | {"best_threshold": best, "best_f1_50": best_f1}
        write_json(json, plain | {"at_threshold": at_threshold})
    pages = []
    if errors is not None:
        paths = [evaluation.images.path(index) for index in range(len(evaluation.images))]
        write_rows(matches.error_rows(threshold, paths), ERROR_COLUMNS, errors)
        pages = draw_pairs(
            error_pairs(evaluation.images, matches, threshold, WORST),
            errors_sheet(errors),
            f"{opened.config.model.name}  ·  {run}  ·  images with the most errors",
            names=ERROR_NAMES,
            threshold=threshold,
            per_page=WORST,
            legend=LEGEND,
        )
    files = [] if results is None else write_kinds(evaluation.results, results, masks=data_config.masks)
    print_files(
        *(("classes", per_class), ("figures", json), ("errors", errors)),
        *(("sheet of errors", page) for page in pages),
        *(("results", file) for file in files),
    )
    return 0


def _other_data(config: CocoConfig, source: str, images: Path | None) -> CocoConfig:
    """Return the config for other data: a whole file, or a folder's validation split."""
    folder = None if images is None else str(images)
    other = replace(config, source=source, images=folder or config.images)
    # The run's own data keep their split: the training images are not evaluated.
    if resolved_location(other) == resolved_location(config):
        return other
    return replace(other, images=folder, train_split=None, val_split=None, val_fraction=1.0)


def _print_scores(title: str, scores: "Scores") -> None:
    kinds = scores.kinds
    rows = table(**{"measure": "left"} | dict.fromkeys(kinds, "right"))
    names = FIGURES | {
        name: f"AR with {name.removeprefix('ar')} detections"
        for name in scores.box.values
        if name.startswith("ar") and name[2:].isdigit()
    }
    for name, text in names.items():
        rows.add_row(text, *(_percent(kind.values[name]) for kind in kinds.values()))
    draw(stdout(), f"{title}: {scores.images:,} images, {int(scores.objects.sum()):,} objects", rows)


def _print_matches(figures: dict[str, Any], best: float, best_f1: float) -> None:
    """Print precision, recall and F1 at a threshold, the counts, and the threshold of the highest F1."""
    kinds = [kind for kind in ("box", "mask") if kind in figures]
    rows = table(**{"measure": "left"} | dict.fromkeys(kinds, "right"))
    for iou in (50, 75):
        for name, text in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
            values = (_percent(figures[kind][f"{name}_{iou}"]) for kind in kinds)
            rows.add_row(f"{text} (IoU 0.{iou})", *values)
    draw(stdout(), f"scores from {figures['threshold']:g}", rows)
    stdout().print(
        f"{figures['found']:,} objects were found, {figures['annotated']:,} are annotated, and the counts of "
        f"an image differ by {figures['count_error']:.1f} on average. The {kinds[-1]} F1 (IoU 0.50) is "
        f"highest, {best_f1:.1%}, with --threshold {best:.2f}.",
        soft_wrap=True,
    )


def _print_classes(scores: "Scores", of_classes: Sequence[dict[str, float]]) -> None:
    """Print the average precision of each class, and its figures at the threshold."""
    key = "mask_ap" if scores.mask else "box_ap"
    rows: list[dict[str, Any]] = [
        row | more for row, more in zip(scores.per_class(), of_classes, strict=True)
    ]
    ranked = sorted((row for row in rows if not math.isnan(row[key])), key=lambda row: -row[key])
    counts = ("objects", "found")
    columns = [name for name in rows[0] if name not in ("class", *counts)]
    draw_classes(
        ranked,
        {"class": "wrap"} | dict.fromkeys((*counts, *columns), "right"),
        lambda row: [
            row["class"],
            *(f"{row[name]:,}" for name in counts),
            *(_percent(row[name]) for name in columns),
        ],
    )


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def predict_run(
    run: Path,
    paths: tuple[Path, ...],
    *,
    samples: int | None,
    device: str | None,
    threshold: float | None,
    tile: str | None,
    max_pixels: int | None,
    out: Path | None,
    json: Path | None,
    csv: Path | None,
    counts: Path | None,
    label_images: Path | None,
    pixel_size: float | None,
    weights: Literal["best", "last"],
    strict: bool,
) -> int:
    """Detect objects with a run and draw them; the arguments are those of `lambdanets predict`."""
    from lambdanets.detection import draw_pairs, load_run, predict, predict_samples
    from lambdanets.detection.measuring import (
        COUNT_COLUMNS,
        count_rows,
        label_image,
        object_columns,
        object_rows,
        write_label_image,
        write_label_image_in_parts,
        write_rows,
    )
    from lambdanets.detection.tiling import TrainingSizes
    from lambdanets.train.checkpoint import replacing

    check_images(paths, samples)
    threshold = 0.5 if threshold is None else threshold
    _check_threshold(threshold)
    if pixel_size is not None and not 0 < pixel_size < math.inf:
        raise UsageError(f"--pixel-size is a number of micrometres above 0; got {pixel_size:g}.")
    if pixel_size is not None and csv is None:
        raise UsageError("--pixel-size adds micrometres to the table of --csv: give --csv FILE.csv too.")
    option, on = _tile_option(tile or "auto"), chosen_device(device, PREDICT_DEVICES)
    opened = load_run(run)
    if label_images is not None and not opened.config.data.masks:
        raise UsageError(f"--label-images needs masks, and {run} was trained with data.masks=false.")
    tables = {"--json": json, "--csv": csv, "--counts": counts, "--label-images": label_images}
    if samples is not None:
        if given := [name for name, file in tables.items() if file is not None]:
            raise UsageError(
                f"{given[0]} goes with images; of the validation set, eval --results writes all."
            )
        sheet = out or default_output(run, "predictions.png")
        pairs = predict_samples(opened, samples, weights=weights, tile=option, device=on)
        title = f"{opened.config.model.name}  ·  {run}"
        with usage():
            pages = draw_pairs(pairs, sheet, title, names=opened.classes, threshold=threshold)
        print_files(*(("sheet", page) for page in pages))
        return 0
    folder = out or default_output(run, "predictions")
    if folder.suffix.lower() == ".png":
        raise UsageError(f"--out is the folder of the drawings, one for each image; got {str(folder)!r}.")
    photos = _photos(paths, {"--out": folder, "--label-images": label_images})
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(image="left", objects="right", found="wrap", drawing="left")
    entries: list[dict[str, Any]] = []
    measures: list[Row] = []
    numbers: list[Row] = []
    unread = 0
    taken: set[str] = set()
    tiled = shrunk = parted = 0
    sizes, data_config = TrainingSizes.read(opened.files.image_sizes, opened.config.data), opened.config.data
    detections = predict(
        opened, photos, threshold=threshold, weights=weights, tile=option, max_pixels=max_pixels, device=on
    )
    for each in detections:
        entries.append(_entry(each, opened.classes))
        if each.image is None:
            unread += 1
            stderr().print(f"skipped {each.path}: {each.error or ''}.")
            continue
        target = folder / _free_name(Path(each.path), taken)
        parted += (in_parts := max(each.size) > max(each.image.size))
        if csv is not None:
            measures += object_rows(each, opened.classes, pixel_size=pixel_size)
        numbers += count_rows(each, opened.classes)
        if label_images is not None:
            file = label_images / f"{target.stem}.tif"
            if in_parts:
                write_label_image_in_parts(each.objects, *each.size, file)
            else:
                write_label_image(label_image(each.objects, *each.size), file)
        tiled += each.tiles > 1
        shrunk += each.tiles == 1 and sizes.too_large(each.size, data_config)
        drawing = _drawing(each.image, each, opened.classes)
        # Atomic, so that a link to a photo is replaced, not followed.
        with replacing(target) as part:
            drawing.save(part, format="PNG")
        summary = _summary(each, opened.classes)
        rows.add_row(each.path, str(len(each.objects["labels"])), summary, str(target))
    piped = to_stdout(csv)
    console = stderr() if piped else stdout()
    if rows.row_count and not piped:
        draw(console, f"{opened.config.model.name} from {run}, scores from {threshold:g}", rows)
    if tiled:
        console.print(_tiles_note(tiled, rows.row_count, opened, option), soft_wrap=True)
    if parted:
        console.print(
            f"{parted:,} of {rows.row_count:,} images are too large to be decoded as a whole: they were read "
            "in parts, and their drawings are smaller.",
            soft_wrap=True,
        )
    if shrunk:
        console.print(
            f"{shrunk:,} of {rows.row_count:,} images were shrunk far more than those of the training (about "
            f"{sizes.median:,} pixels long): small objects are missed. --tile auto processes them in tiles.",
            soft_wrap=True,
        )
    if json is not None:
        write_json(json, entries)
    if csv is not None:
        write_rows(measures, object_columns(pixel_size), sys.stdout if piped else csv)
    if counts is not None:
        write_rows(numbers, COUNT_COLUMNS, counts)
    files = {"predictions": json, "objects": None if piped else csv, "counts": counts}
    print_files(*files.items(), ("label images", label_images), console=console)
    return exit_code_of_samples(unread, len(entries), strict=strict)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is from 0 to 1; got {threshold:g}.")


def _tile_option(given: str) -> "TileOption":
    from lambdanets.detection.tiling import check_tile

    try:
        return check_tile(given)
    except ValueError as error:
        raise UsageError(f"--{error}.") from error


def _tiles_note(number: int, total: int, run: "Run[DetectionConfig]", option: "TileOption") -> str:
    """Return the sentence about images that were split into tiles."""
    from lambdanets.detection.tiling import TrainingSizes

    median = TrainingSizes.read(run.files.image_sizes, run.config.data).median
    side = median if option == "auto" else option
    return (
        f"{number:,} of {total:,} images are much larger than those of the training (about {median:,} pixels "
        f"long): they were processed in overlapping tiles of {side:,} pixels. For objects larger than a tile "
        "name a larger SIZE with --tile, or --tile off, which shrinks the images."
    )


def _photos(paths: tuple[Path, ...], outputs: dict[str, Path | None]) -> list[Path]:
    """Return the image files; refuse those in a folder of the results, which would be overwritten."""
    from lambdanets.data.files import find_files
    from lambdanets.data.images import IMAGE_SUFFIXES

    found = list(find_files(paths, IMAGE_SUFFIXES))
    for option, given in outputs.items():
        folder = given and given.resolve()
        if inside := [path for path in found if folder in (path.resolve().parent, path.parent.resolve())]:
            raise UsageError(
                f"{option} {given} holds images to be processed, photos or results of an earlier call, such "
                f"as {inside[0]}, which results could replace; name another folder, or images outside of it."
            )
    return found


def _free_name(path: Path, taken: set[str]) -> str:
    """Return a file name for a drawing that no other drawing of this call has."""
    names: Iterator[str] = (
        f"{path.stem}{'' if number == 1 else f'-{number}'}.png" for number in range(1, len(taken) + 2)
    )
    name = next(each for each in names if each not in taken)
    taken.add(name)
    return name


def _drawing(image: "Image.Image", each: "Detections", classes: tuple[str, ...]) -> "Image.Image":
    """Draw the objects onto their image, or onto a smaller version of it."""
    from lambdanets.detection import draw_objects

    found, shrunk = each.objects, max(image.size) / max(each.size)
    return draw_objects(
        image,
        found["boxes"] * shrunk,
        found["labels"],
        classes,
        found["scores"],
        found.get("masks"),
        longest=max(image.size) if shrunk < 1 else None,
    )


def _summary(each: "Detections", classes: tuple[str, ...]) -> str:
    numbers: dict[str, int] = {}
    for label in each.objects["labels"].tolist():
        numbers[classes[label - 1]] = numbers.get(classes[label - 1], 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(numbers.items(), key=lambda item: -item[1]))


def _entry(each: "Detections", classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON entry of an image: path, and objects as in COCO's results, with names of classes."""
    if each.image is None:
        return {"path": each.path, "error": each.error}
    from lambdanets.detection import to_results

    objects = []
    for found in to_results([each.objects], [0], range(len(classes))):
        kept = {name: value for name, value in found.items() if name not in ("image_id", "category_id")}
        objects.append({"class": classes[found["category_id"]]} | kept)
    height, width = each.size
    return {"path": each.path, "width": width, "height": height, "objects": objects}
