"""Errors and warnings of `lambdanets.data`."""

from __future__ import annotations

from collections.abc import Sequence

from lambdanets.utils.text import join_some, printable_lines


class DataError(ValueError):
    """A source cannot be used; the message says why, and often what to do.

    When a worker of a loader raises, torch raises the same type in the main process, with the worker's whole
    traceback as its message. This class takes the original message out of that text, so that `str(error)` is
    the same in every process.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rpartition("DataError: ")[2].strip()
        super().__init__(printable_lines(message))


class DataWarning(UserWarning):
    """Images were left out or replaced, or a part of the configuration has no effect."""


class SourceWarning(DataWarning):
    """A warning on opening a source, which every rank raises with the same message; only rank 0 prints it."""


MAX_LISTED = 5  # most sentences that `listing` shows in a message


def listing(sentences: Sequence[str]) -> str:
    """Return the first few sentences, each on its own line, and the number of the others."""
    return "\n  " + join_some(sentences, MAX_LISTED, form=str, separator="\n  ")
