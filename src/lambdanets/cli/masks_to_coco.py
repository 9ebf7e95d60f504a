"""`lambdanets masks-to-coco`: a folder of mask images as a COCO json, which `--data coco:FILE.json` reads."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro import conf

from lambdanets.cli.console import stdout
from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import shown


def run(
    folder: Annotated[Path, conf.Positional, shown("FOLDER")],
    *,
    out: Annotated[Path, shown("FILE.json")],
    classes: Annotated[tuple[str, ...], shown("NAME ...", "object")] = ("object",),
    ignore: Annotated[str | None, shown("VALUE | none")] = None,
    threshold: Annotated[int | None, shown("VALUE")] = None,
    split: Literal["auto", "on", "off"] = "auto",
) -> int:
    """Write the masks of a folder as a COCO json for the training of a detector.

    The folder holds images/NAME.jpg with masks/NAME.png, whose values number the objects and are 0 elsewhere;
    or a folder for each image, with the image in images/ and a PNG for each object in masks/. With several
    classes, masks/ holds a folder for each, of its name, with the same inside. Masks may be TIFF, too.

    Args:
        folder: Images and masks.
        out: The file to write. The images stay where they are: put it into the folder or its annotations/.
        classes: Names of the classes.
        ignore: A value of the masks that is background as 0 is, such as 255, the border of objects in Pascal
            VOC; none where every value is an object.
        threshold: For masks with smoothed edges: pixels of this value or more are one object.
        split: Make an object of each connected part of a value: auto if the masks are binary, all with the
            same single value, such as 0 and 255.
    """
    if ignore not in (None, "none") and not str(ignore).isdecimal():
        raise UsageError(f"--ignore is a value of the masks, such as 255, or none; got {ignore!r}.")
    values = None if ignore is None else () if ignore == "none" else (int(ignore),)
    from lambdanets.data import masks_to_coco

    written = masks_to_coco(
        folder,
        out,
        classes=classes,
        ignore=values,
        threshold=threshold,
        split={"auto": None, "on": True, "off": False}[split],
    )
    stdout().print(f"{written.images:,} images with {written.objects:,} objects")
    if written.split:
        reason = "the masks hold one value besides 0: " if split == "auto" else ""
        number = f"{written.split:,} mask{'s' * (written.split != 1)}"
        stdout().print(
            f"{reason}each connected part of {number} became an object, so that cells that touch are one; "
            "--split off makes one object of a mask",
            soft_wrap=True,
        )
    found = out.resolve().parent in (folder.resolve(), folder.resolve() / "annotations")
    options = ["--data", f"coco:{out}", *([] if found else ["--set", f"data.images={folder}"])]
    stdout().print(f"train on them with {shlex.join(options)}", soft_wrap=True)
    return 0
