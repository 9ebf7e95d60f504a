"""How sentences for people name many things: the first few, and how many more there are."""

from collections.abc import Callable, Iterable


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
