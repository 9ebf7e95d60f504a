"""The configuration of text for language models: its source, its tokens, and the windows of training."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from ..config import _check, _is_fraction

TEXT_SOURCES = "text:FILE or text:FOLDER"
MAX_CONTEXT = 2**24  # tokens


@dataclass(frozen=True, kw_only=True)
class TextDataConfig:
    """The source of a text, and its form as the input of a language model.

    Each line end is read as one line feed, so that "\\r\\n" of Windows adds no token, and a byte order mark
    at the start of a file is left out.

    Args:
        source: "text:FILE", or "text:FOLDER" with files .txt and .md, which are joined in the order of their
            paths. A folder with train/ and val/ (or validation/, valid/, test/) is split already.
        tokens: "characters" (Unicode code points of UTF-8 text), "bytes" (256 tokens, for any file), or
            "auto", which takes characters if the text has at most 256 different ones, else bytes.
        context: tokens of a window, which the model predicts from those before them in the window.
        batch_size: windows in a step of one process.
        windows: windows of an epoch, over all processes; None takes those of one pass over the training text.
            Each pass has the disjoint windows of the text in random order, and begins where the epoch before
            it ended, so that an epoch of fewer or more windows than a pass has neither gaps nor repetitions.
        val_fraction: fraction of a text that is not split already, at its end, that is held out; 1.0 holds
            out everything, to evaluate.
    """

    source: str
    tokens: Literal["auto", "characters", "bytes"] = "auto"
    context: int = 256
    batch_size: int = 16
    windows: int | None = None
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        kind, _, root = str(self.source).partition(":")
        _check(kind == "text" and bool(root), "data.source", TEXT_SOURCES, self.source)
        kinds = ("auto", "characters", "bytes")
        _check(self.tokens in kinds, "data.tokens", f"one of {', '.join(kinds)}", self.tokens)
        for name in ("context", "batch_size", "windows"):
            value = getattr(self, name)
            valid = (value is None and name == "windows") or (isinstance(value, int) and value >= 1)
            _check(valid, f"data.{name}", "1 or more", value)
        _check(self.context <= MAX_CONTEXT, "data.context", f"at most {MAX_CONTEXT:,}", self.context)
        valid = _is_fraction(self.val_fraction) and self.val_fraction > 0
        _check(valid, "data.val_fraction", "above 0 and at most 1", self.val_fraction)

    @property
    def workers(self) -> int:
        """Processes that read data: none, as windows are copied from tokens in memory or a mapped file."""
        return 0

    @property
    def root(self) -> str:
        """The file or folder."""
        return self.source.partition(":")[2]

    def resolved(self) -> TextDataConfig:
        """Return the same configuration with an absolute path, which is valid in any working directory."""
        return replace(self, source=f"text:{os.path.abspath(os.path.expanduser(self.root))}")

    def without_paths(self) -> TextDataConfig:
        """Return the same configuration without the path of the text."""
        return replace(self, source="text:.")
