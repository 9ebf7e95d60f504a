"""What the data room raises and warns about."""

from __future__ import annotations

from collections.abc import Sequence

from lambdanets.utils.text import join_some, printable_lines


class DataError(ValueError):
    """A source that cannot be used as it stands, told in one clear message.

    Torch carries an exception out of a loader's worker by raising the same type again around the worker's
    whole traceback; this class takes its own message back out of that text, so that `str(error)` is the same
    clear message wherever the error began.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rpartition("DataError: ")[2].strip()
        super().__init__(printable_lines(message))


class DataWarning(UserWarning):
    """Images were left out or replaced, or a promise of the room does not hold for this source."""


class SourceWarning(DataWarning):
    """What every process of a run finds alike when it opens a source, so that one of them says it."""


LISTED = 5  # sentences of one kind that a message has in full


def listing(sentences: Sequence[str]) -> str:
    """Return the first few sentences, each on a line of its own, and how many more there are."""
    return "\n  " + join_some(sentences, LISTED, form=str, separator="\n  ")
