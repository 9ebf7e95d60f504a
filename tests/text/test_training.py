"""A language model is trained as any network: exact resume, several processes, the folder of a run."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from hub_cache import NAME, place_on_hub
from lambdanets.data import DataError, TextDataConfig, Vocabulary
from lambdanets.models import WeightsError
from lambdanets.text import TextConfig, evaluate, generate, load_run, train
from lambdanets.text.samples import add_sample
from lambdanets.text.training import LanguageModule
from lambdanets.train import RunError, RunResult, override
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.initial_weights import start_from
from launching import TRAIN, finish, start
from runs import assert_same_end, raised_in_batch


def test_the_folder_of_a_run(finished: RunResult, book: Path) -> None:
    folder = finished.directory
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "classes.json", "metrics.csv", "curves.png", "samples.txt", "summary.txt",
        "weights.safetensors", "checkpoints",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["task"] == "text"
    assert json.loads((folder / "classes.json").read_text()) == sorted(set(book.read_text()))
    rows = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert finished.best["val_loss"] == min(row["val_loss"] for row in finished.history)
    for row in finished.history:
        # Every character of this text is one byte.
        assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2))
        assert row["tokens_per_second"] > 0
    letters = len(book.read_text())
    kept = int(0.9 * letters)
    assert f"{kept:,} training and {letters - kept:,} validation characters" in finished.summary
    assert f"{len(set(book.read_text()))} different tokens" in finished.summary
    assert "tokens/s in training" in finished.summary
    with Image.open(folder / "curves.png") as image:
        assert min(image.size) > 300
    samples = (folder / "samples.txt").read_text()
    assert samples.count("=== epoch ") == 2
    assert f"=== epoch 2: validation loss {finished.history[1]['val_loss']:.4f} ===\n" in samples


def test_evaluation_gives_what_training_measured(finished: RunResult, book: Path) -> None:
    run = load_run(finished.directory)
    scores = evaluate(run)
    assert scores.loss == pytest.approx(finished.best["val_loss"], rel=1e-6)
    assert scores.accuracy == pytest.approx(finished.best["val_top1"])
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))
    text = book.read_text()
    held = text[int(0.9 * len(text)) :]
    assert scores.tokens == len(held) - 1
    # By the definition, in one window.
    tokens = torch.tensor(Vocabulary(run.classes).encode(held).astype("int64"))
    whole = evaluate(run, data=replace(run.config.data, context=len(held)))
    with torch.no_grad():
        expected = cross_entropy(run.model()(tokens[None, :-1])[0], tokens[1:])
    assert whole.loss == pytest.approx(float(expected), rel=1e-5)


def test_bits_per_byte_count_the_bytes_of_utf_8(tiny: TextConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("äöü" * 60)
    config = override(tiny, f"data.source=text:{tmp_path / 'a.txt'}", "engine.epochs=1", "engine.ema=None")
    row = train(config, run_dir=tmp_path / "run").best
    assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2) / 2)
    config = override(config, "data.tokens=bytes")
    row = train(config, run_dir=tmp_path / "bytes").best
    assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2))


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_killed_anywhere_it_goes_on_as_if_nothing_had_happened(
    tiny: TextConfig, finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    with raised_in_batch(monkeypatch, LanguageModule, batch):
        train(tiny, run_dir=tmp_path / "run")
    train(run_dir=tmp_path / "run", resume=True)
    assert_same_end(finished.directory, tmp_path / "run")
    samples = [(folder / "samples.txt").read_text() for folder in (finished.directory, tmp_path / "run")]
    assert samples[0] == samples[1]


def test_a_sample_that_is_written_again_replaces_the_later_ones(tmp_path: Path) -> None:
    for epoch, text in ((1, "one"), (2, "two"), (3, "three"), (2, "again\n=== no heading")):
        add_sample(tmp_path / "samples.txt", epoch, "loss", text)
    assert (tmp_path / "samples.txt").read_text() == (
        "=== epoch 1: loss ===\none\n\n=== epoch 2: loss ===\nagain\n=== no heading\n\n"
    )


def test_another_text_is_not_resumed_on(tiny: TextConfig, finished: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.directory, folder)
    (folder / "summary.txt").unlink()
    text = (tmp_path / "other.txt").absolute()
    source = Path(tiny.data.root).read_text()
    for content, sentence in (
        (source.replace("dog", "god"), "files of text were added, removed, renamed or changed since the run"),
        (source + "é", "different tokens, the windows have .*; they differ in 'é'"),
    ):
        text.write_text(content)
        with pytest.raises(RunError, match=sentence):
            train(override(tiny, f"data.source=text:{text}"), run_dir=folder, resume=True)


def test_a_run_continues_another_one_on_another_text(
    tiny: TextConfig, finished: RunResult, tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text("the lazy fox\n" * 30)
    config = override(
        tiny,
        f"data.source=text:{tmp_path / 'few.txt'}",
        f"model.weights={finished.directory}",
        "engine.epochs=1",
    )
    train(config, run_dir=tmp_path / "run")
    assert load_run(tmp_path / "run").classes == load_run(finished.directory).classes
    (tmp_path / "few.txt").write_text("the lazy fox é\n" * 30)
    with pytest.raises(DataError, match="'é' is not among the"):
        train(config, run_dir=tmp_path / "other")
    (tmp_path / "few.txt").write_text("the lazy fox\n" * 30)
    with pytest.raises(WeightsError):
        train(override(config, f"model.weights={tmp_path / 'gone'}"), run_dir=tmp_path / "other")


def test_the_first_blocks_of_a_trained_model_are_kept(
    tiny: TextConfig, finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ["model.frozen_stages=2", "engine.ema=None", "engine.epochs=1"]
    config = override(tiny, f"model.weights={finished.directory}", *parts)
    with raised_in_batch(monkeypatch, LanguageModule, 2):
        train(config, run_dir=tmp_path / "run")
    train(run_dir=tmp_path / "run", resume=True)
    train(config, run_dir=tmp_path / "straight")
    assert_same_end(tmp_path / "run", tmp_path / "straight")
    before = load_run(finished.directory).model().state_dict()
    after = load_run(tmp_path / "run").model("last").state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith(("embedding", "blocks.0.")), name
    depth = len({name.split(".")[1] for name in before if name.startswith("blocks.")})
    for change, sentence in (
        ("model.weights=None", "model.frozen_stages=2 needs trained weights to start from: add --weights"),
        (f"model.frozen_stages={depth + 2}", f"at most {depth + 1}, the stem and the other stages of"),
        ("model.frozen_stages=-1", "model.frozen_stages is 0 or more; got -1"),
        ("model.head_epochs=1", "head_epochs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(override(config, change), run_dir=tmp_path / "other")


def test_a_language_model_on_the_hub(
    tiny: TextConfig, finished: RunResult, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(finished.directory)
    folder = run.save_for_hub(place_on_hub(monkeypatch, tmp_path / "hub"))
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert f"| bits_per_byte | {finished.best['val_bits_per_byte']:.4f} |" in card
    assert r"`` '\n' ``" in card
    assert str(book) not in card + (folder / "config.json").read_text()
    one, other = ("".join(generate(each, "The", tokens=20, seed=1)) for each in (run, load_run(folder)))
    assert one == other
    config, _ = start_from(override(tiny, "engine.epochs=1", "model.options.dim=8"), NAME)
    assert config.model.options == run.config.model.options
    train(config, run_dir=tmp_path / "run")
    assert load_run(tmp_path / "run").classes == run.classes


def test_two_processes_have_different_windows(tiny: TextConfig, tmp_path: Path) -> None:
    """They train as one process with batches of twice the size."""
    words = [
        "text", "--data", tiny.data.source, "--epochs", "2", "--set", "data.context=16",
        "--set", "model.options.dim=16", "--set", "model.options.depth=1", "--set", "engine.threads=1",
        "--set", "data.windows=32", "--set", "engine.accelerator=cpu", "--set", "sample.tokens=20",
    ]  # fmt: skip
    options = {"two": ["--devices", "2", "--batch-size", "4"], "one": ["--devices", "1", "--batch-size", "8"]}
    for name, own in options.items():
        ((code, _, errors),) = finish(start(*TRAIN, *words, *own, "--out", tmp_path / name))
        assert code == 0, errors
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in options]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 8
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(value, ends[1]["state_dict"][name], rtol=1e-3, atol=1e-4)
    for name in ("train_loss", "train_top1", "val_loss", "val_bits_per_byte", "lr"):
        histories = [end["run_state"]["history"] for end in ends]
        assert [row[name] for row in histories[0]] == pytest.approx(
            [row[name] for row in histories[1]], rel=1e-3
        )


def test_a_seed_decides_the_text(finished: RunResult) -> None:
    run = load_run(finished.directory)
    texts = ["".join(generate(run, "The ", tokens=40, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert set("".join(texts)) <= set(run.classes)
    # Without a prompt, a line feed is continued.
    assert list(generate(run, tokens=5, seed=0)) == list(generate(run, "\n", tokens=5, seed=0))
    greedy = ["".join(generate(run, "The ", tokens=20, temperature=0.0, seed=seed)) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    with pytest.raises(DataError, match="'é' is not among"):
        generate(run, "é", tokens=1)


def test_a_model_of_bytes_takes_any_prompt(tiny: TextConfig, tmp_path: Path) -> None:
    config = override(tiny, "data.tokens=bytes", "engine.epochs=1", "engine.ema=None")
    train(config, run_dir=tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert len(run.classes) == 256
    assert len("".join(generate(run, "猫 é", tokens=30, seed=0))) > 0
    assert evaluate(run, data=TextDataConfig(source=config.data.source, context=8)).tokens > 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("model.options.vocabulary=3", "comes from the text"),
        ("sample.tokens=-1", "sample.tokens is from 0"),
        ("sample.temperature=-1", "sample.temperature is 0 or more"),
        ("sample.temperature=1e999", "sample.temperature is 0 or more"),
        ("model.weights=''", "model.weights is a file or the folder of a run"),
    ],
)
def test_a_wrong_setting_is_named(tiny: TextConfig, change: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        override(tiny, change)
