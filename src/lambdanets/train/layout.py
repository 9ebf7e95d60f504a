"""Names of the files of a run folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The paths inside a run folder; nothing stored in it depends on where it lies."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Locked by the process that trains; removed at the end."""
        return self.directory / ".lock"

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    @property
    def classes(self) -> Path:
        return self.directory / "classes.json"

    @property
    def skipped(self) -> Path:
        """What was left out of the images or annotations, one sentence a line; not there if nothing was."""
        return self.directory / "skipped.txt"

    @property
    def image_sizes(self) -> Path:
        """How large the images were that a detector was trained on."""
        return self.directory / "image_sizes.json"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.directory / "tensorboard"

    @property
    def curves(self) -> Path:
        return self.directory / "curves.png"

    @property
    def confusion(self) -> Path:
        return self.directory / "confusion.png"

    @property
    def sheet(self) -> Path:
        """Of a detector: images with what is there beside what was found."""
        return self.directory / "sheet.png"

    @property
    def precision_recall(self) -> Path:
        return self.directory / "precision_recall.png"

    @property
    def found(self) -> Path:
        """What a detector found in the best validation, in COCO's results format."""
        return self.directory / "results"

    @property
    def per_class(self) -> Path:
        return self.directory / "classes.csv"

    @property
    def weights(self) -> Path:
        return self.directory / "weights.safetensors"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.txt"

    @property
    def last(self) -> Path:
        return self.directory / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.directory / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        return self.directory / "checkpoints" / "best.ckpt"

    @property
    def nonfinite(self) -> Path:
        """Where a step whose loss was NaN or infinite is written down."""
        return self.directory / "nonfinite"

    @property
    def checkpoints(self) -> list[Path]:
        """Where to continue from, the newest first."""
        return [self.last, self.previous, self.best]

    @property
    def results(self) -> list[Path]:
        """What training has left so far, damaged checkpoints that were set aside included."""
        files = [self.metrics, self.weights, *sorted(self.last.parent.glob("*.ckpt*"))]
        return [file for file in files if file.exists()]
