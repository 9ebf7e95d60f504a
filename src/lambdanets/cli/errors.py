"""Errors as the user sees them: one sentence and an exit code instead of a traceback."""

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lambdanets.utils.processes import STOP_SIGNALS, lost_worker
from lambdanets.utils.text import did_you_mean, first_line

FAILURE, USAGE = 1, 2
EXIT_OF_SIGNAL: dict[int, int] = {number: 128 + number for number in STOP_SIGNALS}  # as shells do

EXTRAS = {  # extra of the package -> modules that it installs; all others are in "train"
    "detection": ("pycocotools",),
    "audio": ("soundfile", "torchaudio"),
    "explain": ("captum",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "bench": ("lambda_networks",),
}
CONTEXT = 40  # characters that are shown on each side of an undecodable one


class UsageError(ValueError):
    """The command line is wrong, in all processes of a launch: exit code 2."""

    on_all_ranks = True


@contextmanager
def usage() -> Iterator[None]:
    """Turn every ValueError of the block into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def as_usage_error(what: str) -> Iterator[None]:
    """Raise UsageError if the network of a command cannot be built, or run on the meta device.

    Args:
        what: The start of the message.
    """
    try:
        yield
    except NotImplementedError:
        return  # an operator without a meta implementation is no mistake in the command
    except (TypeError, AssertionError, RuntimeError, OverflowError) as error:
        raise UsageError(f"{what}: {' '.join(first_line(error).split())}.") from error


def check_name(kind: str, word: str, known: Iterable[str]) -> None:
    """Raise UsageError if a name is not known; the message lists similar names, or all of them.

    Args:
        kind: Kind of the name, such as "recipe".
        word: The name on the command line.
        known: The names that exist.

    Raises:
        UsageError: The name is not known.
    """
    names = list(known)
    if word not in names:
        hint = did_you_mean(word, names) or f"; there are {', '.join(names)}"
        raise UsageError(f"there is no {kind} {word!r}{hint}")


def explain(error: Exception) -> str | None:
    """Return the message to print for an error, or None for an unexpected one, which needs its traceback.

    Args:
        error: An error that a verb raised.
    """
    if isinstance(error, ModuleNotFoundError):
        ours = error.name is None or error.name.startswith("lambdanets")
        return None if ours else missing_extra(error)
    # The errors of training explain it themselves.
    if not type(error).__module__.startswith("lambdanets.") and (lost := lost_worker(error)) is not None:
        return (
            f"a process that reads images was lost ({lost}), probably because memory or shared memory "
            "(/dev/shm) ran out; try fewer workers."
        )
    if type(error) is MemoryError and str(error):  # of the planner or a layer; NumPy's has a subclass
        return str(error)
    # By name: this module must not import torch.
    if (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
    ):
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        size = f": {int(asked[1]) / 2**30:,.1f} GiB were needed" if asked else ""
        return f"out of memory{size}; try a smaller --batch-size, smaller images or a smaller model."
    if isinstance(error, UnicodeError):
        return _explain_unicode(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or _innermost_function(error)}: {error.strerror}."
    # The errors that this package raises itself are ValueErrors or have classes of its own.
    if isinstance(error, ValueError | OSError) or type(error).__module__.startswith("lambdanets."):
        return str(error)
    return None


def _innermost_function(error: Exception) -> str:
    """Return the innermost function of this package that an error came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f"{frame.f_globals['__name__']}.{frame.f_code.co_name}" for frame in frames]
    ours = [name for name in names if name.startswith("lambdanets.")]
    return ours[-1] if ours else "lambdanets"


def _explain_unicode(error: UnicodeError) -> str:
    """Return which text could not be encoded or decoded; the message of the error itself omits it."""
    if not isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return str(error)
    part: str | bytes = error.object[max(0, error.start - CONTEXT) : error.end + CONTEXT]
    what = "text that cannot be written as" if isinstance(error, UnicodeEncodeError) else "bytes that are not"
    return f"{what} {error.encoding}: {part!r}; rename the file, class or setting, or save its text as UTF-8."


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return the message for an optional dependency that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in EXTRAS.items() if module in modules), "train")
    return f'this command needs {module}, which is not installed: pip install "lambdanets[{extra}]"'
