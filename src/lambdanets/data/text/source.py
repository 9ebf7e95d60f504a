"""The source `text:`, which language models are trained on: it has a configuration of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DataConfig
from ..errors import DataError
from ..sources.protocol import ImageSplits, IndexedSource


class TextSource(IndexedSource):
    """Text, without images."""

    form = "text:PATH"
    help = "for language models: a file of text, or a folder of .txt and .md files"
    layout = "a file of text, or a folder of .txt and .md files"
    labelled_images = False

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        raise DataError(f"{self.text!r} is text, for a language model: train the recipe text.")
