"""The command `lambdanets`: finds the verb and runs it, and turns what goes wrong into a sentence."""

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType

import torch

from lambdanets.cli.errors import EXIT_OF_SIGNAL, FAILURE, USAGE, UsageError, check_name, missing_extra
from lambdanets.processes import listened_signals, lost_worker

# Verb -> its module and its line of help. A module is imported only when its verb is asked for:
# `list` must not wait for Lightning.
VERBS = {
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
SECOND = {
    "bench": {
        "op": ("benching", "the layer and its kernels against other implementations"),
        "models": ("benching_networks:models", "any networks of timm's registry and of ours"),
        "race": ("benching_networks:race", "LambdaResNets, EfficientNets and ResNet-RS: accuracy and time"),
        "table4": ("benching_networks:table4", "the paper's lambda layers and self-attention"),
        "table13": ("benching_networks:table13", "the paper's stages of convolutions and lambda layers"),
        "table14": (
            "benching_networks:table14",
            "the paper's ResNet-RS and LambdaResNets of 101 and 152 layers",
        ),
        "study": (
            "studying",
            "the accuracy of operators on one trunk, over seeds; goes on where it was stopped",
        ),
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
  lambdanets bench study --data folder:/data/cifar10 --dry-run
"""

FIRST_SPEAKS = 2.0  # seconds

_received: list[int] = []
_formatted = warnings.formatwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: The words after `lambdanets`; those of the process when not given.

    Returns:
        0 done, 1 failed, 2 the command is wrong, 130 stopped by Ctrl-C, 128 + n by another signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with_traceback = words[:1] == ["--traceback"]
    if with_traceback:
        words.pop(0)
    _received.clear()
    previous = {number: signal.signal(number, _stop) for number in listened_signals()}
    warnings.formatwarning = _warning
    # The reader has a limit of its own, data.max_pixels; Pillow calls half of it an attack.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", module="PIL")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except (SystemExit, KeyboardInterrupt) as stop:
        return _exit_code(stop)
    except BrokenPipeError:
        # `lambdanets list | head` is no failure. The reader is gone: nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        sentence = None if with_traceback else _sentence(error)
        if sentence is None:
            raise
        rank = _rank()
        if rank != "0" and getattr(error, "everywhere", False):
            # The first process says it. Launchers end all processes when one has failed: it gets the time to.
            time.sleep(FIRST_SPEAKS)
        else:
            _print_error(f"lambdanets{'' if rank == '0' else f' (process {rank})'}: {sentence}")
        # Training that was asked to stop brings its own code.
        return USAGE if isinstance(error, UsageError) else getattr(error, "exit_code", FAILURE)
    finally:
        warnings.formatwarning = _formatted
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("--version", "-V"):
        import lambdanets

        print(f"lambdanets {lambdanets.__version__}, torch {torch.__version__}")
        return 0
    verb, *options = words
    check_name("verb", verb, VERBS)
    place, prog = VERBS[verb][0], f"lambdanets {verb}"
    if seconds := SECOND.get(verb):
        if not options or options[0] in ("-h", "--help"):
            print(_second_help(verb))
            return 0
        name = options.pop(0)
        check_name(verb, name, seconds)
        place, prog = seconds[name][0], f"{prog} {name}"
    module, _, function = place.partition(":")
    called = getattr(importlib.import_module(f"lambdanets.cli.{module}"), function or "run")
    from lambdanets.cli.options import parse

    return parse(called, prog=prog, words=options)()


def _second_help(verb: str) -> str:
    names = _columns({name: line for name, (_, line) in SECOND[verb].items()})
    return (
        f"usage: lambdanets {verb} WHAT [options]      lambdanets {verb} WHAT --help says what it takes\n\n"
        f"{VERBS[verb][1]}\n\n{names}"
    )


def _columns(lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(f"  {name:<{width}}{line}" for name, line in lines.items())


def _help() -> str:
    import lambdanets

    verbs = _columns({verb: line for verb, (_, line) in VERBS.items()})
    return (
        f"lambdanets {lambdanets.__version__}: lambda layers and LambdaResNets on PyTorch\n\n"
        f"usage: lambdanets VERB [options]      lambdanets VERB --help says what a verb takes\n\n"
        f"verbs\n{verbs}\n\n{EXAMPLES}\n"
        f"lambdanets --traceback VERB ... shows where an error came from."
    )


def _print_error(sentence: str) -> None:
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        # The terminal is gone; what is left in the buffer must not fail again at exit, and change its code.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _sentence(error: Exception) -> str | None:
    """Return what to tell the person, or None when the error is ours and deserves its traceback."""
    if isinstance(error, ModuleNotFoundError):
        ours = error.name is None or error.name.startswith("lambdanets")
        return None if ours else missing_extra(error)
    # Training has a sentence of its own.
    if not type(error).__module__.startswith("lambdanets.") and (lost := lost_worker(error)) is not None:
        return (
            f"a process that reads images was lost ({lost}), probably for want of memory or of shared memory "
            "(/dev/shm); try fewer workers."
        )
    if type(error) is MemoryError and str(error):  # of the planner or a layer; NumPy's is a class of its own
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; try a smaller --batch-size or smaller images."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or _step(error)}: {error.strerror}."
    # Every mistake that this package foresees is a ValueError or an error class of its own.
    if isinstance(error, ValueError | OSError) or type(error).__module__.startswith("lambdanets."):
        return str(error)
    return None


def _rank() -> str:
    """The number of this process among those of a launcher."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0"


def _step(error: Exception) -> str:
    """Return the innermost function of this package that an error came through."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f"{frame.f_globals['__name__']}.{frame.f_code.co_name}" for frame in frames]
    ours = [name for name in names if name.startswith("lambdanets.")]
    return ours[-1] if ours else "lambdanets"


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return our own warnings as their sentence alone; where they were raised means nothing to the person."""
    if category.__module__.startswith("lambdanets."):
        once = category.__name__ == "SourceWarning" and _rank() != "0"
        return "" if once else f"lambdanets: {message}\n"
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
