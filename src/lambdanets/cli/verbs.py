"""The verbs and the help of the command line; nothing beyond Python is imported, for speed."""

import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

# Verb -> its module in lambdanets.cli and its line of help. A module is imported only when its verb is asked
# for: `list` must not wait for Lightning.
VERBS: dict[str, tuple[str, str]] = {
    "train": ("training", "train a recipe, on its own data or on a folder of photos; continue a run"),
    "eval": (
        "evaluating",
        "measure a run or a model on validation images or ImageNet's test sets",
    ),
    "predict": ("predicting", "label photos with a run, or draw the objects that a detector finds in them"),
    "pseudo-label": ("labelling", "let a run label images, to train another on them"),
    "masks-to-coco": ("converting", "write a folder of mask images as a COCO json, to train a detector on"),
    "export": ("exporting", "write a run or a model as one file, for torch.export or onnxruntime"),
    "shard": ("sharding", "pack images into tar archives, to train on with --data tar:FOLDER"),
    "list": ("listing", "models, recipes and data sources"),
    "show": ("showing", "one model: stages, parameters, MACs, the kernel of every lambda layer"),
    "plan": ("planning", "which kernel serves a problem, and why not the others"),
    "bench": ("", "measure the layer and whole networks against others: time, memory, figures"),
}
# The verbs of two words: what follows the first, its module and its function, `run` if none is named.
SECOND: dict[str, dict[str, tuple[str, str]]] = {
    "bench": {
        "op": ("bench_op", "the layer and its kernels against other implementations"),
        "models": ("bench_models", "any networks of timm's registry and of ours"),
    },
}
# Verbs of two words that are now programs of the repository, in its folder benchmarks: what to run there.
MOVED: dict[str, dict[str, str]] = {
    "bench": {
        **{name: f"python -m benchmarks.paper {name}" for name in ("race", "table4", "table13", "table14")},
        "study": "python -m benchmarks.study",
    },
}

EXAMPLES = """\
examples
  lambdanets train digits
  lambdanets train folder --data folder:/data/birds --model lambda_resnet50 --set optimizer.lr=0.1
  lambdanets train coco --data coco:/data/coco --model lambda_resnet50 --batch-size 2
  lambdanets train --resume runs/2026-11-22-143000-digits
  lambdanets eval runs/2026-11-22-143000-digits
  lambdanets eval lambda_resnet26t --data folder:/data/imagenet --size 288 --csv results.csv
  lambdanets predict runs/2026-11-22-143000-digits photo.jpg holidays/
  lambdanets pseudo-label runs/teacher --data folder:/data/photos --out labels.csv --threshold 0.8
  lambdanets export runs/2026-11-22-143000-digits --format onnx --out digits.onnx
  lambdanets shard folder:/data/imagenet --out /data/imagenet-shards
  lambdanets list 'lambda*'
  lambdanets show lambda_resnet152 --size 256
  lambdanets plan --grid 64x64 --heads 4 --dim-k 16 --dim-v 64 --batch 8 --train
  lambdanets bench op --cases g7,g14 --pass train
  lambdanets bench models --models lambda_resnet50,efficientnet_b1 --sizes 160,240
"""

HELP = ("-h", "--help")


def prepare_streams() -> None:
    """Let every standard stream be written to: whatever its encoding is, and where it was closed.

    A letter that a stream cannot encode is printed as Python writes it, `\\u732b`. What goes to a closed
    stream is lost; its number is taken, so that no file gets it and what other libraries print.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_help(text: str) -> int:
    """Print a help and return the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)  # `lambdanets | head` is no failure
    except OSError as error:
        silence(sys.stdout)
        print(f"lambdanets: standard output: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def silence(stream: TextIO) -> None:
    """Discard what a stream that cannot be written to still holds, and all that follows."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def help_for(words: Sequence[str]) -> str | None:
    """Return the help that a command line asks for where it is a list of verbs, else None.

    Args:
        words: those after `lambdanets`.
    """
    if not words or words[0] in (*HELP, "help"):
        return _help()
    verb, *options = words
    return _second_help(verb) if verb in SECOND and (not options or options[0] in HELP) else None


def _second_help(verb: str) -> str:
    names = _columns({name: line for name, (_, line) in SECOND[verb].items()})
    return (
        f"usage: lambdanets {verb} WHAT [options]      lambdanets {verb} WHAT --help says what it takes\n\n"
        f"{VERBS[verb][1]}\n\n{names}"
    )


def _help() -> str:
    verbs = _columns({verb: line for verb, (_, line) in VERBS.items()})
    return (
        f"lambdanets: lambda layers and LambdaResNets on PyTorch\n\n"
        f"usage: lambdanets VERB [options]      lambdanets VERB --help says what a verb takes\n\n"
        f"verbs\n{verbs}\n\n{EXAMPLES}\n"
        f"lambdanets --traceback VERB ... shows where an error came from."
    )


def _columns(lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(f"  {name:<{width}}{line}" for name, line in lines.items())
