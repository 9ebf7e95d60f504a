"""`lambdanets shard`: any source packed into tar archives, which `--data tar:FOLDER` reads."""

from pathlib import Path
from typing import Annotated

from tyro import conf

from lambdanets.cli.console import stdout
from lambdanets.cli.errors import usage
from lambdanets.cli.options import shown
from lambdanets.data import DataConfig, write_shards


def run(
    source: Annotated[str, conf.Positional, shown("SOURCE")],
    *,
    out: Annotated[Path, shown("FOLDER")],
    images: int = 10_000,
    megabytes: Annotated[int | None, shown("N", "no limit")] = None,
    seed: int = 0,
    train_split: str = "train",
    val_split: str = "validation",
) -> int:
    """Pack images into shards of WebDataset: few large files instead of many small ones.

    Image files are copied as they are, in random order; the same seed gives the same bytes. Beside the shards
    lie the names of the classes and an index. Other programs read them with the package webdataset, and timm
    as wds/.

    Args:
        source: Images: folder:PATH, tar:PATH, digits, torch/NAME or hfds/NAME.
        out: The folder to make.
        images: Images in a shard, at most.
        megabytes: Size of a shard, at most; an image that is larger has one of its own.
        seed: Of the order, and of the split where the source has none.
        train_split: The name of the training images of a source of timm.
        val_split: The name of its validation images; "" splits the training images.
    """
    with usage():
        if images < 1:
            raise ValueError(f"--images must be 1 or more, got {images}.")
        if megabytes is not None and megabytes < 1:
            raise ValueError(f"--megabytes must be 1 or more, got {megabytes}.")
        config = DataConfig(source=source, train_split=train_split, val_split=val_split)
    written = write_shards(config, out, images=images, megabytes=megabytes, seed=seed)
    for side, number in written.images.items():
        shards = written.shards[side]
        stdout().print(f"{side}: {number:,} images in {shards} shard{'s' * (shards != 1)}")
    stdout().print(f"{len(written.classes)} classes; read them with --data tar:{out}", soft_wrap=True)
    return 0
