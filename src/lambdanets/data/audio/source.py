"""The source `audio:`, which has a configuration of its own, `AudioDataConfig`."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DataConfig
from ..errors import DataError
from ..sources.protocol import ImageSplits, IndexedSource
from .config import FORM


class AudioSource(IndexedSource):
    """Recordings in class folders."""

    form = FORM
    layout = (
        "a folder with train/ and val/ that each hold one folder of recordings per class, or a folder with "
        "one folder per class, which is split"
    )
    labelled_images = False
    help = "recordings: .wav, .flac or .ogg files in folders as for folder: (pip install 'lambdanets[audio]')"

    def open(self, config: DataConfig, *, seed: int, classes: Sequence[str] | None = None) -> ImageSplits:
        raise DataError(f"{self.text!r} holds recordings, not images: train the recipe audio.")
