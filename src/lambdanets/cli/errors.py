"""What a person reads when something is wrong: one sentence and an exit code, never a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lambdanets.processes import STOP_SIGNALS

FAILURE, USAGE = 1, 2
EXIT_OF_SIGNAL: dict[int, int] = {number: 128 + number for number in STOP_SIGNALS}  # as shells do

EXTRA = 'pip install "lambdanets[train]"'


class UsageError(ValueError):
    """The command itself is wrong, for all processes that got it: exit code 2."""

    everywhere = True


@contextmanager
def usage() -> Iterator[None]:
    """Mark every ValueError of the enclosed lines as a mistake in the command."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest known names, or "" when none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.55)
    if not near:
        return ""
    return f"; did you mean {' or '.join(near)}?"


def check_name(kind: str, word: str, known: Iterable[str]) -> None:
    """Raise UsageError, with the nearest names or with all of them, unless the word is one of them.

    Args:
        kind: What the word should be, for the sentence ("recipe").
        word: What was typed.
        known: The names that exist.

    Raises:
        UsageError: The word is not known.
    """
    names = list(known)
    if word not in names:
        hint = suggestion(word, names) or f"; there are {', '.join(names)}"
        raise UsageError(f"there is no {kind} {word!r}{hint}")


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return the sentence for an optional dependency that is not installed."""
    return f"this command needs {error.name}, which is not installed: {EXTRA}"
