"""Options of a verb, read by tyro from the signature of its function."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import torch
import tyro
from tyro import conf

from lambdanets.cli.errors import UsageError, suggestion

if TYPE_CHECKING:
    from lambdanets.data import CocoConfig, DataConfig

# What Python says of a word that is no number -> what an option takes instead.
NUMBERS = {
    "a whole number": r"invalid literal for int\(\) with base 10:",
    "a number": "could not convert string to float:",
}

DtypeName = Literal["float32", "float64", "bfloat16", "float16"]
Device = Annotated[str, conf.arg(metavar="cpu | cuda")]


def shown(metavar: str, default: str | None = None) -> Any:
    """Return how an option looks in the help: its value, and its default where "None" would say nothing."""
    return conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


def refuse(options: dict[str, Any], what: str, run: Path) -> None:
    """Raise UsageError where an option was given that is not for this run but for another kind."""
    if given := [name for name, value in options.items() if value is not None and value is not False]:
        raise UsageError(f"{given[0]} is for runs of {what}; {run} is none.")


def place(config: "DataConfig | CocoConfig") -> tuple[str, Path]:
    """Return the kind of a source of images and where it is, however its path is written."""
    kind, _, root = config.resolved().source.partition(":")
    return kind, Path(root).resolve()


def check_outputs(files: dict[str, Path | None]) -> None:
    """Raise UsageError, before long work, where a file that an option names could not be written."""
    for option, file in files.items():
        if file is None:
            continue
        if file.is_dir():
            raise UsageError(f"{option} is a file, and {file} is a folder.")
        if file.exists():
            if not os.access(file, os.W_OK):
                raise UsageError(f"{option} {file} cannot be written: it is there and may not be changed.")
            continue
        folder = next(each for each in file.absolute().parents if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(
                f"{option} {file} cannot be written: {folder} is no folder that can be written to."
            )


def check_device(device: str) -> None:
    """Raise UsageError where a device is not here, or not one."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"--device takes cpu or cuda, not {device!r}.") from None
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise UsageError(f"there is no {kind} device here.")


def read_sizes(option: str, text: str) -> tuple[int, ...]:
    """Return the sizes that a word such as 64x64 names.

    Raises:
        UsageError: The word is something else, or a size is zero.
    """
    words = text.lower().split("x")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{option} takes sizes such as 64 or 64x64, not {text!r}.")
    return tuple(map(int, words))


def parse(verb: Callable[..., int], *, prog: str, words: Sequence[str]) -> Callable[[], int]:
    """Read the options of a verb and return the call, not yet made.

    Parsing and running are apart so that only a mistake in the words counts as wrong usage.

    Args:
        verb: A function whose typed signature and docstring describe its options.
        prog: The words before the options, for help and errors.
        words: The words after the verb.

    Returns:
        The verb with its arguments bound.

    Raises:
        UsageError: An unknown option, a missing or impossible value; one sentence.
        SystemExit: With 0, after `--help` was answered.
    """

    @wraps(verb)
    def bind(*args: object, **options: object) -> Callable[[], int]:
        return lambda: verb(*args, **options)

    _check_flags(words, verb, prog)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            call, unknown = tyro.cli(
                bind, prog=prog, args=words, return_unknown_args=True, config=(conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if stop.code:
            raise UsageError(f"{_sentence(complaint.getvalue())}; see {prog} --help") from None
        raise
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}; see {prog} --help")
    return call


def _check_flags(words: Sequence[str], verb: Callable[..., int], prog: str) -> None:
    """A misspelt option comes first: the complaint that the right one is missing would mislead."""
    # An option named by a word of Python has a parameter that ends in an underscore: from_ is --from.
    names = [name.rstrip("_").replace("_", "-") for name in _parameters(verb)]
    known = ["--help", *(f"--{name}" for name in names)]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag.replace("--no-", "--") not in known:
            hint = suggestion(flag, known) or f"; see {prog} --help"
            raise UsageError(f"there is no option {flag!r}{hint}")


def _parameters(verb: Callable[..., int]) -> Iterator[str]:
    """Yield the names of a verb's options: its parameters, and the fields of those that are dataclasses."""
    for name, kind in get_type_hints(verb).items():
        if is_dataclass(kind):
            yield from (field.name for field in fields(kind))
        elif name != "return":
            yield name


def _sentence(box: str) -> str:
    """Return what tyro's error box says first, as one clause.

    The box is drawn around it where the terminal can, with the title in its edge; else there are lines of
    dashes, and the title is a part of its own.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│| ")
        if re.fullmatch("[─-]+", text):
            parts.append([])
        elif text and text[0] not in "╭╰":
            parts[-1].append(text)
    first = parts[0] if "╭" in box else parts[min(1, len(parts) - 1)]
    if first[0].startswith("Missing from") and len(first) > 1:
        return f"{first[1].split()[0]} is missing"
    text = " ".join(first).rstrip(".")
    if option := re.match(r"Error parsing (--[\w-]+):", text):
        for what, complaint in NUMBERS.items():
            if found := re.search(complaint + " ('.*?'|\".*?\")", text):
                return f"{option[1]} takes {what}; got {found[1]}"
    return text[:1].lower() + text[1:]
