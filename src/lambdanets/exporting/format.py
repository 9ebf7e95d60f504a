"""The interface of a file format: check the options, write a traced program, load it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch.export import ExportedProgram


class ExportError(ValueError):
    """A network cannot be exported, or not with the given options."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs, outputs and metadata of an exported network.

    Attributes:
        inputs: The name of each tensor of the inputs, in order, with its dynamic axes: axis -> name.
        outputs: The name of each output, in order.
        metadata: Information for users of the file, by name, each entry in JSON.
    """

    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Format(Protocol):
    """A file format; each is a module with these members."""

    @property
    def SUFFIX(self) -> str:
        """Ending of the file's name."""
        ...

    def check(self, opset: int | None) -> None:
        """Raise ExportError if a package is missing or `opset` cannot be written."""
        ...

    def write(self, program: ExportedProgram, file: Path, signature: Signature, opset: int | None) -> None:
        """Write a traced program as one file, weights and metadata included."""
        ...

    def load(self, file: Path, signature: Signature) -> Callable[..., object]:
        """Return the file as a function of tensors on the CPU."""
        ...
