"""ImageNet-C: its folders, and the mean corruption error.

References: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, section 4.1; AlexNet's errors are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lambdanets.data import DataError

SEVERITIES = (1, 2, 3, 4, 5)
ALEXNET = {  # top-1 errors, each the mean over the five severities
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # meant for tuning, not part of the mean


@dataclass(frozen=True, kw_only=True)
class CorruptionError:
    """The error under one corruption.

    Attributes:
        name: Name of the corruption.
        severities: The measured severities.
        error: Top-1 error as a fraction, the mean over these severities.
    """

    name: str
    severities: tuple[int, ...]
    error: float

    @property
    def normalised(self) -> float | None:
        """The error divided by AlexNet's mean error; None unless all five severities were measured."""
        return self.error / ALEXNET[self.name] if self.severities == SEVERITIES else None


def corruption_errors(errors: Mapping[tuple[str, int], float]) -> tuple[CorruptionError, ...]:
    """Return the mean errors of the corruptions, in the paper's order.

    Args:
        errors: Top-1 error, as a fraction, of each measured (corruption, severity).
    """
    found = []
    for name in ALEXNET:
        levels = tuple(level for level in SEVERITIES if (name, level) in errors)
        if levels:
            mean = sum(errors[name, level] for level in levels) / len(levels)
            found.append(CorruptionError(name=name, severities=levels, error=mean))
    return tuple(found)


def mean_corruption_error(errors: tuple[CorruptionError, ...]) -> float | None:
    """Return the mean of the normalised errors (1.0 is AlexNet's); None unless all 15 are complete."""
    values = [each.normalised for each in errors]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(ALEXNET) else None


def find_corruptions(root: Path) -> dict[tuple[str, int], Path]:
    """Return the folders of ImageNet-C by (corruption, severity), in the paper's order.

    Args:
        root: Folder of CORRUPTION/SEVERITY/CLASS/, or of noise/CORRUPTION/SEVERITY/CLASS/ as in the archives.

    Raises:
        DataError: There is no corruption, or a folder is no corruption or severity.
    """
    by_name: dict[str, Path] = {}
    for folder in _folders(root):
        inside = [each for each in _folders(folder) if each.name in (*ALEXNET, *EXTRA)]
        if folder.name not in (*ALEXNET, *EXTRA) and not inside:
            raise DataError(f"{folder} is no corruption of ImageNet-C, which are {', '.join(ALEXNET)}.")
        by_name |= {each.name: each for each in (folder, *inside)}
    found: dict[tuple[str, int], Path] = {}
    for name in ALEXNET:
        for folder in _folders(by_name[name]) if name in by_name else ():
            if folder.name not in map(str, SEVERITIES):
                raise DataError(f"{folder} is no severity of ImageNet-C, which are folders 1 to 5.")
            found[name, int(folder.name)] = folder
    if not found:
        raise DataError(f"{root} holds no corruption of ImageNet-C, as {root}/fog/3/n01440764/ would be.")
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
