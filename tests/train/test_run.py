import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lambdanets.data import DataError
from lambdanets.evaluate.target import create_trained_model
from lambdanets.models import WeightsError
from lambdanets.train import CheckpointError, RunError, RunResult, evaluate, load_run, override
from lambdanets.train.config import stored_task


@pytest.fixture
def copy(finished: RunResult, tmp_path: Path) -> Path:
    return shutil.copytree(finished.directory, tmp_path / "copy")


def test_a_run_opens_wherever_it_lies(copy: Path, finished: RunResult) -> None:
    run = load_run(copy)
    assert run.classes == tuple(str(digit) for digit in range(10))
    assert run.config.model.name == "lambda_resnet_digits"
    assert run.directory == copy
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]
    network = run.model("best")
    assert not network.training
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_from_before_keeps_its_split(copy: Path) -> None:
    """Its images were divided by each name alone, and its config.json does not say so."""
    path = copy / "config.json"
    config = json.loads(path.read_text())
    assert config["data"].pop("hold_out") == "exact"
    path.write_text(json.dumps(config))
    assert load_run(copy).config.data.hold_out == "stable"


def test_the_task_is_stored_and_guessed_for_runs_of_older_versions(copy: Path) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("task") == stored_task(copy) == "classification"
    path.write_text(json.dumps(config))
    assert stored_task(copy) == "classification"
    assert load_run(copy).config.recipe == "digits"
    path.write_text(json.dumps(config | {"data": {"source": "coco:photos"}}))
    assert stored_task(copy) == "detection"
    path.write_text(json.dumps(config | {"task": "regression"}))
    with pytest.raises(RunError, match="of a run of regression, not of classification"):
        load_run(copy)


def test_the_weights_load_in_timm(finished: RunResult) -> None:
    run = load_run(finished.directory)
    network = timm.create_model(
        run.config.model.name, num_classes=10, in_chans=1, checkpoint_path=str(run.files.weights)
    )
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), run.model()(x))


def test_best_and_last_are_what_was_trained(finished: RunResult) -> None:
    run = load_run(finished.directory)
    for which, rows in (("best", [finished.best_epoch]), ("last", [3])):
        metrics = evaluate(run, weights=which)  # pyright: ignore[reportArgumentType]
        # The tiny run looks at two batches of the validation images only, evaluate at all of them.
        assert metrics["images"] == 359
        assert 0 <= metrics["top1"] <= metrics["top5"] <= 1
        assert rows[0] in (1, 2, 3)


def test_evaluate_repeats_the_validation_of_training(tmp_path: Path, finished: RunResult) -> None:
    from lambdanets.train.engine import train

    config = override(load_run(finished.directory).config, "engine.epochs=1", "engine.max_val_batches=None")
    result = train(config, run_dir=tmp_path / "run")
    metrics = evaluate(load_run(tmp_path / "run"))
    assert metrics["top1"] == pytest.approx(result.history[0]["val_top1"], abs=1e-7)
    assert metrics["top5"] == pytest.approx(result.history[0]["val_top5"], abs=1e-7)
    assert metrics["loss"] == pytest.approx(result.history[0]["val_loss"], rel=1e-6)


def test_the_last_weights_come_without_a_safetensors_file(copy: Path) -> None:
    best = load_run(copy).model("best").state_dict()
    (copy / "weights.safetensors").unlink()
    again = load_run(copy).model("best").state_dict()
    assert all(torch.equal(best[name], again[name]) for name in best)


def test_no_run(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no config\.json and no classes\.json"):
        load_run(tmp_path)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks the field"):
        load_run(copy)


def test_a_run_without_a_finished_epoch_has_no_weights(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    (copy / "weights.safetensors").unlink()
    (copy / "metrics.csv").unlink()
    run = load_run(copy)
    assert run.history() == []
    with pytest.raises(RunError, match="no epoch has ended"):
        run.model()


def test_a_run_without_a_validated_epoch_points_to_its_newest_weights(copy: Path) -> None:
    (copy / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="no epoch was validated; --weights last"):
        load_run(copy).model()


def test_weights_for_another_number_of_classes(copy: Path) -> None:
    (copy / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    with pytest.raises(RunError, match=r"are for 10 classes, classes\.json names 3"):
        load_run(copy).model()


def test_weights_of_another_model(copy: Path) -> None:
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("lambda_resnet_digits", "resnet_digits_conv"))
    with pytest.raises(RunError, match=r"are not of 'resnet_digits_conv'"):
        load_run(copy).model()
    (copy / "config.json").write_text(config.replace("lambda_resnet_digits", "lambda_resnet_digit"))
    with pytest.raises(ValueError, match="lambda_resnet_digits"):
        load_run(copy).model()


def test_weights_of_another_shape(copy: Path) -> None:
    weights = load_file(copy / "weights.safetensors")
    name = next(name for name, value in weights.items() if value.ndim == 4)
    weights[name] = weights[name][:, :, :1].contiguous()
    save_file(weights, copy / "weights.safetensors")
    with pytest.raises(RunError, match="has the shape"):
        load_run(copy).model()


def test_damaged_weights_are_taken_from_the_best_checkpoint(copy: Path, capsys: Any) -> None:
    whole = load_run(copy).model().state_dict()
    content = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(content[:500])
    again = load_run(copy).model().state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    said = capsys.readouterr().err
    assert "weights.safetensors is damaged" in said
    assert "best.ckpt" in said
    (copy / "checkpoints" / "best.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"best\.ckpt.*; --weights last takes those of the last epoch$"):
        load_run(copy).model()
    load_run(copy).model("last")
    (copy / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(RunError, match=r"weights\.safetensors is damaged.*and there is no .*best\.ckpt"):
        load_run(copy).model()


def test_a_changed_byte_among_the_weights_is_damage(copy: Path, capsys: Any) -> None:
    whole = load_run(copy).model().state_dict()
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-9] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    again = load_run(copy).model().state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    said = capsys.readouterr().err
    assert "weights.safetensors is damaged: the checksum" in said
    assert "the weights come from" in said


def test_weights_that_are_not_finite_are_refused(copy: Path, finished: RunResult) -> None:
    weights = load_file(copy / "weights.safetensors")
    weights["bn1.weight"] = weights["bn1.weight"] * torch.nan
    save_file(weights, copy / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"copy cannot be used: 32 of the 32 .* of bn1\.weight are NaN"):
        load_run(copy).model()
    folder = load_run(finished.directory).save_for_hub(copy.with_name("hub"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"local-dir:.*: 32 of the 32 elements of bn1\.weight"):
        create_trained_model(f"local-dir:{folder}")


@pytest.mark.parametrize("wrong", [{"num_classes": "x"}, {"pretrained_cfg": {"input_size": "x"}}])
def test_a_config_of_the_hub_with_values_of_other_types_is_told(
    finished: RunResult, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    folder = load_run(finished.directory).save_for_hub(tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text()) | wrong
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"^local-dir:.*hub cannot be created: "):
        create_trained_model(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["config.json", "classes.json"])
@pytest.mark.parametrize(
    "text",
    ['{"half', "3", '{"data": 3}', "\udcff", "[" * 100_000],
    ids=["half", "3", "data", "bytes", "deep"],
)
def test_a_broken_file_is_named(copy: Path, name: str, text: str) -> None:
    (copy / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        load_run(copy)


def test_evaluating_on_other_classes_is_refused(finished: RunResult, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 40 * number).save(tmp_path / "photos" / name / f"{number}.png")
    run = load_run(finished.directory)
    data = override(run.config, f"data.source=folder:{tmp_path / 'photos'}", "data.val_fraction=1.0").data
    with pytest.raises(DataError):
        evaluate(run, data)
