"""Names in sentences for people: the first few of many, and none that changes the terminal."""

import json
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

JOINERS = "\u200c\u200d\u00ad"  # parts of words in Persian and Hindi, and of emoji


def few(
    words: Iterable[str], most: int = 5, *, form: Callable[[str], str] = repr, separator: str = ", "
) -> str:
    """Return the first words, at most so many, and how many more there are; "" where there are none.

    Args:
        words: all of them.
        most: how many are named.
        form: how a word is written; `repr` puts it in quotes.
        separator: what stands between them: ", ", or a new line.

    Example:
        >>> few(["cat", "dog", "eel", "fox"], most=2)
        "'cat', 'dog' and 2 more"
    """
    every = list(words)
    named = separator.join(map(form, every[:most]))
    left = len(every) - most
    return f"{named}{separator.removeprefix(',')}and {left:,} more" if left > 0 else named


def json_text(plain: Any, *, indent: int | None = None) -> str:
    """Return JSON with letters as they are, and the bytes of names that are not UTF-8 escaped: `\\udcff`.

    Python reads these back as they were, and the text can be written as UTF-8.

    Args:
        plain: dicts, lists, strings, numbers, bools and None.
        indent: spaces of a level; None writes one line.
    """
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """Escape the characters of a text that are no letters to look at, as Python writes them: `\\x1b`.

    These are control characters, among them terminal escapes and line breaks, marks that change the direction
    of the text around them, and the bytes of a file name that is not UTF-8 (lone surrogates).

    Args:
        text: a name of a file or a class, or any other text from outside.

    Example:
        >>> printable("cat\\x1b[2J")
        'cat\\\\x1b[2J'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """Escape characters as `printable` does, and leave line breaks as they are."""
    return "\n".join(map(printable, text.split("\n")))


def _shown(letter: str) -> str:
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in JOINERS
    return letter.encode("unicode_escape").decode("ascii") if hidden else letter
