"""`lambdanets explain`: the exact maps of all lambda layers for an image, a recording or a text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro import conf

from lambdanets.cli.console import draw, grid, print_files, stderr, stdout, table
from lambdanets.cli.errors import UsageError, usage
from lambdanets.cli.options import PREDICT_DEVICES, check_outputs, chosen_device, shown
from lambdanets.cli.tasks import run_verb

if TYPE_CHECKING:
    from lambdanets.explaining import Explanation, Scene

TOP = 5  # predicted classes that are named
MAX_OBJECTS = 50  # found objects that the page lists
METHODS = Literal["gradients", "integrated-gradients", "occlusion"]


def run(
    what: Annotated[Path, conf.Positional, shown("RUN | MODEL")],
    file: Annotated[Path | None, conf.Positional, shown("FILE")] = None,
    *,
    out: Annotated[
        Path | None, shown("FILE.html | .png | .npz | .json", "FILE's name with .html, here")
    ] = None,
    text: Annotated[str | None, shown("TEXT")] = None,
    layers: Annotated[str | None, shown("NAMES", "all")] = None,
    query: Annotated[tuple[str, ...], shown("Y,X")] = (),
    heads: Annotated[str | None, shown("0,1,...", "the strongest of each layer")] = None,
    approximate: Annotated[METHODS | None, shown("METHOD")] = None,
    threshold: Annotated[float | None, shown("SCORE", "0.5")] = None,
    checkpoint: Annotated[str | None, shown("FILE | FOLDER | hf-hub:NAME", "published ones")] = None,
    weights: Literal["best", "last"] = "best",
    size: Annotated[int | None, shown("PIXELS", "the run's or the model's")] = None,
    device: Annotated[str | None, shown("cpu | cuda | cuda:1 | mps | xpu", "the best")] = None,
    max_pixels: Annotated[int | None, shown("N", "the run's")] = None,
) -> int:
    """Show what the lambda layers of a network look at, as one HTML page, a PNG sheet, or arrays.

    The output of a lambda layer at a position is a sum of the values at all positions; the map shows their
    weights, exactly: the printed error compares the sum with the layer's output. The page needs no network.

    Args:
        what: Folder of a run of any task, a trained network of this package, such as nuclei, or a
            classifier for ImageNet: a name in timm's registry or hf-hub:NAME.
        file: An image, a recording or a file of text, as the network reads it. Of a text the last window is
            explained.
        out: The file. html: a page on which the pointer chooses the position; png: a sheet for papers; npz:
            all arrays; json: sizes, errors, shares and reach.
        text: Language models: the text itself, in place of a file.
        layers: Names of layers, or patterns such as layer4.*, separated by commas.
        query: Positions of the sheet, and the first one of the page, as fractions of the input from 0 to 1:
            Y,X in an image, one number in a recording or a text.
        heads: Numbers of the heads on the sheet, from 0, separated by commas.
        approximate: Classifiers of images: add an attribution of the most probable class across all layers to
            the page, labelled approximate: gradients, integrated-gradients or occlusion. Needs captum.
        threshold: Detectors: least score of an object.
        checkpoint: Weights for a model.
        weights: Weights of the run's best epoch by validation, or of its last epoch.
        size: Classifiers of images: height and width of the image in the network.
        device: Device of the computation.
        max_pixels: Largest width times height of an image that is read.
    """
    from lambdanets.explaining.explanation import SUFFIXES

    source = "text" if file is None else file.stem
    target = out or Path(f"{source}.html")
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out ends in {', '.join(SUFFIXES)}; got {str(target)!r}.")
    check_outputs({"--out": target})
    options = _Options(target, _words(layers), _places(query), _numbers(heads))
    return run_verb(
        "explain", what, file, options, text=text, approximate=approximate, threshold=threshold,
        checkpoint=checkpoint, weights=weights, size=size, device=device, max_pixels=max_pixels,
    )  # fmt: skip


class _Options:
    """The options of all tasks.

    Args:
        out: The file.
        layers: Names or patterns, None for all.
        queries: Positions as fractions of the input.
        heads: Indices of the heads of a sheet, None for the strongest.
    """

    def __init__(
        self,
        out: Path,
        layers: list[str] | None,
        queries: list[tuple[float, ...]],
        heads: list[int] | None,
    ) -> None:
        self.out, self.layers, self.queries, self.heads = out, layers, queries, heads


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",")]


def _places(given: Sequence[str]) -> list[tuple[float, ...]]:
    places = []
    for text in given:
        try:
            place = tuple(float(number) for number in text.split(","))
        except ValueError:
            place = (-1.0,)
        if not all(0 <= fraction <= 1 for fraction in place):
            raise UsageError(f"--query takes fractions from 0 to 1 such as 0.5,0.3; got {text!r}.")
        places.append(place)
    return places


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--heads takes numbers from 0 such as 0,2; got {text!r}.")
    return [int(word) for word in words]


def _one_file(file: Path | None, noun: str) -> Path:
    """Return the input, or raise UsageError if it is missing or a folder."""
    if file is None:
        raise UsageError(f"name {noun} after the run.")
    if file.is_dir():
        raise UsageError(f"{file} is a folder: name {noun}.")
    return file


def explain_image(
    what: Path,
    file: Path | None,
    options: _Options,
    *,
    approximate: METHODS | None,
    checkpoint: str | None,
    weights: Literal["best", "last"],
    size: int | None,
    device: str | None,
    max_pixels: int | None,
) -> int:
    """Explain a classifier of images; the arguments are those of `lambdanets explain`."""
    import torch

    from lambdanets.data import eval_transform, read_image
    from lambdanets.evaluate.prediction import prepare_network
    from lambdanets.evaluate.target import is_run_folder, target_from_model, target_from_run
    from lambdanets.evaluate.test_sets import describe_classes
    from lambdanets.explaining import Scene, explain
    from lambdanets.explaining.scenes import as_picture
    from lambdanets.train import load_run

    image = _one_file(file, "an image")
    is_run = is_run_folder(str(what))
    if is_run and checkpoint is not None:
        raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
    if not is_run and weights != "best":
        raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
    if size is not None and size < 1:
        raise UsageError(f"--size must be at least 1, got {size}.")
    if approximate is not None and options.out.suffix.lower() != ".html":
        raise UsageError("--approximate is for the page: give --out a name that ends in .html.")
    on = chosen_device(device, PREDICT_DEVICES)
    if is_run:
        target = target_from_run(load_run(what), weights=weights)
    else:
        target = target_from_model(str(what), checkpoint=checkpoint)
        target = replace(target, classes=describe_classes(target.classes))
    target = target if size is None else target.at_size(size)
    limit = target.data.max_pixels if max_pixels is None else max_pixels
    x = eval_transform(target.data)(read_image(image, max_pixels=limit))[None]
    network, on = prepare_network(target.network, target.engine, on)
    scene = Scene(
        title=image.name,
        model=f"{target.name}, {target.weights}" + (f" of {what}" if is_run else ""),
        picture=as_picture(x[0], target.data.mean, target.data.std) if x.shape[1] in (1, 3) else None,
    )
    with usage():
        found = explain(network, x.to(on), options.layers, scene=scene)
    scores = found.output[0].float()
    probabilities = scores.sigmoid() if target.data.multi_label else scores.softmax(-1)
    scene.labels = _labels(probabilities, target.classes)
    if approximate is not None:
        from lambdanets.explaining.approximate import approximate as attribute

        with torch.enable_grad():
            best = int(probabilities.argmax())
            found.approximations.append(
                attribute(network, x.to(on), best, str(target.classes[best]), approximate)
            )
    return _write(found, options)


def explain_detection(
    what: Path,
    file: Path | None,
    options: _Options,
    *,
    threshold: float | None,
    weights: Literal["best", "last"],
    device: str | None,
    max_pixels: int | None,
) -> int:
    """Explain the backbone of a detector; the arguments are those of `lambdanets explain`."""
    import numpy as np
    import torch
    from torchvision import tv_tensors

    from lambdanets.data import read_image
    from lambdanets.data.coco.transforms import eval_transform_coco
    from lambdanets.detection import load_run
    from lambdanets.evaluate.prediction import prepare_network
    from lambdanets.explaining import Mark, Scene, explain
    from lambdanets.explaining.scenes import as_picture

    threshold = 0.5 if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is from 0 to 1; got {threshold:g}.")
    path = _one_file(file, "an image")
    on = chosen_device(device, PREDICT_DEVICES)
    opened = load_run(what)
    data = opened.config.data
    picture = read_image(path, max_pixels=data.max_pixels if max_pixels is None else max_pixels)
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    image = eval_transform_coco(data)(tv_tensors.Image(whole)).as_subclass(torch.Tensor)
    network, on = prepare_network(opened.model(weights), opened.config.engine, on)
    detector: Any = network
    scene = Scene(title=path.name, model=f"{opened.config.model.name} detector, {weights} weights of {what}")
    with usage():
        found = explain(detector, [image.to(on)], options.layers, scene=scene, forward=detector.regions)
    # The network pads the image at the right and at the bottom, and the grids of the layers with it.
    padded = detector.transform.batch_images([image.float()], detector.backbone.strides[-1])[0]
    scene.picture = as_picture(padded / 255 if image.dtype == torch.uint8 else padded, (0.0,) * 3, (1.0,) * 3)
    [regions] = found.output
    objects = zip(
        regions["boxes"].tolist(), regions["labels"].tolist(), regions["scores"].tolist(), strict=True
    )
    scene.marks = [
        Mark(str(opened.classes[label - 1]), tuple(box), score)
        for box, label, score in objects
        if score >= threshold
    ][:MAX_OBJECTS]
    return _write(found, options)


def explain_recording(
    what: Path,
    file: Path | None,
    options: _Options,
    *,
    weights: Literal["best", "last"],
    device: str | None,
) -> int:
    """Explain a classifier of recordings; the arguments are those of `lambdanets explain`."""
    from lambdanets.audio import load_run
    from lambdanets.data.audio.features import Features, middle, pad, part_length
    from lambdanets.data.audio.recordings import read_recording, require_packages
    from lambdanets.evaluate.prediction import prepare_network
    from lambdanets.explaining import Scene, explain
    from lambdanets.explaining.scenes import as_picture

    path = _one_file(file, "a recording")
    on = chosen_device(device, PREDICT_DEVICES)
    require_packages()
    opened = load_run(what)
    config = opened.config.data
    features = Features(config)
    samples = read_recording(path, features.rate, max_seconds=config.max_seconds)
    heard = middle(features(samples), part_length(config))
    network, on = prepare_network(opened.model(weights), opened.config.engine, on)
    scene = Scene(
        title=path.name,
        model=f"{opened.config.model.name}, {weights} weights of {what}",
        # Low frequencies at the bottom.
        picture=as_picture(heard.flip(0)[None]) if len(heard) > 1 else None,
        seconds=heard.shape[1] * features.hop / features.rate,
    )
    batch, mask = (each.to(on) for each in pad([heard]))
    with usage():
        found = explain(network, (batch, mask), options.layers, scene=scene)
    scene.labels = _labels(found.output[0].float().softmax(-1), opened.classes)
    return _write(found, options)


def explain_text(
    what: Path,
    file: Path | None,
    options: _Options,
    *,
    text: str | None,
    weights: Literal["best", "last"],
) -> int:
    """Explain a language model; the arguments are those of `lambdanets explain`."""
    import torch

    from lambdanets.data import Vocabulary
    from lambdanets.data.text.files import plain_text
    from lambdanets.explaining import Scene, explain
    from lambdanets.text import load_run
    from lambdanets.text.weights import open_network

    if (file is None) == (text is None):
        raise UsageError("name a file of text after the run, or give the text with --text, but not both.")
    opened = load_run(what)
    vocabulary = Vocabulary(opened.classes)
    content = (
        text
        if file is None
        else _one_file(file, "a file of text").read_text(encoding="utf-8", errors="replace")
    )
    encoded = vocabulary.encode(plain_text(0, content or ""))[-opened.config.data.context :]
    if not len(encoded):
        raise UsageError("the text is empty: there is no position to explain.")
    names = [vocabulary.decode([int(token)]) for token in encoded]
    network = open_network(opened, weights)
    tokens = torch.from_numpy(encoded.astype("int64"))[None].to(next(network.parameters()).device)
    scene = Scene(
        title="Text" if file is None else file.name,
        model=f"{opened.config.model.name}, {weights} weights of {what}",
        tokens=names,
    )
    with usage():
        found = explain(network, tokens, options.layers, scene=scene)
    shown_names = [
        f"next “{vocabulary.decode([index])}”".replace("\n", "↵") for index in range(len(vocabulary))
    ]
    scene.labels = _labels(found.output[0, -1].float().softmax(-1), shown_names)
    return _write(found, options)


def _labels(probabilities: Any, classes: Sequence[Any]) -> list[tuple[str, float]]:
    """Return the most probable classes with their probabilities."""
    values, indices = probabilities.topk(min(TOP, len(classes)))
    return [
        (str(classes[index]), value) for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _write(found: "Explanation", options: _Options) -> int:
    """Print a table of the layers, and write the file."""
    with usage():
        found.save(options.out, queries=options.queries, heads=options.heads)
    rows = table(layer="left", grid="right", heads="right", error="right", content="right", reach="right")
    for name, recorded in found.recorded.items():
        maps, reach = recorded.maps, recorded.maps.reach()
        share = float(recorded.shares.fraction.nanmean())
        rows.add_row(
            name, grid(maps.grid), str(maps.num_heads), f"{recorded.error:.1e}", f"{share:.1%}",
            "-" if reach is None else f"{reach.radius:.1f}",
        )  # fmt: skip
    console = stdout()
    draw(console, _heading(found.scene), rows)
    console.print(
        "error: relative, of the sum of the weights times the values from the layer's output; content: its "
        "share of the output's squared length; reach: radius in positions with 90 % of the table's magnitude",
        soft_wrap=True,
    )
    if found.error > 1e-3:
        stderr().print(f"lambdanets: the error is {found.error:.1e}: use float32 weights for exact maps.")
    print_files((f"{options.out.stat().st_size / 1e3:,.0f} kB", options.out))
    return 0


def _heading(scene: "Scene") -> str:
    best = f": {scene.labels[0][0]} {scene.labels[0][1]:.1%}" if scene.labels else ""
    if scene.marks:
        best = f": {len(scene.marks)} object{'s' * (len(scene.marks) != 1)}"
    return f"{scene.title}{best}, {scene.model}"
