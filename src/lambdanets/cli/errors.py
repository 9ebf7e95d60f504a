"""What a person reads when something is wrong: one sentence and an exit code, never a traceback."""

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from lambdanets.processes import STOP_SIGNALS, lost_worker
from lambdanets.wording import did_you_mean, first_line

FAILURE, USAGE = 1, 2
EXIT_OF_SIGNAL: dict[int, int] = {number: 128 + number for number in STOP_SIGNALS}  # as shells do

EXTRAS = {  # what the others bring than "train"
    "detection": ("pycocotools",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "bench": ("lambda_networks",),
}
AROUND = 40  # letters that are shown on each side of what is no text


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


@contextmanager
def impossible(what: str) -> Iterator[None]:
    """Raise UsageError where a network cannot be built, or run without memory, as the command asks.

    Args:
        what: What cannot be done, for the sentence.
    """
    try:
        yield
    except NotImplementedError:
        return  # an operator that cannot run without memory says nothing about the command
    except (TypeError, AssertionError, RuntimeError, OverflowError) as error:
        raise UsageError(f"{what}: {' '.join(first_line(error).split())}.") from error


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
        hint = did_you_mean(word, names) or f"; there are {', '.join(names)}"
        raise UsageError(f"there is no {kind} {word!r}{hint}")


def sentence(error: Exception) -> str | None:
    """Return what to print of an error, or None where it is a mistake of this package.

    Args:
        error: What a verb raised.
    """
    if isinstance(error, ModuleNotFoundError):
        ours = error.name is None or error.name.startswith("lambdanets")
        return None if ours else missing_extra(error)
    # Training has a sentence of its own.
    if not type(error).__module__.startswith("lambdanets.") and (lost := lost_worker(error)) is not None:
        return (
            f"a process that reads images was lost ({lost}), probably for want of memory or of shared memory "
            "(/dev/shm); try fewer workers."
        )
    if type(error) is MemoryError and str(error):  # of the planner or a layer; NumPy's is a class of its own
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        size = f": {int(asked[1]) / 2**30:,.1f} GiB were needed" if asked else ""
        return f"out of memory{size}; try a smaller --batch-size, smaller images or a smaller model."
    if isinstance(error, UnicodeError):
        return _no_text(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or _step(error)}: {error.strerror}."
    # Every mistake that this package foresees is a ValueError or an error class of its own.
    if isinstance(error, ValueError | OSError) or type(error).__module__.startswith("lambdanets."):
        return str(error)
    return None


def _step(error: Exception) -> str:
    """Return the innermost function of this package that an error came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f"{frame.f_globals['__name__']}.{frame.f_code.co_name}" for frame in frames]
    ours = [name for name in names if name.startswith("lambdanets.")]
    return ours[-1] if ours else "lambdanets"


def _no_text(error: UnicodeError) -> str:
    """What a codec could not read or write, which its own sentence leaves out."""
    if not isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return str(error)
    part: str | bytes = error.object[max(0, error.start - AROUND) : error.end + AROUND]
    what = "text that cannot be written as" if isinstance(error, UnicodeEncodeError) else "bytes that are not"
    return f"{what} {error.encoding}: {part!r}; rename the file, class or setting, or save its text as UTF-8."


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return the sentence for an optional dependency that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in EXTRAS.items() if module in modules), "train")
    return f'this command needs {module}, which is not installed: pip install "lambdanets[{extra}]"'
