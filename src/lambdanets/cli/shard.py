"""`lambdanets shard`: packs the images of a source into tar archives, which `--data tar:FOLDER` reads."""

from pathlib import Path
from typing import Annotated

from tyro import conf

from lambdanets.cli.console import stdout
from lambdanets.cli.errors import usage
from lambdanets.cli.options import shown


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
    """Pack images into shards in WebDataset's format: few large files instead of many small ones.

    Image files are copied unchanged, in random order; the same seed gives the same bytes. The folder also has
    the names of the classes and an index. Other programs read the shards with the package webdataset, timm as
    wds/.

    Args:
        source: Data source: folder:PATH, tar:PATH, digits, torch/NAME or hfds/NAME.
        out: Folder to create.
        images: Largest number of images in a shard.
        megabytes: Largest size of a shard; a larger image has a shard of its own.
        seed: Seed of the order, and of the split if the source has none.
        train_split: Name of the training split of a torch/ or hfds/ source.
        val_split: Name of its validation split; "" splits the training images.
    """
    from lambdanets.data import DataConfig, write_shards

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
