"""Text of messages: lists of names, spelling suggestions, and names without terminal escapes."""

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

JOINERS = "\u200c\u200d\u00ad"  # parts of words in Persian and Hindi, and of emoji
SIMILAR = 0.55  # smallest similarity of a suggested name, as difflib's ratio from 0 to 1


def join_some(
    words: Iterable[str], most: int = 5, *, form: Callable[[str], str] = repr, separator: str = ", "
) -> str:
    """Join the first words of a list, followed by the number of those left out; "" for an empty list.

    Args:
        words: The list.
        most: Number of words to include.
        form: Converts each word; `repr` puts it in quotes.
        separator: Text between two words, such as ", " or a line break.

    Example:
        >>> join_some(["cat", "dog", "eel", "fox"], most=2)
        "'cat', 'dog' and 2 more"
    """
    every = list(words)
    named = separator.join(map(form, every[:most]))
    omitted = len(every) - most
    return f"{named}{separator.removeprefix(',')}and {omitted:,} more" if omitted > 0 else named


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests up to three similar names; "" where none is similar.

    Args:
        word: The name that is not known.
        known: The names that exist.

    Example:
        >>> did_you_mean("trian", ["train", "eval"])
        '; did you mean train?'
    """
    similar = difflib.get_close_matches(word, list(known), n=3, cutoff=SIMILAR)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message without its full stop, or the error's class if it is empty.

    Args:
        error: An error whose message may have many lines, such as one of PyTorch.
    """
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". ") if lines else "") or type(error).__name__


def json_text(plain: Any, *, indent: int | None = None) -> str:
    """Return JSON with non-ASCII letters unescaped, and bytes of file names that are not UTF-8 as `\\udcff`.

    The text can be encoded as UTF-8, and `json.loads` restores the names exactly.

    Args:
        plain: Dicts, lists, strings, numbers, bools and None.
        indent: Spaces per level; None writes one line.
    """
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """Escape the invisible characters of a text in Python's notation: `\\x1b`.

    These are control characters, such as terminal escapes and line breaks, marks that change the direction of
    the text around them, and the bytes of a file name that is not UTF-8 (lone surrogates).

    Args:
        text: Text from outside, such as the name of a file or a class.

    Example:
        >>> printable("cat\\x1b[2J")
        'cat\\\\x1b[2J'
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Escape invisible characters as `printable` does, except line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(letter: str) -> str:
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in JOINERS
    return letter.encode("unicode_escape").decode("ascii") if hidden else letter
