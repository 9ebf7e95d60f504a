"""Language models through the command line: training, measuring, and texts as they are written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preloaded import Preloaded

Command = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Preloaded]

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = "".join(f"The {number}th fox jumps over the lazy dog.\n" for number in range(40))
SETTINGS = (
    "model.options.dim=16", "model.options.depth=1", "model.options.num_heads=2", "data.context=16",
    "data.windows=16", "engine.threads=1", "sample.tokens=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(LINES)
    return path


@pytest.fixture(scope="module")
def writer(command: Command, book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained a language model, with what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "writer"
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    done = command(
        "train", "text", "--data", f"text:{book}", "--epochs", 2, "--batch-size", 4, "--out", folder, *changes
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_train_prints_the_loss_in_bits_and_the_next_step(writer: Path) -> None:
    shown = (writer / "printed.txt").read_text()
    assert re.search(
        r"epoch 1/2  train \d\.\d{3}  val \d\.\d{4}, \d\.\d{3} bits/byte  [\d,.]+ tokens/s", shown
    )
    assert "1,359 training and 151 validation characters, 33 different tokens" in shown
    assert re.search(r"best +validation loss \d\.\d{4} nats, \d\.\d{4} bits per byte, perplexity", shown)
    assert shown.endswith(f"See its results: lambdanets generate {writer} --tokens 500\n")


def test_eval_prints_and_writes_bits(inside: Command, writer: Path, book: Path, tmp_path: Path) -> None:
    done = inside("eval", writer, "--json", tmp_path / "own.json")
    assert done.returncode == 0, done.stderr
    own = json.loads((tmp_path / "own.json").read_text())
    assert own["tokens"] == 150
    assert own["context"] == 16
    for words in (
        f"loss (nats per character) {own['loss']:.4f}",
        f"bits per byte {own['bits_per_byte']:.4f}",
    ):
        assert words in " ".join(done.stdout.split())
    other = tmp_path / "other.txt"
    other.write_text("The lazy dog jumps.\r\n" * 3)
    done = inside(
        "eval", writer, "--data", f"text:{other}", "--json", tmp_path / "other.json", "--context", 8
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "other.json").read_text())
    assert (found["tokens"], found["context"]) == (59, 8)
    # The run's own text keeps its split, whatever its path.
    inside("eval", writer, "--data", f"text:{book.parent}/./book.txt", "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["loss"] == own["loss"]


def test_predict_measures_each_file(inside: Command, writer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.txt").write_text("The lazy dog jumps.\n")
    (folder / "bad.txt").write_bytes(b"The lazy d\xffg.\n")
    (tmp_path / "other.md").write_text("Le café\n")
    words = [folder, tmp_path / "other.md", "--json", tmp_path / "found.json"]
    done = inside("predict", writer, *words)
    assert done.returncode == 0, done.stderr
    bad, good, other = json.loads((tmp_path / "found.json").read_text())
    assert good["tokens"] == 19
    assert good["bits_per_byte"] == pytest.approx(good["loss"] * 1.4426950408889634)
    assert bad["error"].startswith(f"{folder / 'bad.txt'} is not UTF-8: byte 10 is 0xff")
    assert "'é' is not among the 33 characters" in other["error"] or "are not among" in other["error"]
    assert "good.txt" in done.stdout
    assert [line.partition(" is not UTF-8")[0] for line in done.stderr.splitlines()] == [
        f"skipped: {folder / 'bad.txt'}",
        f"skipped: {other['error']}",
    ]
    assert inside("predict", writer, *words, "--strict").returncode == 1
    assert inside("predict", writer, tmp_path / "other.md").returncode == 1


def test_generate_prints_the_prompt_and_its_continuation(command: Command, writer: Path) -> None:
    texts = [
        command("generate", writer, "--prompt", "The ", "--tokens", 50, "--seed", seed) for seed in (1, 1, 2)
    ]
    for done in texts:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("The ")
        assert len(done.stdout) == 4 + 50 + 1
    assert texts[0].stdout == texts[1].stdout != texts[2].stdout


def test_generate_starts_without_a_prompt(inside: Command, writer: Path) -> None:
    shown = [
        inside("generate", writer, "--tokens", 20, "--temperature", 0, *words).stdout
        for words in ((), ("--prompt", ""), ("--prompt", "\n"), ("--top-k", 3, "--weights", "last"))
    ]
    assert shown[0] == shown[1] == shown[2].removeprefix("\n")
    assert len(shown[0]) == 21


def test_push_writes_a_folder_that_generates(inside: Command, writer: Path, tmp_path: Path) -> None:
    done = inside("push", writer, "--folder", tmp_path / "hub")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"written: {tmp_path / 'hub'}\n", "")
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {
        "README.md", "classes.json", "config.json", "weights.safetensors",
    }  # fmt: skip
    words = ("--prompt", "The", "--tokens", 5, "--seed", 1)
    texts = {inside("generate", folder, *words).stdout for folder in (writer, tmp_path / "hub")}
    assert len(texts) == 1


def test_line_ends_of_a_prompt_are_those_of_the_text(inside: Command, writer: Path) -> None:
    shown = [
        inside("generate", writer, "--prompt", f"{start}The fox{end}The", "--tokens", 20, "--seed", 1)
        for start, end in (("", "\n"), ("", "\r\n"), ("", "\r"), ("\ufeff", "\r\n"))
    ]
    assert [done.returncode for done in shown] == [0] * 4
    assert {done.stdout for done in shown} == {shown[0].stdout}
    assert shown[0].stdout.startswith("The fox\nThe")


def test_generate_prints_each_token_as_it_is_written(start: Start, writer: Path) -> None:
    process = start("generate", writer, "--prompt", "The ", "--tokens", 1_000_000)
    until = time.monotonic() + 60
    while len(process.printed()) < 4 + 20 and time.monotonic() < until:
        time.sleep(0.005)
    assert process.printed().startswith("The ")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert out.endswith("\n")


def test_a_closed_pipe_is_no_failure(start: Start, writer: Path) -> None:
    reading, writing = os.pipe()
    process = start("generate", writer, "--tokens", 1_000_000, stdout=writing)
    os.close(writing)
    assert os.read(reading, 1), process.communicate(timeout=60)
    os.close(reading)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--prompt", "Café"),
            "the prompt cannot be used: 'C', 'é' are not among the 33 characters of the model's vocabulary; "
            "leave them out, or train a model on text with them.",
        ),
        (("--temperature", "-1"), "--temperature must be at least 0 and finite, got -1."),
        (("--temperature", "nan"), "--temperature must be at least 0 and finite, got nan."),
        (("--tokens", "0"), "--tokens must be at least 1, got 0."),
        (("--top-k", "0"), "--top-k must be at least 1, got 0."),
        (("--top-p", "0"), "--top-p must be above 0 and at most 1, got 0."),
        (("--seed", "-1"), "--seed must be at least 0, got -1."),
    ],
)
def test_generate_refuses_in_one_sentence(
    inside: Command, writer: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = inside("generate", writer, *words)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr == f"lambdanets: {sentence}\n"


def test_verbs_for_other_runs_refuse_a_language_model(
    inside: Command, writer: Path, book: Path, trained: Path, tmp_path: Path
) -> None:
    for words, sentence in (
        (
            ("export", writer, "--format", "onnx", "--size", 8),
            "--size is for runs of a classifier or a detector, and",
        ),
        (("eval", writer, "--size", 8), "--size is for runs of a classifier or a detector, and"),
        (("eval", writer, "--crop", 0.9), "--crop is for runs of a classifier, and"),
        (("predict", writer), "name files of text, or folders of them."),
        (("predict", writer, "--samples", 3), "--samples is for runs of a classifier, a detector or"),
        (
            ("pseudo-label", writer, "--data", "digits", "--out", tmp_path / "a.csv"),
            "of a run of text, not of",
        ),
        (("shard", f"text:{book}", "--out", tmp_path / "shards"), "is text, for a language model"),
        (("generate", trained), "generate is for runs of a language model, and"),
        (("generate", tmp_path), "is no run"),
        (("eval", trained, "--context", 8), "--context is for runs of a language model, and"),
        (
            ("train", "digits", "--data", f"text:{book}"),
            "is text, for a language model: train the recipe text",
        ),
        (("train", "text", "--data", "folder:photos"), "data.source must be text:FILE or text:FOLDER"),
        (("train", "text", "--data", f"text:{tmp_path / 'none'}"), "there is no file or folder"),
        (
            ("train", "text", "--model", "lambda_resnet50"),
            "unknown language model 'lambda_resnet50'",
        ),
        (("train", "text", "--set", "model.options.dim=0"), "dim must be at least 1"),
    ):
        done = inside(*words)
        assert done.returncode in (1, 2), words
        assert sentence in done.stderr, words
        assert done.stderr.count("\n") == 1, words


def decode_program() -> str:
    """The program for onnxruntime on the page about sequences."""
    page = (Path(__file__).parents[2] / "docs" / "sequences.md").read_text()
    section = page.partition("\n## A step as a program\n")[2].partition("\n## ")[0]
    return next(block for block in BLOCK.findall(section) if "onnxruntime" in block)


def test_the_page_decodes_an_exported_step(inside: Command, writer: Path, tmp_path: Path) -> None:
    done = inside("export", writer, "--out", tmp_path / "book.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert re.fullmatch(rf"{tmp_path}/book\.onnx: tokens batch, state of \d tensors", first)
    assert re.fullmatch(
        r"largest difference from the network: \S+ in outputs up to \S+ \(states after random texts\)", second
    )
    program = decode_program() + "import sys\nassert not {'torch', 'lambdanets'} & set(sys.modules)\n"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert shown.returncode == 0, shown.stderr
    words = ("--prompt", "The ", "--tokens", 100, "--temperature", 0)
    assert shown.stdout == inside("generate", writer, *words).stdout
    assert len(shown.stdout) == 4 + 100 + 1


def test_an_exported_program_of_torch_is_in_the_run(inside: Command, writer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(writer, run)
    done = inside("export", run, "--format", "torch", "--weights", "last", "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}/network.pt2: tokens 3, state of ")
    again = inside("export", run, "--format", "torch")
    assert again.returncode == 1
    assert again.stderr == f"lambdanets: {run}/network.pt2 exists already; remove it or name another file\n"


def test_list_and_show_have_the_recipe_and_the_source(inside: Command) -> None:
    shown = inside("list").stdout
    assert re.search(r"text +lambda_lm_mini +text:book\.txt", shown)
    assert re.search(r"text:PATH +for language models", shown)
    assert "data.context=64" in inside("show", "text").stdout


def test_list_and_show_have_language_models(inside: Command) -> None:
    shown = inside("list", "*_lm_mini").stdout
    assert re.search(r"lambda_lm_mini +0\.8\d +4 +128 +lambda", shown)
    (sizes,) = re.findall(r"State of a text: .*", inside("show", "lambda_lm_mini").stdout)
    # The state of lambda layers does not grow with the text.
    assert len(set(re.findall(r"([\d,]+) bytes after", sizes))) == 1
    done = inside("show", "lambda_lm_mini", "--size", 8)
    assert (done.returncode, done.stdout) == (2, "")


def test_explain(inside: Command, writer: Path, book: Path, tmp_path: Path) -> None:
    for words in ((book,), ("--text", "The lazy fox")):
        done = inside("explain", writer, *words, "--out", tmp_path / "maps.html")
        assert done.returncode == 0, done.stderr
    assert '"tokens":["T","h","e"," ","l"' in (tmp_path / "maps.html").read_text()
    done = inside("explain", writer, book, "--out", tmp_path / "maps.json")
    plain = json.loads((tmp_path / "maps.json").read_text())
    assert plain["error"] <= 1e-5
    assert [each["grid"] for each in plain["layers"]] == [[16]], "the last window of the text"
    for words, message in (
        ((), "or give the text with --text"),
        ((book, "--text", "a"), "but not both"),
        (("--text", ""), "the text is empty"),
        (("--text", "#"), "'#' is not among"),
    ):
        done = inside("explain", writer, *words, "--out", tmp_path / "other.html")
        assert done.returncode in (1, 2)
        assert message in done.stderr
