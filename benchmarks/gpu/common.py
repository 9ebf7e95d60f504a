"""Shared by the scripts of this folder: options, missing packages, worker processes, optional figures."""

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
# The scripts measure the checkout that they belong to, whether or not it is installed.
FOLDERS = [str(ROOT / "src"), str(ROOT)]  # of the packages lambdanets and benchmarks
sys.path[:0] = FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*FOLDERS, os.environ.get("PYTHONPATH"))))

MINUTES = 8.0
FAILURE, USAGE = 1, 2  # exit statuses
LOST = 9  # of a worker whose GPU no longer answers; pytest does not use it


class Parser(argparse.ArgumentParser):
    """The options that every script has.

    Args:
        words: The script's docstring.
        drawn: Metavariable of `--draw`.
    """

    def __init__(self, words: str | None, drawn: str) -> None:
        super().__init__(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        self.add_argument("--quick", action="store_true", help="tiny sizes, to see whether the script works")
        self.add_argument("--out", type=Path, help="the folder of all files (default: runs/gpu-...)")
        self.add_argument("--commit", help="of a copy of a checkout that has no history")
        self.add_argument("--draw", type=Path, metavar=drawn, help="run nothing; draw from these rows again")


def begin(words: argparse.Namespace, *, needed: Sequence[str], wanted: dict[str, str]) -> None:
    """Report missing packages, and exit where a needed one or the device is missing.

    Args:
        words: The parsed options.
        needed: Modules that the script requires.
        wanted: Optional modules, with a line on the results that lack them.

    Raises:
        SystemExit: With 2; a needed module or the device is missing.
    """
    for name, loss in wanted.items():
        if find_spec(name) is None:
            print(f"without {name}: {loss}", flush=True)
    if missing := [name for name in needed if find_spec(name) is None]:
        stop(
            f"this needs {', '.join(missing)}; benchmarks/gpu/README.md describes how to bring packages along"
        )
    if words.commit:
        os.environ["LAMBDANETS_COMMIT"] = words.commit
    if words.draw is None and words.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            stop("there is no CUDA device here; --device cpu --quick shows whether the script works")


def add_worker(parser: Parser, unit: str) -> None:
    """Add the options of a script that works in processes of its own; see `in_workers`."""
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"no {unit} begins later")
    parser.add_argument("--resume", action="store_true", help="go on with the rows in the folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def in_workers(script: str, minutes: float, resume: bool, *options: str) -> int:
    """Do the work of a script in a process of its own, and return its exit status.

    After some errors on a GPU a process can no longer use it: another process then goes on with the rest. A
    contender that has failed has a row and is not run again.

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
    """Rename the rows of an earlier run."""
    if path.exists():
        path.replace(path.with_suffix(".previous.csv"))


def drawn(draw: Callable[[Path], None], path: Path) -> list[str]:
    """Draw from a file of rows, if it exists, and return errors, which cost nothing else."""
    try:
        if path.exists():
            draw(path)
    except Exception as error:
        return [f"{path}: neither report nor figures: {type(error).__name__}: {error}"]
    return []


def memory_too(words: argparse.Namespace) -> bool:
    """Return whether peaks are measured: on a CPU each takes seconds in a process of its own."""
    return words.device == "cuda" or not words.quick


def stop(sentence: str) -> NoReturn:
    """Print a sentence and raise SystemExit with 2."""
    print(sentence, file=sys.stderr)
    raise SystemExit(USAGE)


def figures(draw: Callable[[], list[Path]]) -> list[str]:
    """Return the names of the PNGs that were drawn, none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    return [path.name for path in draw() if path.suffix == ".png"]
