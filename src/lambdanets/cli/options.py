"""Options of a verb: parsed by tyro from the signature of its function, checked, and written."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro import conf

from lambdanets.cli.errors import UsageError
from lambdanets.utils.files import replacing
from lambdanets.utils.text import did_you_mean, json_text

if TYPE_CHECKING:
    import torch

    from lambdanets.data import AudioDataConfig, CocoConfig, DataConfig, TextDataConfig

# Value that an option takes -> Python's message for another one.
NUMBERS = {
    "a whole number": r"invalid literal for int\(\) with base 10:",
    "a number": "could not convert string to float:",
}

# Option of other programs -> field of the configuration.
FIELD_ALIASES = {
    "learning_rate": "optimizer.lr",
    "device": "engine.accelerator",
    "gpus": "engine.devices",
    "size": "data.image_size",
    "img_size": "data.image_size",
    "imgsz": "data.image_size",
    "num_workers": "data.workers",
    "wd": "optimizer.weight_decay",
}
CHOSEN_DEVICE = (
    "; an accelerator is used where there is one, and CUDA_VISIBLE_DEVICES= before the command hides NVIDIA's"
)

MAX_INTEGER = 2**63  # PyTorch and NumPy have integers of 64 bits

DtypeName = Literal["float32", "float64", "bfloat16", "float16"]
# A flag that is true unless --no-NAME is given; its help describes --no-NAME.
Without = Annotated[bool, conf.arg(help_behavior_hint="")]
Device = Annotated[str, conf.arg(metavar="cpu | cuda")]
EVAL_DEVICES = ("cpu", "cuda", "mps")  # of Lightning, which eval runs in
PREDICT_DEVICES = (*EVAL_DEVICES, "xpu")


def shown(metavar: str, default: str | None = None) -> Any:
    """Return how the help shows an option.

    Args:
        metavar: Form of its value.
        default: Description of the default, where the parameter's own is None.
    """
    return conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


def engine_changes(precision: str | None, memory_format: str | None) -> dict[str, Any]:
    """Return the fields of a run's engine that the options --precision and --memory-format replace."""
    changes: dict[str, Any] = {} if precision is None else {"precision": precision}
    if memory_format is not None:
        changes["channels_last"] = memory_format == "channels-last"
    return changes


def resolved_location(
    config: "DataConfig | CocoConfig | AudioDataConfig | TextDataConfig",
) -> tuple[str, Path]:
    """Return the kind of a data source and its resolved path."""
    kind, _, root = config.resolved().source.partition(":")
    return kind, Path(root).resolve()


def check_images(paths: Sequence[Path], samples: int | None) -> None:
    """Raise UsageError unless either images or samples of the validation set were named."""
    if bool(paths) == (samples is not None):
        raise UsageError(
            "name images or folders, or take images of the validation set with --samples 20, but not both."
        )


def check_suffix(option: str, file: Path | None, *suffixes: str) -> None:
    """Raise UsageError if the name of a file that an option names has another ending."""
    if file is not None and file.suffix.lower() not in suffixes:
        kinds = " or ".join({".png": "PNG image", ".csv": "CSV file"}[each] for each in suffixes)
        raise UsageError(
            f"{option} is a {kinds}, whose name ends in {' or '.join(suffixes)}; got {str(file)!r}."
        )


def check_outputs(files: dict[str, Path | None]) -> None:
    """Raise UsageError, before long work, if a file that an option names could not be written."""
    for option, file in files.items():
        if file is None:
            continue
        if file.is_dir():
            raise UsageError(f"{option} is a file, and {file} is a folder.")
        if file.exists():
            if not os.access(file, os.W_OK):
                raise UsageError(f"{option} {file} cannot be written: the file exists and is read-only.")
            continue
        folder = next(each for each in file.absolute().parents if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"{option} {file} cannot be written: {folder} is not a writable folder.")


def check_distinct(files: dict[str, Path | None]) -> None:
    """Raise UsageError if two options name the same file."""
    first: dict[Path, str] = {}
    for option, file in files.items():
        if file is not None and (other := first.setdefault(file.absolute(), option)) != option:
            raise UsageError(f"{other} and {option} name the same file {file}; give each its own.")


def default_output(run: str | Path, name: str) -> Path:
    """Return the default file of results: in the folder of a run, or in the working directory as RUN-NAME.

    The latter holds for trained networks in the package, to whose folders nothing is written.
    """
    from lambdanets.models.shipped import FOLDER

    folder = Path(run)
    is_own = (folder / "config.json").is_file() and folder.resolve().parent != FOLDER.resolve()
    return folder / name if is_own else Path(f"{folder.name}-{name}")


def write_json(file: Path, plain: Any) -> None:
    """Write a JSON file, whole or not at all; its folder is created.

    Args:
        file: The file.
        plain: Its content, as `json_text` takes it.

    Raises:
        OSError: It cannot be written; the error has its name.
    """
    text = json_text(plain, indent=1) + "\n"
    if file.exists() and not file.is_file():  # such as /dev/stdout
        file.write_text(text, encoding="utf-8")
        return
    with replacing(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def check_device(device: str, kinds: Sequence[str] = ("cpu", "cuda")) -> None:
    """Raise UsageError if a name is not a device of some kinds, or the device is not available."""
    import torch

    try:
        named = torch.device(device)
    except RuntimeError:
        *others, last = kinds
        raise UsageError(f"--device takes {', '.join(others)} or {last}, not {device!r}.") from None
    if named.type == "cpu" and "cpu" in kinds:
        return
    module: Any = getattr(torch, named.type, None)
    if named.type not in kinds or module is None or not module.is_available():
        raise UsageError(f"there is no {named.type} device here.")
    if named.index is not None and named.index >= module.device_count():
        last_index = module.device_count() - 1
        raise UsageError(f"there is no device {device} here; the last one is {named.type}:{last_index}.")


def chosen_device(device: str | None, kinds: Sequence[str]) -> "torch.device | None":
    """Return the device, of one of some kinds, that --device names; None if the option was not given.

    Raises:
        UsageError: There is no such device.
    """
    if device is None:
        return None
    import torch

    check_device(device, kinds)
    return torch.device(device)


def read_sizes(option: str, text: str) -> tuple[int, ...]:
    """Parse sizes such as 64x64.

    Raises:
        UsageError: The text is not a list of sizes, or a size is zero.
    """
    words = text.lower().split("x")
    if not all(re.fullmatch("[0-9]{1,18}", word) and int(word) > 0 for word in words):
        raise UsageError(f"{option} takes sizes such as 64 or 64x64, not {text!r}.")
    return tuple(map(int, words))


def parse(verb: Callable[..., int], *, prog: str, words: Sequence[str]) -> Callable[[], int]:
    """Parse the options of a verb and return the call without making it.

    Parsing and running are separate so that only an error in parsing counts as wrong usage.

    Args:
        verb: A function whose typed signature and docstring describe its options.
        prog: The words before the options, for help and errors.
        words: The words after the verb.

    Returns:
        The verb with its arguments bound.

    Raises:
        UsageError: An option is unknown, or a value is missing or invalid.
        SystemExit: With code 0, after `--help`.
    """

    @wraps(verb)
    def bind(*args: object, **options: object) -> Callable[[], int]:
        for name, value in options.items():
            if isinstance(value, int) and abs(value) >= MAX_INTEGER:
                raise UsageError(f"{option_flag(name)} takes numbers below 2**63; got {value}.")
        return lambda: verb(*args, **options)

    _check_flags(words, verb, prog)
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            call, unknown = tyro.cli(
                bind, prog=prog, args=words, return_unknown_args=True, config=(conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if stop.code:
            raise UsageError(f"{_sentence(stderr.getvalue())}; see {prog} --help") from None
        raise
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}; see {prog} --help")
    return call


def _check_flags(words: Sequence[str], verb: Callable[..., int], prog: str) -> None:
    """Raise UsageError for an unknown option, before tyro would report the correct one as missing."""
    known = ["--help", *_options(verb)]
    for word in takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag.replace("--no-", "--") not in known:
            hint = _alternative(flag, known) or did_you_mean(flag, known[1:]) or f"; see {prog} --help"
            raise UsageError(f"there is no option {flag!r}{hint}")


def _alternative(flag: str, known: Sequence[str]) -> str:
    """Return the end of a message: the option to use instead of one that a verb does not have, or ""."""
    name = flag.removeprefix("--").replace("-", "_")
    if "--set" in known:
        from lambdanets.recipes import get_recipe
        from lambdanets.train.serialization import flatten

        leaves = {path.rpartition(".")[2]: path for path in flatten(get_recipe("digits"))}
        if path := FIELD_ALIASES.get(name) or leaves.get(name):
            return f"; it is a field of the configuration: --set {path}=VALUE"
    if name not in ("device", "devices", "gpu", "gpus", "cuda"):
        return ""
    return "; the device is chosen by --device cuda" if "--device" in known else CHOSEN_DEVICE


def _options(verb: Callable[..., int]) -> Iterator[str]:
    """Yield the options of a verb: its parameters, and the fields of parameters that are dataclasses."""
    for name, kind in get_type_hints(verb, include_extras=True).items():
        if is_dataclass(plain := get_args(kind)[0] if get_origin(kind) is Annotated else kind):
            yield from (option_flag(field.name) for field in fields(plain))
        elif name != "return" and conf.Positional not in getattr(kind, "__metadata__", ()):
            yield option_flag(name)


def option_flag(name: str) -> str:
    """Return the option of a parameter: --batch-size of batch_size."""
    # The parameter of an option that is a Python keyword ends in an underscore: from_ is --from.
    return "--" + name.rstrip("_").replace("_", "-")


def _sentence(box: str) -> str:
    """Return the first message in tyro's error box as one clause.

    The box is drawn with lines that hold its title if the encoding allows; otherwise lines of dashes separate
    the title from the messages.
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
    # None is the default of an option, and no word for it.
    text = " ".join(first).rstrip(".")
    text = re.sub(r"(?<=\()'None', |, 'None'(?=[,)])", "", text)
    if option := re.match(r"Error parsing (--[\w-]+):", text):
        for what, pattern in NUMBERS.items():
            if found := re.search(pattern + " ('.*?'|\".*?\")", text):
                return f"{option[1]} takes {what}; got {found[1]}"
    return text[:1].lower() + text[1:]
