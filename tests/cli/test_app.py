"""Exit codes and messages of errors."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lambdanets
from lambdanets import cli
from lambdanets.cli import main
from lambdanets.cli import plan as plan_verb
from lambdanets.cli.errors import explain
from lambdanets.cli.verbs import VERBS
from lambdanets.data import DataWarning
from lambdanets.train import NonFiniteLossError, TrainingInterrupted
from preloaded import Preloaded

Command = Callable[..., subprocess.CompletedProcess[str]]

WRONG = {
    "trian digits": ["there is no verb 'trian'", "did you mean train?"],
    "frobnicate": [
        "there is no verb",
        "train, eval, predict, explain, generate, pseudo-label",
        "export, push, shard, list, show, plan",
    ],
    "train": ["name a recipe", "digits", "--resume", "config.json as --config"],
    "train digist": ["there is no recipe 'digist'", "did you mean digits?"],
    "train digits --modle x": ["there is no option '--modle'", "did you mean --model"],
    "train digits --model lambda_resne50": ["'lambda_resne50'", "did you mean", "lambda_resnet50"],
    "train digits extra": ["unexpected argument 'extra'"],
    "train digits --epochs many": ["--epochs takes a whole number; got 'many'; see lambdanets train --help"],
    "train digits --epochs": ["--epochs"],
    "train digits --out /dev/null": ["--out is the folder of the run, and /dev/null is a file."],
    "eval resnet18 --precision 8": ["invalid choice '8' for argument '--precision'. Expected one of ('"],
    "eval resnet18 --csv x/a.csv --json x/a.csv": ["--csv and --json name the same file x/a.csv"],
    "predict resnet18 a.png --csv b.png --out b.png": ["--csv and --out name the same file b.png"],
    "train digits --epochs 0": ["engine.epochs", "0"],
    "train digits --set lr=1": ["'lr'", "did you mean optimizer.lr?"],
    "train digits --set optimizer.rl=1": ["'optimizer.rl'", "lr"],
    "train digits --set optimizer=1": ["optimizer is a group"],
    "train digits --set optimizer.lr=fast": ["optimizer.lr", "'fast'"],
    "train digits --set optimizer.lr": ["path=value", "'optimizer.lr'"],
    "train digits --set data.augment.flip=7": ["augment.flip", "7"],
    "train digits --set model.options.scop=7": ["'scop'", "scope"],
    "train digits --model resnet18 --set model.options.scop=7": ["model.options", "'resnet18'", "scop"],
    "train digits --set optimizer.options.foo=1": ["optimizer", "'sgd'", "foo"],
    "train digits --model vit_tiny_patch16_224 --set data.image_size=32": [
        "'vit_tiny_patch16_224' cannot take images of 1 x 32 x 32",
        "(224)",
    ],
    "--print-completion": ["--print-completion takes a shell: bash, zsh, fish"],
    "--print-completion tcsh": ["there is no shell 'tcsh'"],
    "train digits --out a --resume b": ["--out and --resume"],
    "train digits --config x.json": ["--config and the recipe digits exclude each other"],
    "train --config x.json --resume run": ["--config and --resume exclude each other"],
    "train --config .": ["--config is a file, such as config.json, and . is a folder"],
    "train folder": ["the recipe folder needs your data: lambdanets train folder --data folder:PATH", "val/"],
    "train audio": ["needs your data: lambdanets train audio --data audio:PATH", "recordings per class"],
    "train text": ["needs your data: lambdanets train text --data text:PATH", "a file of text, or a folder"],
    "train nuclei": ["needs your data: lambdanets train nuclei --data coco:PATH", "masks-to-coco"],
    "train coco": ["needs your data: lambdanets train coco --data coco:PATH", "instances_val.json"],
    "train imagenet-350-50@128": ["needs your data: lambdanets train imagenet-350-50@128 --data folder:PATH"],
    "train digits --lr 1": ["no option '--lr'", "--set optimizer.lr=VALUE"],
    "train digits --device cuda": ["--set engine.accelerator=VALUE"],
    "train digits --num-workers=3": ["--set data.workers=VALUE"],
    "train digits --seed 9223372036854775808": ["--seed takes numbers below 2**63"],
    "train digits --set data.image_size=9223372036854775808": ["data.image_size is a number below 2**63"],
    "train digits --set model.options.checkpoint_path=x": ["model.options.checkpoint_path", "model.weights"],
    "generate run --device cuda": ["no option '--device'", "CUDA_VISIBLE_DEVICES"],
    "eval run --gpus 1": ["no option '--gpus'; the device is chosen by --device cuda"],
    "export run --lr 1": ["no option '--lr'; see lambdanets export --help"],
    "export resnet18": ["--format torch or onnx is missing", ".pt2 or .onnx"],
    "export resnet18 --out x.bin": ["x.bin ends in neither"],
    "predict resnet18 --samples 3": ["resnet18 is a model and has no validation set"],
    "predict run --run x": ["there is no option '--run'"],
    "show resnet50_lambda --size 1000000000": ["resnet50_lambda cannot take images of this size"],
    "show resnet50_lambda --num-classes 0": ["--num-classes must be at least 1"],
    "show resnet50_lambda --batch 0": ["--batch must be at least 1"],
    "plan --grid 99999999999999999999": ["--grid"],
    "list zzz*": ["no model, recipe or data source is named 'zzz*'"],
    "list lambda_resnet15": ["did you mean", "lambda_resnet152"],
    "show": ["MODEL is missing"],
    "show lambda_resnet51": ["did you mean", "lambda_resnet50"],
    "show lambda_resnet50 --size big": ["--size", "'big'"],
    "show lambda_resnet50 --size 2x3x4": ["--size", "2x3x4"],
    "plan": ["--grid is missing"],
    "plan --gird 3": ["there is no option '--gird'", "did you mean --grid?"],
    "plan --grid 64x0": ["--grid", "'64x0'"],
    "plan --grid 8 --dim-k 0": ["dim_k must be at least 1"],
    "plan --grid 8x8 --causal": ["causal"],
    "plan --grid 8 --dtype int8": ["--dtype", "int8", "bfloat16"],
    "plan --grid 8 --no-content --no-position": ["content or position"],
    "predict run": ["name images or folders", "--samples 20"],
    "predict run photo.jpg --samples 3": ["but not both"],
    "predict run --samples some": ["--samples takes a whole number; got 'some'"],
    "predict run x.jpg --threshold high": ["--threshold takes a number; got 'high'"],
    "predict run x.jpg --top 0": ["--top must be at least 1, got 0"],
    "predict run x.jpg --batch-size 0": ["--batch-size must be at least 1, got 0"],
    "predict run --samples 0": ["--samples must be at least 1, got 0"],
    "predict run x.jpg --json .": ["--json is a file, and . is a folder"],
    "eval run --per-class .": ["--per-class is a file, and . is a folder"],
    "eval run --json /dev/null/x.json": ["--json /dev/null/x.json cannot be written"],
}

FAILING = {
    "eval no/such/run": ["no/such/run is no run", "no such folder"],
    "predict no/such/run photo.jpg": ["no/such/run is no run"],
    "train --resume no/such/run": ["no/such/run"],
    "train --resume no/such/run --epochs 3": ["no/such/run"],
    "train --config no/such/file": ["no/such/file: No such file"],
    "train --config {json}": ["other.json cannot be used", "it is of a run of sewing"],
    "train digits --data folder:no/such/photos --out x": ["no/such/photos"],
    "train digits --data no/such/photos --out x": ["'no/such/photos'", "folder:PATH"],
    "train digits --data digist --out x": ["'digist'"],
    "train digits --data coco:x --out x": ["'coco:x' holds annotated objects", "the recipe coco or nuclei"],
}


def failed(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str]:
    code = main(words.split())
    shown = capsys.readouterr()
    assert shown.out == ""
    return code, shown.err


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: str
) -> None:
    code, sentence = failed(capsys, words)
    assert code == 2, sentence
    assert sentence.startswith("lambdanets: ")
    assert len(sentence.splitlines()) == 1
    assert all(part in sentence for part in WRONG[words]), sentence


@pytest.mark.parametrize("words", FAILING)
def test_a_command_that_fails_is_one_sentence_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text('{"task": "sewing"}')
    code, sentence = failed(capsys, words.format(json="other.json"))
    assert code == 1, sentence
    assert sentence.startswith("lambdanets: ")
    assert all(part in sentence for part in FAILING[words]), sentence
    assert not any(tmp_path.rglob("*.ckpt"))


def test_several_launched_processes_need_a_named_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, sentence = failed(capsys, "train digits")
    assert code == 2
    assert "--out" in sentence


ERRORS = {
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "runs/x/last.ckpt"),
        1,
        "runs/x/last.ckpt: No space",
    ),
    "no file": (OSError(errno.EINVAL, "Invalid argument"), 1, "lambdanets: lambdanets.cli."),
    "lost reader": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        1,
        "a process that reads images was lost (Killed), probably because memory or shared memory",
    ),
    "memory": (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), 1, "--batch-size"),
    "loss": (NonFiniteLossError(float("nan"), 7, 1, 0.5, Path("last.ckpt")), 1, "step 7"),
    "stopped": (TrainingInterrupted(signal.SIGTERM, Path("runs/x"), saved=True), 143, "--resume runs/x"),
    "allocator": (
        RuntimeError("can't allocate memory: you tried to allocate 2147483648 bytes"),
        1,
        "2.0 GiB",
    ),
    "pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "Broken pipe"),  # of a worker, not of stdout
    "letters": (
        UnicodeEncodeError("utf-8", "x\udcff.jpg", 1, 2, "surrogates not allowed"),
        1,
        "x\\udcff.jpg",
    ),
    "bytes": (UnicodeDecodeError("utf-8", b"x\xff.jpg", 1, 2, "invalid start byte"), 1, "x\\xff.jpg"),
    "terminal": (ValueError("no folder \x1b[2J"), 1, "no folder \\x1b[2J"),
    "value": (ValueError("dim must be 3, got 4"), 1, "dim must be 3, got 4"),
}


def test_our_warnings_are_their_sentence_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def action() -> int:
        formatted = [
            warnings.formatwarning(message, category, "a/file.py", 7)
            for message, category in (("3 images are left out.", DataWarning), ("old", FutureWarning))
        ]
        print(*formatted, sep="", end="")
        return 0

    stub(monkeypatch, action)
    before = warnings.formatwarning
    assert main(["plan"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "lambdanets: 3 images are left out."
    assert second == "a/file.py:7: FutureWarning: old"
    assert warnings.formatwarning is before


def stub(monkeypatch: pytest.MonkeyPatch, action: Callable[[], int]) -> None:
    def run() -> int:
        return action()

    monkeypatch.setattr(plan_verb, "run", run)


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize("name", ERRORS)
def test_foreseen_errors_become_sentences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error, code, part = ERRORS[name]
    stub(monkeypatch, raising(error))
    assert failed(capsys, "plan")[0] == code
    main(["plan"])
    assert part in capsys.readouterr().err
    with pytest.raises(type(error)):
        main(["--traceback", "plan"])


@pytest.mark.parametrize(
    "error", [KeyError("k"), RuntimeError("shape mismatch"), TypeError("t"), AssertionError()]
)
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    stub(monkeypatch, raising(error))
    with pytest.raises(type(error)):
        main(["plan"])


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_signals_decide_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, swallowed: bool
) -> None:
    def action() -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except (KeyboardInterrupt, SystemExit):
            if swallowed:  # as Lightning does
                sys.exit(1)
            raise
        return 0

    stub(monkeypatch, action)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["plan"]) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("words", "module"),
    [("list", "tyro"), ("list", "rich"), ("train digits --out x", "lightning"), ("show resnet18", "rich")],
)
def test_a_missing_extra_is_named_with_its_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, module: str
) -> None:
    ours = ("lambdanets.cli.", "lambdanets.recipes", "lambdanets.train.engine")
    for name in list(sys.modules):
        if name.startswith((*ours, f"{module}.")) and name not in (
            "lambdanets.cli.app",
            "lambdanets.cli.errors",
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, sentence = failed(capsys, words)
    assert code == 1
    assert module in sentence
    assert 'pip install "lambdanets[train]"' in sentence


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "list", "show", "plan"])
def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: lambdanets {verb}" in shown
    assert "None" not in shown


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_all_verbs(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)
    starts = {line.index(what) for line in shown.splitlines() for what in VERBS.values() if what in line}
    assert len(starts) == 1


def test_a_verb_is_a_module_and_a_line_of_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "say_hello.py").write_text(
        'def run(*, name: str = "you") -> int:\n'
        '    """Greet.\n\n    Args:\n        name: Who is greeted.\n    """\n'
        '    print(f"hello {name}")\n    return 0\n'
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setitem(VERBS, "say-hello", "greet")
    assert main(["say-hello", "--name", "all"]) == 0
    assert main(["say-hello", "--help"]) == 0
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("hello all\nusage: lambdanets say-hello")
    assert re.search(r"\n  say-hello +greet\n", shown)


def test_the_script_and_the_module_are_one_command(command: Command) -> None:
    version = command("--version")
    assert version.returncode == 0
    assert version.stdout == f"lambdanets {lambdanets.__version__}, torch {torch.__version__}\n"
    module = Preloaded("-m", "lambdanets", "trian", env=os.environ)
    out, errors = module.communicate(timeout=120)
    assert (module.returncode, out) == (2, "")
    assert "did you mean train?" in errors


STREAMS = """
import io, json, os, sys, tempfile
from lambdanets.cli import main
for words in (["--help"], ["list"], ["plan", "--grid", "4"]):
    assert main(words) == 0
sys.stdout.flush()
found = {"modules": list(sys.modules)}
for case in sys.argv[1:]:
    buffering, kind, *words = case.split()
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            if kind == "reader-gone":
                reading, writing = os.pipe()
                os.close(reading)
            else:
                writing = os.open("/dev/full", os.O_WRONLY)
            os.dup2(writing, 1)
            os.dup2(errors.fileno(), 2)
            if buffering == "unbuffered":  # as PYTHONUNBUFFERED has it
                sys.stdout = io.TextIOWrapper(open(1, "wb", 0), write_through=True)
            code = main(words)
            # The end of the interpreter, without the seconds of freeing all modules.
            try:
                sys.stdout.flush()
            except OSError:
                code = 120
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        found[case] = code, errors.read()
json.dump(found, sys.stderr)
"""
BUFFERINGS = ("buffered", "unbuffered")
READER_GONE = [f"{way} reader-gone {words}" for way in BUFFERINGS for words in ("list", "plan --help")]
DISK_FULL = [f"{way} disk-full list lambda*" for way in BUFFERINGS]


@pytest.fixture(scope="module")
def unwritable() -> dict[str, Any]:
    """Run commands in a new interpreter, then others in forks of it that cannot write their output."""
    done = subprocess.run(
        [sys.executable, "-c", STREAMS, *READER_GONE, *(DISK_FULL if Path("/dev/full").exists() else ())],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stderr)


def test_help_list_and_plan_import_nothing_heavy(unwritable: dict[str, Any]) -> None:
    heavy = {"lightning", "matplotlib", "tensorboard", "sklearn", "torchmetrics"}
    assert heavy.isdisjoint(unwritable["modules"])


@pytest.mark.parametrize("case", READER_GONE)
def test_a_reader_that_leaves_early_is_no_error(unwritable: dict[str, Any], case: str) -> None:
    assert unwritable[case] == [0, ""]


CALL = "import sys; from lambdanets_command import main; sys.exit(main())"


def test_help_imports_nothing_of_the_package() -> None:
    script = "import sys; from lambdanets_command import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_the_help_of_no_verb_needs_torch() -> None:
    script = (
        "import sys; from lambdanets_command import main, _verbs\n"
        "verbs = _verbs()\n"
        "for verb in verbs.VERBS:\n"
        "    for second in verbs.SUBVERBS.get(verb, [None]):\n"
        "        sys.argv[1:] = [verb, *([second] if second else []), '--help']\n"
        "        assert main() == 0\n"
        "    heavy = {'torch', 'timm', 'numpy', 'lightning'} & set(sys.modules)\n"
        "    assert not heavy, (verb, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for verb in VERBS:
        assert f"usage: lambdanets {verb} " in done.stdout
    assert all(
        word in done.stdout for word in ("--batch-size N", "--temperature", "--opset", "--max-seconds")
    )


@pytest.mark.parametrize("words", ["", " trian"])
def test_closed_streams_are_no_traceback(tmp_path: Path, words: str) -> None:
    shell = f"{sys.executable} -c '{CALL}'{words} >&- 2>{tmp_path}/stderr"
    code = subprocess.run(shell, shell=True, timeout=120, check=False).returncode
    stderr = (tmp_path / "stderr").read_text()
    assert (
        (code, stderr) == (0, "") if not words else code == 2 and stderr.startswith("lambdanets: there is no")
    )
    # A fork that has closed its streams, as a new interpreter finds them.
    program = tmp_path / "closed.py"
    program.write_text(f"import os, sys\nos.closerange(1, 3)\nsys.stdout = sys.stderr = None\n{CALL}\n")
    both = Preloaded(program, *words.split(), env=os.environ)
    both.communicate(timeout=120)
    assert both.returncode == code


NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
FULL = (1, "lambdanets: standard output: No space left on device.\n")


@NEEDS_FULL
@pytest.mark.parametrize("case", DISK_FULL)
def test_a_full_disk_behind_stdout_is_reported(unwritable: dict[str, Any], case: str) -> None:
    assert tuple(unwritable[case]) == FULL


@NEEDS_FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_help_is_reported(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CALL],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == FULL


@pytest.mark.parametrize(
    ("module", "extra"),
    [("rich", "train"), ("pycocotools", "detection"), ("onnx", "export"), ("onnxscript", "export")],
)
def test_each_module_is_of_an_extra(module: str, extra: str) -> None:
    error = ModuleNotFoundError("gone", name=f"{module}.inside")
    assert explain(error) == (
        f'this command needs {module}, which is not installed: pip install "lambdanets[{extra}]"'
    )


@pytest.mark.parametrize("verb", ["plan", "bench op", "bench models"])
def test_flags_that_leave_something_out_say_so(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"--no-\w+ +Leave out", shown)
    assert "options options" not in shown
    assert "(default: True)" not in shown
