"""What the files of all formats say of a network beside its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class ExportError(ValueError):
    """A network cannot be exported, or not as it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What goes in and comes out.

    Attributes:
        inputs: The name of each input, in order, with its axes of any size: axis -> name.
        outputs: The name of each output, in order.
        facts: What whoever runs the file has to know, by name; JSON.
    """

    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
