"""Table of the verbs and the help of the command line. It imports the standard library alone, for speed."""

import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

# Verb -> its line of help. The verb `pseudo-label` is the function `run` of the module pseudo_label in this
# folder, which is imported only for that verb: `list` must not wait for Lightning.
VERBS: dict[str, str] = {
    "train": "train a recipe on its own data or on your images, recordings or text, or continue a run",
    "eval": "measure a run or a model on validation data or on ImageNet's test sets",
    "predict": "label images or recordings, draw the objects that a detector finds, or measure texts",
    "explain": "show what the lambda layers look at in an image, a recording or a text, as a page or a sheet",
    "generate": "continue a text with a run that trained a language model",
    "pseudo-label": "label images with a run, to train another model on them",
    "masks-to-coco": "convert a folder of mask images to a COCO json, to train a detector on",
    "export": "write a run or a model as one file for torch.export or onnxruntime",
    "push": "upload a run with a model card to the Hugging Face hub",
    "shard": "pack images into tar archives, to train on with --data tar:FOLDER",
    "list": "list models, recipes and data sources",
    "show": "show a model's stages, parameters, multiply-adds and kernels; or a recipe",
    "plan": "show the kernel selected for a lambda layer, and the cost of each or why it is excluded",
    "native": "compile the native CPU kernel, where no wheel has it, and check its results",
    "bench": "measure time and memory of the layer or of whole networks beside others",
}
# Verb -> its subverbs with their lines of help. `bench op` is the function `run` of the module bench_op.
SUBVERBS: dict[str, dict[str, str]] = {
    "bench": {
        "op": "the layer and its kernels against other implementations",
        "models": "any networks in timm's registry, which has this package's too",
    },
}
# Verb -> its former subverbs with the programs in the repository that replace them.
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
  lambdanets train audio --data audio:/data/words
  lambdanets train text --data text:book.txt
  lambdanets train --resume runs/2026-11-22-143000-digits
  lambdanets eval runs/2026-11-22-143000-digits
  lambdanets eval lambda_resnet26t --data folder:/data/imagenet --size 288 --csv results.csv
  lambdanets predict runs/2026-11-22-143000-digits photo.jpg holidays/
  lambdanets explain runs/2026-11-22-143000-digits photo.jpg --out photo.html
  lambdanets generate runs/2026-11-22-143000-text --prompt 'Once upon' --tokens 500 --temperature 0.8
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
    """Make stdout and stderr writable with any encoding, and where they are closed.

    A letter that a stream cannot encode is printed as an escape, `\\u732b`. Output to a closed stream is
    lost; its file descriptor is taken, so that no file gets it and the output of other libraries.
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
    """Print a help text and return the exit code."""
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
    """Discard the buffer of a stream that cannot be written to, and all further output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def help_for(words: Sequence[str]) -> str | None:
    """Return the list of verbs if a command line asks for it, else None.

    Args:
        words: The words after `lambdanets`.
    """
    if not words or words[0] in (*HELP, "help"):
        return _help()
    verb, *options = words
    return _subverb_help(verb) if verb in SUBVERBS and (not options or options[0] in HELP) else None


def is_verb_help(words: Sequence[str]) -> bool:
    """Return whether a command line asks for the options of a verb alone.

    Args:
        words: The words after `lambdanets`.
    """
    *verb, last = words or [""]
    return last in HELP and (
        (len(verb) == 1 and verb[0] in VERBS) or (len(verb) == 2 and verb[1] in SUBVERBS.get(verb[0], {}))
    )


def _subverb_help(verb: str) -> str:
    return (
        f"usage: lambdanets {verb} WHAT [options]      lambdanets {verb} WHAT --help lists its options\n\n"
        f"{VERBS[verb]}\n\n{_columns(SUBVERBS[verb])}"
    )


def _help() -> str:
    return (
        f"lambdanets: lambda layers and LambdaResNets on PyTorch\n\n"
        f"usage: lambdanets VERB [options]      lambdanets VERB --help lists the options of a verb\n\n"
        f"verbs\n{_columns(VERBS)}\n\n"
        "A recipe is a named, complete training configuration. A run is one training, with its folder.\n\n"
        f"{EXAMPLES}\n"
        "lambdanets --traceback VERB ... prints the traceback of an error.\n"
        "lambdanets --print-completion bash | zsh | fish prints a script that completes commands."
    )


def _columns(lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(f"  {name:<{width}}{line}" for name, line in lines.items())
