"""The command `lambdanets`: finds the verb and runs it, and turns what goes wrong into a sentence."""

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

import torch

from lambdanets.cli.errors import EXIT_OF_SIGNAL, FAILURE, USAGE, UsageError, check_name, sentence
from lambdanets.cli.verbs import MOVED, SECOND, VERBS, help_for, prepare_streams, silence
from lambdanets.processes import listened_signals
from lambdanets.wording import printable_lines

FIRST_SPEAKS = 2.0  # seconds
PRINTING = ("lambdanets.cli.", "rich.", "tyro.")  # modules that print results

_received: list[int] = []
_formatted = warnings.formatwarning


def main(argv: Sequence[str] | None = None, run: Callable[[list[str]], int] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: The words after `lambdanets`; those of the process when not given.
        run: Runs the words of another program; the verbs of `lambdanets` when None.

    Returns:
        0 done, 1 failed, 2 the command is wrong, 130 stopped by Ctrl-C, 128 + n by another signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with_traceback = words[:1] == ["--traceback"]
    if with_traceback:
        words.pop(0)
    _received.clear()
    prepare_streams()
    previous = {number: signal.signal(number, _stop) for number in listened_signals()}
    warnings.formatwarning = _warning
    # The reader has a limit of its own, data.max_pixels; Pillow calls half of it an attack.
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
        said = None if with_traceback else sentence(error)
        if said is None:
            raise
        _print_error(said, error)
        # Training that was asked to stop brings its own code.
        return USAGE if isinstance(error, UsageError) else getattr(error, "exit_code", FAILURE)
    finally:
        warnings.formatwarning = _formatted
        for number, handler in previous.items():
            signal.signal(number, handler)


def _failed_stdout(error: OSError) -> bool:
    """Whether stdout is what could not be written to; then nothing is flushed to it at exit either."""
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
    """Return the number of this process among those of a launcher."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0"


def _print_error(said: str, error: Exception) -> None:
    rank = _rank()
    if rank != "0" and getattr(error, "on_all_ranks", False):
        # The first process says it. Launchers end all processes when one has failed: it gets the time to.
        time.sleep(FIRST_SPEAKS)
        return
    process = "" if rank == "0" else f" (process {rank})"
    try:
        print(f"lambdanets{process}: {printable_lines(said)}", file=sys.stderr, flush=True)
    except OSError:
        # The terminal is gone; what is left in the buffer must not fail again at exit, and change its code.
        for stream in (sys.stdout, sys.stderr):
            silence(stream)


def _run(words: list[str]) -> int:
    if (text := help_for(words)) is not None:
        print(text)
        return 0
    if words[0] in ("--version", "-V"):
        import lambdanets

        print(f"lambdanets {lambdanets.__version__}, torch {torch.__version__}")
        return 0
    verb, *options = words
    check_name("verb", verb, VERBS)
    place, prog = VERBS[verb][0], f"lambdanets {verb}"
    if seconds := SECOND.get(verb):
        name = options.pop(0)
        if command := MOVED.get(verb, {}).get(name):
            raise UsageError(
                f"`lambdanets {verb} {name}` is no longer part of the package: "
                f"run `{command}` in a checkout of the repository."
            )
        check_name(verb, name, seconds)
        place, prog = seconds[name][0], f"{prog} {name}"
    module, _, function = place.partition(":")
    called = getattr(importlib.import_module(f"lambdanets.cli.{module}"), function or "run")
    from lambdanets.cli.options import parse

    return parse(called, prog=prog, words=options)()


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return our own warnings as their sentence alone; where they were raised means nothing to the person."""
    if category.__module__.startswith("lambdanets."):
        once = category.__name__ == "SourceWarning" and _rank() != "0"
        return "" if once else f"lambdanets: {printable_lines(str(message))}\n"
    return _formatted(message, category, filename, lineno, line)


def _stop(number: int, frame: FrameType | None) -> None:
    if multiprocessing.parent_process() is not None:
        # A forked data-loading worker has inherited this handler and has nothing to tidy up.
        os._exit(EXIT_OF_SIGNAL[number])
    _received.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_OF_SIGNAL[number])


def _exit_code(stop: SystemExit | KeyboardInterrupt) -> int:
    # The signal decides: Lightning turns Ctrl-C into a plain exit(1).
    if _received:
        return EXIT_OF_SIGNAL[_received[0]]
    if isinstance(stop, KeyboardInterrupt):
        return EXIT_OF_SIGNAL[signal.SIGINT]
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
