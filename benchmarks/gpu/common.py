"""What the scripts of this folder share: their options, what is missing here, and figures that may wait."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# The checkout that the scripts belong to is what they measure, whether or not it is installed.
PLACES = [str(ROOT / "src"), str(ROOT)]  # of the packages lambdanets and benchmarks
sys.path[:0] = PLACES
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*PLACES, os.environ.get("PYTHONPATH"))))

MINUTES = 8.0
FAILURE, USAGE = 1, 2  # exit statuses
LOST = 9  # of a worker whose GPU answers no more; pytest has none like it


class Parser(argparse.ArgumentParser):
    """The options that every script has.

    Args:
        words: The script's docstring.
        drawn: What `--draw` takes.
    """

    def __init__(self, words: str | None, drawn: str) -> None:
        super().__init__(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        self.add_argument("--quick", action="store_true", help="tiny sizes, to see whether the script works")
        self.add_argument("--out", type=Path, help="the folder of what is written (default: runs/gpu-...)")
        self.add_argument("--commit", help="of a copy of a checkout that has no history")
        self.add_argument("--draw", type=Path, metavar=drawn, help="run nothing; draw from these rows again")


def begin(words: argparse.Namespace, *, needed: Sequence[str], wanted: dict[str, str]) -> None:
    """Say what is missing here, and stop where nothing can be done without it.

    Args:
        words: What was typed.
        needed: Modules without which nothing runs.
        wanted: Modules that something is left out without, and what.

    Raises:
        SystemExit: With 2; a needed module or the device is not here.
    """
    for name, loss in wanted.items():
        if find_spec(name) is None:
            print(f"without {name}: {loss}", flush=True)
    if missing := [name for name in needed if find_spec(name) is None]:
        stop(f"this needs {', '.join(missing)}; benchmarks/gpu/README.md says how to bring packages along")
    if words.commit:
        os.environ["LAMBDANETS_COMMIT"] = words.commit
    if words.draw is None and words.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            stop("there is no CUDA device here; --device cpu --quick shows whether the script works")


def add_worker(parser: Parser, what: str) -> None:
    """Add the options of a script whose work is done in processes of its own; see `in_workers`."""
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"no {what} begins later")
    parser.add_argument("--resume", action="store_true", help="go on with the rows in the folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def in_workers(script: str, minutes: float, resume: bool, *options: str) -> int:
    """Do the work of a script in a process of its own, and return its exit status.

    An error of what runs on a GPU can leave this process without one: then another process goes on with what
    is left. Who has failed has a row and is not asked again.

    Args:
        script: The script, which is run with the same options and `--worker`.
        minutes: For all of these processes together.
        resume: Whether the first of them goes on as well.
        options: More of them.
    """
    ends = time.monotonic() + 60 * minutes
    while True:
        left = max(0.0, (ends - time.monotonic()) / 60)
        words = [sys.executable, script, *sys.argv[1:], *options, "--worker", "--minutes", f"{left:.4f}"]
        code = subprocess.run([*words, *(["--resume"] if resume else [])], check=False).returncode
        if code != LOST or time.monotonic() > ends:
            return code
        print("the GPU was lost; another process goes on", file=sys.stderr, flush=True)
        resume = True


def put_aside(path: Path) -> None:
    """Keep the rows of an earlier run beside those of the one that begins."""
    if path.exists():
        path.replace(path.with_suffix(".previous.csv"))


def drawn(draw: Callable[[Path], None], path: Path) -> list[str]:
    """Draw from rows, where there are any, and return what went wrong: nothing else is lost by it."""
    try:
        if path.exists():
            draw(path)
    except Exception as error:
        return [f"{path}: neither report nor figures: {type(error).__name__}: {error}"]
    return []


def memory_too(words: argparse.Namespace) -> bool:
    """Whether peaks of memory are measured: on a processor each needs a process of its own, for seconds."""
    return words.device == "cuda" or not words.quick


def stop(sentence: str) -> NoReturn:
    """Raise SystemExit with 2, after a sentence."""
    print(sentence, file=sys.stderr)
    raise SystemExit(USAGE)


def figures(draw: Callable[[], list[Path]]) -> list[str]:
    """Return the names of the PNGs that were drawn, none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    return [path.name for path in draw() if path.suffix == ".png"]
