"""What the scripts of this folder share: their options, what is missing here, and figures that may wait."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# The checkout that the scripts belong to is what they measure, whether or not it is installed.
sys.path.insert(0, str(ROOT / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))

MINUTES = 8.0
FAILURE, USAGE = 1, 2


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
