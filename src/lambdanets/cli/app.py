"""The command `lambdanets`: runs a verb, and prints an error as one sentence with an exit code."""

import importlib
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType

from lambdanets.cli.errors import EXIT_OF_SIGNAL, FAILURE, USAGE, UsageError, check_name, explain
from lambdanets.cli.verbs import MOVED, SUBVERBS, VERBS, help_for, prepare_streams, silence
from lambdanets.utils.allocator import keep_freed_memory
from lambdanets.utils.processes import listened_signals
from lambdanets.utils.text import printable_lines

FIRST_RANK_SECONDS = 2.0  # the first process prints an error before the others end
RUNNING_NETWORKS = (
    "train",
    "eval",
    "predict",
    "explain",
    "generate",
    "pseudo-label",
)  # verbs that run a network on many batches
PRINTING = ("lambdanets.cli.", "rich.", "tyro.")  # modules that print results

_received: list[int] = []
_default_format = warnings.formatwarning


def main(argv: Sequence[str] | None = None, run: Callable[[list[str]], int] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: The words after `lambdanets`; those of the process when not given.
        run: Runs the words of another program; None runs the verbs of `lambdanets`.

    Returns:
        0 success, 1 failure, 2 wrong usage, 130 stopped by Ctrl-C, 128 + n stopped by signal n.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with_traceback = words[:1] == ["--traceback"]
    if with_traceback:
        words.pop(0)
    _received.clear()
    prepare_streams()
    previous = {number: signal.signal(number, _stop) for number in listened_signals()}
    warnings.formatwarning = _warning
    # The package has its own limit, data.max_pixels; Pillow warns of an attack at half of it.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", module="PIL")
    try:
        try:
            code = (run or _run)(words)
        except (SystemExit, KeyboardInterrupt) as stop:
            code = _exit_code(stop)
        sys.stdout.flush()
        return code
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is None and _failed_stdout(error):
            if isinstance(error, BrokenPipeError):
                return 0  # `lambdanets list | head` is no failure
            error.filename = "standard output"
        message = None if with_traceback else explain(error)
        if message is None:
            raise
        _print_error(message, error)
        # Interrupted training has an exit code of its own.
        return USAGE if isinstance(error, UsageError) else getattr(error, "exit_code", FAILURE)
    finally:
        warnings.formatwarning = _default_format
        for number, handler in previous.items():
            signal.signal(number, handler)


def _failed_stdout(error: OSError) -> bool:
    """Return whether an error came from writing to stdout; if so, discard all further output to it."""
    try:
        sys.stdout.flush()
        # Where Python buffers nothing, the error came from printing: the verbs open no files themselves.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(PRINTING):
            return False
    except io.UnsupportedOperation:  # no file of the system, as in a notebook
        return False
    except OSError:
        pass
    silence(sys.stdout)
    return True


def _rank() -> str:
    """Return the rank of this process, as its launcher set it."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0"


def _print_error(message: str, error: Exception) -> None:
    rank = _rank()
    if rank != "0" and getattr(error, "on_all_ranks", False):
        # Rank 0 prints the same error, and needs time for it: launchers end all processes when one fails.
        time.sleep(FIRST_RANK_SECONDS)
        return
    process = "" if rank == "0" else f" (process {rank})"
    try:
        print(f"lambdanets{process}: {printable_lines(message)}", file=sys.stderr, flush=True)
    except OSError:
        # The terminal is gone: a failing flush of the buffers at exit would change the exit code.
        for stream in (sys.stdout, sys.stderr):
            silence(stream)


def _run(words: list[str]) -> int:
    if (text := help_for(words)) is not None:
        print(text)
        return 0
    if words[0] in ("--version", "-V"):
        import torch

        import lambdanets

        print(f"lambdanets {lambdanets.__version__}, torch {torch.__version__}")
        return 0
    if words[0] == "--print-completion":
        from lambdanets.cli.completion import SHELLS, completion_script

        if len(words) != 2:
            raise UsageError(f"--print-completion takes a shell: {', '.join(SHELLS)}.")
        print(completion_script(words[1]), end="")
        return 0
    verb, *options = words
    check_name("verb", verb, VERBS)
    module, prog = verb.replace("-", "_"), f"lambdanets {verb}"
    if seconds := SUBVERBS.get(verb):
        name = options.pop(0)
        if command := MOVED.get(verb, {}).get(name):
            raise UsageError(
                f"`lambdanets {verb} {name}` is no longer part of the package: "
                f"run `{command}` in a checkout of the repository."
            )
        check_name(verb, name, seconds)
        module, prog = f"{module}_{name}", f"{prog} {name}"
    if verb in RUNNING_NETWORKS:
        keep_freed_memory()
    imported = importlib.import_module(f"lambdanets.cli.{module}")
    called, help_more = imported.run, getattr(imported, "help_more", None)
    from lambdanets.cli.options import parse

    try:
        call = parse(called, prog=prog, words=options)
    except SystemExit:
        if help_more is not None:
            help_more(options)
        raise
    return call()


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format the warnings of this package without file and line, which mean nothing to a user."""
    if category.__module__.startswith("lambdanets."):
        once = category.__name__ == "SourceWarning" and _rank() != "0"
        return "" if once else f"lambdanets: {printable_lines(str(message))}\n"
    return _default_format(message, category, filename, lineno, line)


def _stop(number: int, frame: FrameType | None) -> None:
    if multiprocessing.parent_process() is not None:
        # A forked data-loading worker has inherited this handler and has nothing to clean up.
        os._exit(EXIT_OF_SIGNAL[number])
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_OF_SIGNAL[number])


def _exit_code(stop: SystemExit | KeyboardInterrupt) -> int:
    # The signal takes precedence: Lightning turns Ctrl-C into a plain exit(1).
    if _received:
        return EXIT_OF_SIGNAL[_received[0]]
    if isinstance(stop, KeyboardInterrupt):
        return EXIT_OF_SIGNAL[signal.SIGINT]
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
