"""`lambdanets export`: a run or a model as one file, for torch.export or onnxruntime."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import stderr, stdout
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import default_output, shown
from lambdanets.cli.tasks import run_verb

if TYPE_CHECKING:
    from lambdanets.exporting import Exported


def run(
    what: Annotated[str, conf.Positional, shown("RUN | MODEL")],
    *,
    format: Annotated[Literal["torch", "onnx"] | None, shown("torch | onnx", "by the name of --out")] = None,
    out: Annotated[
        Path | None, shown("FILE.pt2 | FILE.onnx", "network.pt2 or .onnx in the run, or MODEL.pt2")
    ] = None,
    weights: Literal["best", "last"] = "best",
    checkpoint: Annotated[str | None, shown("FILE | FOLDER | hf-hub:NAME", "published ones")] = None,
    size: Annotated[int | None, shown("PIXELS", "the run's or the model's")] = None,
    dynamic_size: bool = False,
    batch_size: Annotated[int | None, shown("N", "any")] = None,
    opset: Annotated[int | None, shown("N", "PyTorch's")] = None,
) -> int:
    """Write a run or a model as one file that runs without this package, and compare it with the network.

    The file holds the names of the classes and how images are prepared. A classifier's file takes any number
    of images, a detector's file one. A language model's file is one step: it takes tokens and a state, and
    returns the logits of the next tokens and the next state. The file is written only if its outputs agree
    with the network's.

    Args:
        what: The folder of a run, or a model: a name of timm's registry or ours, or hf-hub:NAME.
        format: A program of torch.export, or ONNX.
        out: The file; it may not exist yet. Its name ends in .pt2 or .onnx.
        weights: The best weights of a run by validation, or those of its last epoch.
        checkpoint: Weights for a model.
        size: Height and width of the images.
        dynamic_size: Take images of any height and width, where the network can; a fixed size is faster.
        batch_size: A fixed number of images, recordings or texts in a batch.
        opset: Version of ONNX's operators.
    """
    return run_verb(
        "export", what, format=format or _format_of(out), out=out, weights=weights, checkpoint=checkpoint,
        size=size, dynamic_size=dynamic_size, batch_size=batch_size, opset=opset,
    )  # fmt: skip


def write_classifier(
    what: str,
    *,
    format: Literal["torch", "onnx"],
    out: Path | None,
    weights: Literal["best", "last"],
    checkpoint: str | None,
    size: int | None,
    dynamic_size: bool,
    batch_size: int | None,
    opset: int | None,
) -> int:
    """Export a classifier; the arguments are those of `lambdanets export`."""
    from lambdanets.evaluate.target import create_trained_model, is_run_folder
    from lambdanets.exporting import FORMATS, export_classifier
    from lambdanets.train import load_run

    if is_run_folder(what):
        if checkpoint is not None:
            raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
        source, default = load_run(what), Path(what) / "network"
    else:
        if weights != "best":
            raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
        source, default = (
            create_trained_model(what, checkpoint=checkpoint),
            Path(what.rstrip("/").rpartition("/")[2]),
        )
    file = out or default.with_name(default.name + FORMATS[format].SUFFIX)
    classifier = export_classifier(
        source, file, format=format, weights=weights, size=size,
        dynamic_size=dynamic_size, batch_size=batch_size, opset=opset,
    )  # fmt: skip
    difference = f"{classifier.difference:.2g} in outputs up to {classifier.largest:.2g}"
    print_exported(classifier, difference, "random images")
    return 0


def write_detector(
    what: str,
    *,
    format: Literal["torch", "onnx"],
    out: Path | None,
    weights: Literal["best", "last"],
    size: int | None,
    dynamic_size: bool,
    opset: int | None,
) -> int:
    """Export a detector; the arguments are those of `lambdanets export`."""
    from lambdanets import detection
    from lambdanets.exporting import FORMATS, export_detector

    detector = export_detector(
        detection.load_run(what), out or default_output(what, f"network{FORMATS[format].SUFFIX}"),
        format=format, weights=weights, size=size, dynamic_size=dynamic_size, opset=opset,
    )  # fmt: skip
    difference = f"{detector.difference:.2g} in {detector.objects} objects"
    print_exported(detector, difference, f"{detector.images} images")
    if not detector.objects:
        stderr().print("lambdanets: nothing was found in these images: no boxes and masks were compared.")
    return 0


def _format_of(out: Path | None) -> Literal["torch", "onnx"]:
    """Return the format of a file by the ending of its name."""
    from lambdanets.exporting import FORMATS

    for name in ("torch", "onnx"):
        if out is not None and out.suffix.lower() == FORMATS[name].SUFFIX:
            return name
    endings = " or ".join(each.SUFFIX for each in FORMATS.values())
    named = "" if out is None else f"; {out} ends in neither"
    raise UsageError(f"--format torch or onnx is missing, or an --out FILE that ends in {endings}{named}.")


def print_exported(exported: "Exported", difference: str, images: str) -> None:
    """Print the file, the shapes of its inputs, and its difference from the network."""
    shapes = ", ".join(f"{name} {_axes(axes)}" for name, axes in exported.inputs.items())
    compared = ", ".join(" and ".join(map(_axes, each)) for each in exported.compared)
    console = stdout()
    console.print(f"{exported.file}: {shapes}", soft_wrap=True)
    console.print(f"largest difference from the network: {difference} ({images}, {compared})", soft_wrap=True)


def _axes(sizes: tuple[int | str, ...]) -> str:
    return "x".join(map(str, sizes))
