"""Runs that start from weights: of another run, with other classes, and how they go on."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from lambdanets.data import DataError
from lambdanets.models import WeightsError, create_model
from lambdanets.train import ModelConfig, RunConfig, RunResult, evaluate, load_run, override
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.engine import train
from runs import assert_same_end


def starting(config: RunConfig, weights: object, *changes: str) -> RunConfig:
    return override(config, f"model.weights={weights}", *changes)


@pytest.fixture
def source(finished: RunResult, tmp_path: Path) -> Path:
    return shutil.copytree(finished.directory, tmp_path / "source")


def test_a_run_starts_where_another_ended(
    tiny: RunConfig, source: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Steps and statistics so small that no number changes.
    still = (
        "optimizer.lr=1e-12",
        "model.bn_momentum=1e-12",
        "engine.epochs=1",
        "engine.max_val_batches=None",
    )
    result = train(starting(tiny, source, *still), run_dir=folder)
    assert f"starting from {source}\n" in capsys.readouterr().out
    reached = evaluate(load_run(source))
    assert result.history[0]["val_top1"] == pytest.approx(reached["top1"], abs=1e-7)
    assert result.history[0]["val_loss"] == pytest.approx(reached["loss"], rel=1e-6)
    without = train(override(tiny, *still), run_dir=folder.with_name("without"))
    assert without.history[0]["val_loss"] != pytest.approx(reached["loss"], rel=1e-5)


def test_the_average_starts_there_too(tiny: RunConfig, source: Path, folder: Path) -> None:
    config = starting(tiny, source, "engine.epochs=1", "engine.ema=0.999999999", "engine.max_batches=1")
    train(replace(config, optimizer=replace(config.optimizer, lr=1e-12)), run_dir=folder)
    first, second = (load_run(each).model("best").fc.weight for each in (source, folder))
    torch.testing.assert_close(second, first)


def test_a_head_of_other_classes_starts_anew(
    tiny: RunConfig, source: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("cat", "cow", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), 12 * number).save(tmp_path / "photos" / name / f"{number}.png")
    photos = (f"data.source=folder:{tmp_path / 'photos'}", "data.val_fraction=0.3", "optimizer.lr=1e-12")
    config = starting(tiny, source, *photos, "engine.epochs=1", "model.bn_momentum=1e-12")
    train(config, run_dir=folder)
    said = capsys.readouterr().out
    assert (
        f"starting from {source}; fc.weight and fc.bias keep random weights: its head is for another" in said
    )
    old, new = (load_run(each).model("best").state_dict() for each in (source, folder))
    assert new["fc.weight"].shape == (3, 128)
    torch.testing.assert_close(new["layer2.0.conv2.positions"], old["layer2.0.conv2.positions"])


def test_a_resumed_run_has_its_own_weights(
    tiny: RunConfig, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    config = starting(tiny, "source")
    straight = folder.with_name("straight")
    train(config, run_dir=straight)
    digest = hashlib.sha256((source / "weights.safetensors").read_bytes()).hexdigest()
    assert load_run(straight).config.model.weights == str(source)
    assert load_checkpoint(straight / "checkpoints" / "last.ckpt")["run_state"]["weights_digest"] == digest

    from lambdanets.train import TrainingInterrupted
    from runs import interrupt

    interrupt(monkeypatch, 15, batch=6)
    with pytest.raises(TrainingInterrupted):
        train(config, run_dir=folder)
    shutil.rmtree(source)
    monkeypatch.chdir(folder)
    train(run_dir=folder, resume=True)
    assert_same_end(straight, folder)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["run_state"]["weights_digest"] == digest


def test_weights_that_cannot_be_are_told_before_the_images_are_read(tiny: RunConfig, folder: Path) -> None:
    nowhere = "data.source=folder:nowhere"
    with pytest.raises(WeightsError, match=r"there are no weights .*nothing"):
        train(starting(tiny, "nothing", nowhere), run_dir=folder)
    with pytest.raises(DataError):
        train(override(tiny, nowhere), run_dir=folder)
    assert not folder.exists()


def test_weights_of_another_model_leave_no_folder(tiny: RunConfig, source: Path, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"not those of resnet_digits_conv.*those of lambda_resnet_digits"):
        train(starting(tiny, source, "model.name=resnet_digits_conv"), run_dir=folder)
    assert not folder.exists()


def test_weights_of_timm_s_own_option_still_work(tiny: RunConfig, tmp_path: Path) -> None:
    from lambdanets.train.engine import CLASSIFICATION, build_learner

    model = create_model("lambda_resnet_digits", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pt")}}
    config = replace(tiny, model=replace(tiny.model, options=options))
    network = build_learner(CLASSIFICATION, config, [*"0123456789"]).network
    torch.testing.assert_close(network.state_dict(), model.state_dict(), rtol=0, atol=0)
    (tmp_path / "w.pt").unlink()
    # A checkpoint follows: nothing is read, nothing fetched.
    build_learner(CLASSIFICATION, config, [*"0123456789"], continues=True)
    with pytest.raises(ValueError, match="both give initial weights"):
        ModelConfig(name="lambda_resnet_digits", options={"pretrained": True}, weights="w.pt")
    with pytest.raises(ValueError, match=r"model\.weights is a file, a folder or hf-hub:OWNER/NAME"):
        replace(tiny.model, weights="")


def test_weights_on_the_hub_are_no_path(tiny: RunConfig) -> None:
    assert starting(tiny, "hf-hub:timm/some").model.resolved().weights == "hf-hub:timm/some"


def test_a_run_becomes_a_folder_for_the_hub(finished: RunResult, tmp_path: Path) -> None:
    run = load_run(finished.directory)
    folder = run.save_for_hub(tmp_path / "hub")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x), run.model()(x))
    cfg = network.pretrained_cfg
    assert tuple(cfg["label_names"]) == run.classes
    assert (tuple(cfg["input_size"]), tuple(cfg["mean"]), tuple(cfg["std"])) == (
        (1, 8, 8),
        (0.305,),
        (0.376,),
    )


def test_processes_with_other_weights_are_told(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambdanets.train.launch import check_same_on_all_ranks

    mine: list[dict[str, str]] = []

    def gather(everyone: list[object], own: dict[str, str]) -> None:
        mine.append(own)
        everyone[:] = [own, own | ({"weights to start from": "cd"} if len(mine) > 2 else {})]

    for name, result in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 0)):
        monkeypatch.setattr(torch.distributed, name, lambda result=result: result)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for place in ("here.pt", "there.pt"):
        check_same_on_all_ranks(starting(tiny, place), "images", "ab")
    assert mine[0] == mine[1]  # the same weights may lie elsewhere
    with pytest.raises(ValueError, match="process 1 of the run has other weights to start from than process"):
        check_same_on_all_ranks(tiny, "images", "ab")
