"""`lambdanets export`: a run or a model as one file, for torch.export or onnxruntime."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from lambdanets.cli.console import stderr, stdout
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import refuse, shown

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
    """Write a run or a model as one file that needs nothing of this package, and compare it with the network.

    The file holds the names of the classes and how images are prepared. That of a classifier takes any number
    of images, that of a detector one. It appears when it gives what the network gives.

    Args:
        what: The folder of a run, or a model: a name of timm's registry or ours, or hf-hub:NAME.
        format: A program of torch.export, or ONNX.
        out: The file; it may not exist yet. Its name ends in .pt2 or .onnx.
        weights: The best weights of a run by validation, or those of its last epoch.
        checkpoint: Weights for a model.
        size: Height and width of the images.
        dynamic_size: Take images of any height and width, where the network can; a fixed size is faster.
        batch_size: Take so many images at once and no others, of a classifier.
        opset: Version of ONNX's operators.
    """
    from lambdanets.exporting import FORMATS
    from lambdanets.train import export, load_run
    from lambdanets.train.config import stored_task
    from lambdanets.train.subject import names_run, trained_model

    format = format or _format_of(out)
    if names_run(what) and stored_task(Path(what)) == "detection":
        refuse({"--checkpoint": checkpoint, "--batch-size": batch_size}, "a classifier", Path(what))
        from lambdanets import detection

        file = out or Path(what) / f"network{FORMATS[format].SUFFIX}"
        found = detection.export(
            detection.load_run(what), file, format=format, weights=weights, size=size,
            dynamic_size=dynamic_size, opset=opset,
        )  # fmt: skip
        _say(found, f"{found.difference:.2g} in {found.objects} objects", f"{found.images} images")
        if not found.objects:
            stderr().print("lambdanets: nothing was found in these images: no boxes and masks were compared.")
        return 0
    if names_run(what):
        if checkpoint is not None:
            raise UsageError(f"--checkpoint goes with the name of a model; {what} is no such name.")
        source, unasked = load_run(what), Path(what) / "network"
    else:
        if weights != "best":
            raise UsageError("--weights chooses among those of a run; a model takes --checkpoint.")
        source, unasked = trained_model(what, checkpoint=checkpoint), Path(what.rpartition("/")[2])
    file = out or unasked.with_name(unasked.name + FORMATS[format].SUFFIX)
    made = export(
        source, file, format=format, weights=weights, size=size,
        dynamic_size=dynamic_size, batch_size=batch_size, opset=opset,
    )  # fmt: skip
    _say(made, f"{made.difference:.2g} in outputs up to {made.largest:.2g}", "random images")
    return 0


def _format_of(out: Path | None) -> Literal["torch", "onnx"]:
    """The format that the name of a file says."""
    from lambdanets.exporting import FORMATS

    for name in ("torch", "onnx"):
        if out is not None and out.suffix.lower() == FORMATS[name].SUFFIX:
            return name
    endings = " or ".join(each.SUFFIX for each in FORMATS.values())
    named = "" if out is None else f"; {out} ends in neither"
    raise UsageError(f"--format torch or onnx is missing, or an --out FILE that ends in {endings}{named}.")


def _say(made: "Exported", difference: str, images: str) -> None:
    """Print the file, what it takes, and how far it is from the network."""
    shapes = ", ".join(f"{name} {_axes(axes)}" for name, axes in made.inputs.items())
    tried = ", ".join(" and ".join(map(_axes, each)) for each in made.compared)
    console = stdout()
    console.print(f"{made.file}: {shapes}", soft_wrap=True)
    console.print(f"largest difference from the network: {difference} ({images}, {tried})", soft_wrap=True)


def _axes(sizes: tuple[int | str, ...]) -> str:
    return "x".join(map(str, sizes))
