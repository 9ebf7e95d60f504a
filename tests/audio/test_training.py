"""A run of recordings: its files, exact resume, evaluation and prediction."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hub_cache import NAME, place_on_hub
from lambdanets.audio import (
    AudioConfig,
    draw_spectrograms,
    evaluate,
    load_run,
    predict,
    predict_samples,
    train,
)
from lambdanets.audio.training import AudioClassifier
from lambdanets.data import DataError, open_audio_split
from lambdanets.exporting import ExportError
from lambdanets.exporting.audio import export_audio
from lambdanets.train import RunError, RunResult, TrainingInterrupted, override
from lambdanets.train.config import dump_config
from lambdanets.train.initial_weights import start_from
from launching import finish, start
from runs import assert_same_end, interrupt, raised_in_batch
from sound_sets import RATE, soundfile, tone, write_tones


def test_a_run_learns_and_writes_its_files(finished: RunResult) -> None:
    assert finished.best["val_top1"] > 0.7
    names = {path.name for path in finished.directory.iterdir()}
    assert {"config.json", "confusion.png", "curves.png", "sheet.png", "metrics.csv"} <= names
    stored = json.loads((finished.directory / "config.json").read_text())
    assert stored["task"] == "audio"
    assert stored["data"]["sample_rate"] == RATE
    assert "36 training and 12 validation recordings, 3 classes" in finished.summary
    assert "recordings/s" in finished.summary
    with Image.open(finished.directory / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 200  # spectrograms, not white axes


def test_evaluation_is_that_of_the_best_epoch(finished: RunResult, tones: Path) -> None:
    run = load_run(finished.directory)
    figures = evaluate(run).figures()
    assert figures["top1"] == pytest.approx(finished.best["val_top1"])
    assert figures["loss"] == pytest.approx(finished.best["val_loss"], rel=1e-5)
    assert figures["images"] == 12
    other = replace(run.config.data, source=f"audio:{tones}/train", val_fraction=1.0)
    assert evaluate(run, other).figures()["images"] == 36


def test_each_sample_of_a_batch_is_scored_as_alone(finished: RunResult) -> None:
    run = load_run(finished.directory)
    network = run.model()
    val = open_audio_split(run.config.data, classes=run.classes)
    (features, mask), _ = val.batch(range(len(val)))
    with torch.no_grad():
        together = network(features, mask)
        alone = torch.cat([network(val.whole(index)[None]) for index in range(len(val))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_predictions_agree_with_evaluation(finished: RunResult, tones: Path) -> None:
    run = load_run(finished.directory)
    samples = predict_samples(run, 100, top=2, batch_size=5)
    assert len(samples) == 12
    assert sum(bool(each.right) for each in samples) == round(12 * finished.best["val_top1"])
    files = predict(run, [tones / "val"], batch_size=3)
    assert [each.path for each in files] == sorted(each.path for each in files)
    by_path = {each.path: each for each in samples}
    for each in files:
        same = by_path[each.path]
        assert each.labels[:2] == same.labels
        assert each.probabilities[:2] == pytest.approx(same.probabilities, abs=1e-5)
        assert sum(each.probabilities) == pytest.approx(1)


def test_files_that_cannot_be_read_do_not_stop_the_others(
    finished: RunResult, tones: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("nothing")
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "other.wav", np.stack([tone(200.0, 0.3, 44100)] * 2, 1), 44100)
    found = predict(
        load_run(finished.directory),
        [tmp_path / "text.wav", tmp_path / "empty", tmp_path / "other.wav", tmp_path / "missing.wav"],
    )
    assert [each.error is None for each in found] == [False, False, True, False]
    assert found[1].error == "there are no recordings in this folder"
    assert "is no .wav file" in (found[0].error or "")
    assert found[2].labels
    assert found[2].seconds == pytest.approx(0.3, abs=0.02)


def test_sheets(finished: RunResult, tmp_path: Path) -> None:
    samples = predict_samples(load_run(finished.directory), 7)
    assert draw_spectrograms(samples, tmp_path / "a" / "sheet.png", "title") == [tmp_path / "a" / "sheet.png"]
    assert draw_spectrograms([], tmp_path / "none.png") == []
    raw = [replace(each, truth=None, features=torch.randn(1, 900)) for each in samples[:1]]
    assert draw_spectrograms(raw, tmp_path / "raw.png")
    with Image.open(tmp_path / "a" / "sheet.png") as sheet:
        assert sheet.width > 1000


def kill_and_resume(config: AudioConfig, folder: Path, *points: str) -> None:
    stored = folder.parent / "wanted.json"
    stored.write_text(dump_config(config))
    script = Path(__file__).parents[1] / "train" / "killed_runs.py"
    ((code, said, errors),) = finish(start(script, stored, folder, *points))
    assert code == 0, said + errors


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forked")
def test_a_killed_run_ends_with_the_same_bits(tiny: AudioConfig, finished: RunResult, tmp_path: Path) -> None:
    kill_and_resume(tiny, tmp_path / "run", "batch 2", "validation", "batch 9")
    assert_same_end(finished.directory, tmp_path / "run")
    assert (tmp_path / "run" / "sheet.png").is_file()


@pytest.mark.parametrize("changes", [[], ["data.cache=false", "data.workers=1"]])
def test_a_stopped_run_ends_with_the_same_bits(
    changes: list[str],
    tiny: AudioConfig,
    finished: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(monkeypatch, signal.SIGTERM, batch=6)
    folder = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(tiny, run_dir=folder)
    stored = load_run(folder).config
    train(override(stored, *changes) if changes else None, run_dir=folder, resume=True)
    assert_same_end(finished.directory, folder)


def test_other_recordings_cannot_be_resumed(
    tiny: AudioConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tones(tmp_path / "data", train=12)
    config = override(tiny, f"data.source=audio:{root}")
    interrupt(monkeypatch, signal.SIGTERM, batch=2)
    with pytest.raises(TrainingInterrupted):
        train(config, run_dir=tmp_path / "run")
    (root / "train" / "low" / "0.wav").unlink()
    with pytest.raises(RunError, match="recordings were added, removed, renamed or moved"):
        train(run_dir=tmp_path / "run", resume=True)


def test_skipped_recordings_are_listed(tiny: AudioConfig, tmp_path: Path) -> None:
    root = write_tones(tmp_path / "data")
    (root / "train" / "low" / "bad.wav").write_bytes(b"")
    config = override(tiny, f"data.source=audio:{root}", "engine.epochs=1")
    with pytest.raises(DataError, match="1 of 28 recordings cannot be used"):
        train(config, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="They are left out"):
        train(override(config, "data.on_bad_recording=skip"), run_dir=tmp_path / "run")
    assert "bad.wav: the file is empty" in (tmp_path / "run" / "skipped.txt").read_text()


def test_skipped_recordings_of_the_validation_set_are_left_out_of_its_samples(
    finished: RunResult, tmp_path: Path
) -> None:
    root = write_tones(tmp_path / "data", val=4)
    (root / "val" / "low" / "bad.wav").write_bytes(b"")
    run = load_run(finished.directory)
    data = replace(run.config.data, source=f"audio:{root}", on_bad_recording="skip")
    run = replace(run, config=replace(run.config, data=data))
    with pytest.warns(UserWarning, match="They are left out"):
        assert len(predict_samples(run, 100)) == 12
    with pytest.warns(UserWarning, match="They are left out"):
        assert evaluate(run).figures()["images"] == 12


def test_raw_samples_train(tiny: AudioConfig, tmp_path: Path) -> None:
    config = override(tiny, "data.features=raw", "engine.epochs=1", "data.seconds=0.2")
    result = train(config, run_dir=tmp_path / "run")
    assert np.isfinite(result.best["val_loss"])
    run = load_run(tmp_path / "run")
    assert run.model().config.stem_strides == (8, 5, 2)
    assert predict_samples(run, 2)[0].features.shape[0] == 1


def test_weights_of_a_run_start_another(finished: RunResult, tiny: AudioConfig, tmp_path: Path) -> None:
    root = write_tones(tmp_path / "data", classes=2)
    config = override(
        tiny, f"data.source=audio:{root}", f"model.weights={finished.directory}", "engine.epochs=1"
    )
    network = config.network(2, loads_weights=True)
    assert "fc.weight and fc.bias keep random weights" in config.load_initial_weights(network)
    train(config, run_dir=tmp_path / "run")


def test_the_head_is_trained_first(
    finished: RunResult, tiny: AudioConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("model.head_epochs=1", "model.frozen_stages=1", "engine.epochs=2", "engine.save_steps=1")
    config = override(tiny, f"model.weights={finished.directory}", *parts)
    with raised_in_batch(monkeypatch, AudioClassifier, 2):
        train(config, run_dir=tmp_path / "run")
    before = load_run(finished.directory).model().state_dict()
    first = load_run(tmp_path / "run").model("last").state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, first[name])}
    assert changed == {"fc.weight", "fc.bias"}
    train(run_dir=tmp_path / "run", resume=True)
    train(config, run_dir=tmp_path / "straight")
    assert_same_end(tmp_path / "run", tmp_path / "straight")
    last = load_run(tmp_path / "run").model("last").state_dict()
    moved = {name.split(".")[0] for name in last if not torch.equal(last[name], before[name])}
    assert moved == {"blocks", "fc"} | ({"norm"} & {name.split(".")[0] for name in last})


def test_a_run_on_the_hub(
    finished: RunResult, tiny: AudioConfig, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(finished.directory)
    folder = run.save_for_hub(place_on_hub(monkeypatch, tmp_path / "hub"), "last")
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in card
    assert "| sample_rate | `" in card
    assert str(tones) not in card + (folder / "config.json").read_text()
    copy = load_run(folder)
    torch.testing.assert_close(copy.model().state_dict(), run.model("last").state_dict(), rtol=0, atol=0)
    config, line = start_from(override(tiny, "data.sample_rate=4000"), NAME)
    assert (config.model.name, config.data.sample_rate) == (tiny.model.name, run.config.data.sample_rate)
    assert f"sample_rate {run.config.data.sample_rate}" in line
    network = config.network(len(run.classes))
    assert config.load_initial_weights(network) == f"starting from {NAME}"


@pytest.mark.parametrize(("format", "suffix"), [("torch", ".pt2"), ("onnx", ".onnx")])
def test_an_exported_run_gives_the_same_logits(
    format: str, suffix: str, finished: RunResult, tmp_path: Path
) -> None:
    run = load_run(finished.directory)
    file = tmp_path / f"tones{suffix}"
    exported = export_audio(run, file, format=format)
    assert exported.difference < 1e-4 * exported.largest
    assert exported.inputs == {"features": ("batch", 20, "length"), "mask": ("batch", "length")}
    val = open_audio_split(run.config.data, classes=run.classes)
    (features, mask), _ = val.batch(range(5))
    with torch.no_grad():
        expected = run.model()(features, mask)
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file)
        (logits,) = session.run(None, {"features": features.numpy(), "mask": mask.numpy()})
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == list(run.classes)
        assert json.loads(metadata["sample_rate"]) == RATE
        logits = torch.from_numpy(logits)
    else:
        logits = torch.export.load(file).module()(features, mask)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_an_export_that_cannot_be(finished: RunResult, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="batch_size must be at least 1"):
        export_audio(load_run(finished.directory), tmp_path / "a.pt2", format="torch", batch_size=0)


def test_a_folder_of_another_task(finished: RunResult, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    from lambdanets.train import load_run as load_classifier

    with pytest.raises(RunError, match="it is of a run of audio, not of classification"):
        load_classifier(tmp_path / "run")
