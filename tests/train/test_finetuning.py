"""Runs from trained weights: settings that come from them, frozen parts, the head first, and longer runs."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from hub_cache import place_on_hub
from lambdanets.audio import AudioConfig
from lambdanets.data import AudioDataConfig
from lambdanets.detection import DetectionConfig
from lambdanets.models import WeightsError, create_language_model, create_model, save_for_hub
from lambdanets.models.freezing import freeze_stages
from lambdanets.models.interop.layers import TimmLambdaLayer
from lambdanets.recipes import get_recipe, nuclei
from lambdanets.text import TextConfig
from lambdanets.train import ModelConfig, OptimizerConfig, RunConfig, RunError, RunResult, load_run, override
from lambdanets.train.checkpoint import load_checkpoint
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import dump_config
from lambdanets.train.engine import train
from lambdanets.train.errors import TrainingInterrupted
from lambdanets.train.initial_weights import describe_other_split, start_from
from lambdanets.train.optim import create_optimizer
from runs import assert_same_end, interrupt


@pytest.fixture
def source(finished: RunResult, tmp_path: Path) -> Path:
    return shutil.copytree(finished.directory, tmp_path / "source")


def from_source(config: RunConfig, source: Path, *changes: str) -> RunConfig:
    return override(config, f"model.weights={source}", *changes)


def state_after(folder: Path, name: str = "last") -> dict[str, Tensor]:
    states = load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return {
        key.removeprefix("network."): value for key, value in states.items() if key.startswith("network.")
    }


# Settings that come from the weights


def test_a_run_gives_the_model_and_the_form_of_the_images(tiny: RunConfig, finished: RunResult) -> None:
    stored = json.loads((finished.directory / "config.json").read_text())
    for weights in (finished.directory, finished.directory / "weights.safetensors"):
        config, line = start_from(get_recipe("finetune"), str(weights))
        assert (config.model.name, config.model.weights) == ("lambda_resnet_digits", str(weights))
        assert config.model.options == {"drop_path_rate": 0.2}
        for name in ("image_size", "in_chans", "mean", "std", "crop_pct", "interpolation"):
            value = getattr(config.data, name)
            assert (list(value) if isinstance(value, tuple) else value) == stored["data"][name], name
        # Everything else is the recipe's.
        assert (config.engine.epochs, config.data.batch_size, config.optimizer.name) == (20, 32, "adamw")
        assert line == (
            "from the weights: lambda_resnet_digits; 8 pixels; 1 channel; mean 0.305; std 0.376; "
            "crop_pct 1.0; interpolation bicubic"
        )


def test_fields_that_are_given_stay(finished: RunResult) -> None:
    settings = ("data.image_size=16", "model.options.drop_path_rate=0.0", "model.head_epochs=2")
    recipe = override(get_recipe("finetune"), *settings)
    given = ["data.image_size", "model.options.drop_path_rate"]
    config, line = start_from(recipe, str(finished.directory), given=given)
    assert (config.data.image_size, config.data.in_chans) == (16, 1)
    assert (config.model.name, config.model.options) == ("lambda_resnet_digits", {"drop_path_rate": 0.0})
    assert "pixels" not in line
    other = recipe.with_model("resnet_digits_conv")
    assert other.model.head_epochs == 2
    config, line = start_from(other, str(finished.directory), given=["model.name"])
    assert (config.model.name, config.model.options) == ("resnet_digits_conv", {})
    assert line.startswith("from the weights: 8 pixels")


def test_a_folder_as_on_the_hub_gives_timm_s_configuration(finished: RunResult, tmp_path: Path) -> None:
    folder = load_run(finished.directory).save_for_hub(tmp_path / "hub")
    config, _ = start_from(get_recipe("finetune"), str(folder))
    cfg: Any = timm.create_model(f"local-dir:{folder}").pretrained_cfg
    assert config.model.name == "lambda_resnet_digits"
    assert (config.data.in_chans, config.data.image_size, config.data.image_size) == tuple(cfg["input_size"])
    assert (config.data.mean, config.data.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    assert "in_chans" not in config.model.options


def test_a_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_on_hub(monkeypatch, tmp_path / "hub")
    model = create_model("resnet_digits_conv", num_classes=4)
    images = {"input_size": (3, 24, 24), "crop_pct": 0.9, "interpolation": "bilinear"}
    save_for_hub(model, place, images=images)
    for name in ("hf-hub:owner/name", "hub:owner/name"):
        config, _ = start_from(get_recipe("finetune"), name)
        data = config.data
        assert (config.model.name, config.model.resolved().weights) == (
            "resnet_digits_conv",
            "hf-hub:owner/name",
        )
        assert (data.image_size, data.crop_pct, data.interpolation) == (24, 0.9, "bilinear")
        network = config.network(5)
        config.load_initial_weights(network)
        assert torch.equal(network.state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])
    with pytest.raises(WeightsError, match=r"^hf-hub:owner/none cannot be downloaded: "):
        start_from(get_recipe("finetune"), "hf-hub:owner/none")


def test_published_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("finetune").with_model("resnet10t.c3_in1k")
    config, _ = start_from(recipe, "pretrained")
    cfg = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert cfg is not None
    assert (config.model.name, config.model.weights) == ("resnet10t.c3_in1k", "pretrained")
    assert config.data.image_size == cfg.input_size[-1]
    assert (config.data.crop_pct, config.data.interpolation) == (cfg.crop_pct, cfg.interpolation)
    config.check_start()
    assert config.model.resolved() == config.model
    # The option of older configurations is the same.
    assert ModelConfig(name="x", options={"pretrained": True, "a": 1}) == ModelConfig(
        name="x", options={"a": 1}, weights="pretrained"
    )
    # timm adapts the first layer to grey images, whose mean is that of the data.
    grey, _ = start_from(override(recipe, "data.in_chans=1"), "pretrained", given=["data.in_chans"])
    assert (grey.data.in_chans, grey.data.mean, grey.data.image_size) == (1, None, 176)
    with pytest.raises(
        WeightsError, match=r"no trained weights of lambda_resnet_mini are published: choose a"
    ):
        start_from(get_recipe("finetune"), "pretrained")[0].check_start()
    monkeypatch.setattr("timm.models._builder.load_pretrained", _offline)
    with pytest.raises(WeightsError, match=r"published weights of resnet10t\.c3_in1k cannot be loaded"):
        config.network(3)


def _offline(*args: object, **options: object) -> None:
    raise OSError("no connection")


def test_recordings_give_their_features_and_text_its_model(tmp_path: Path) -> None:
    data = AudioDataConfig(source="audio:/a", sample_rate=8000, bands=24, window=0.04, hop=0.02, seconds=2.0)
    run = AudioConfig(recipe="audio", model=ModelConfig(name="lambda_audio_small"), data=data)
    (tmp_path / "config.json").write_text(dump_config(run))
    config, line = start_from(get_recipe("audio"), str(tmp_path))
    assert (config.data.sample_rate, config.data.bands, config.data.window, config.data.hop) == (
        8000,
        24,
        0.04,
        0.02,
    )
    assert (config.model.name, config.data.seconds) == ("lambda_audio_small", None)
    assert "sample_rate 8000; bands 24; window 0.04; hop 0.02" in line
    with pytest.raises(WeightsError, match="is a run of audio, whose weights are not for classification"):
        start_from(get_recipe("folder"), str(tmp_path))
    text = override(get_recipe("text"), "model.options.dim=32", "data.context=16")
    assert isinstance(text, TextConfig)
    (tmp_path / "config.json").write_text(dump_config(text))
    config, _ = start_from(get_recipe("text"), str(tmp_path))
    assert (config.model.options, config.data.context) == ({"dim": 32}, 64)
    with pytest.raises(ValueError, match="no weights of language models are published"):
        start_from(get_recipe("text"), "pretrained")


def test_a_detector_takes_mean_and_deviation_of_a_classifier(tmp_path: Path, finished: RunResult) -> None:
    run = override(
        get_recipe("folder"),
        "data.mean=(0.1,0.2,0.3)",
        "data.std=(0.4,0.5,0.6)",
        "model.name=lambda_resnet50",
    )
    (tmp_path / "config.json").write_text(dump_config(run))
    config, line = start_from(nuclei(), str(tmp_path))
    assert isinstance(config, DetectionConfig)
    assert (config.model.name, config.model.fpn_channels) == ("lambda_resnet50", 96)
    assert (config.model.image_mean, config.model.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert "image_mean 0.1, 0.2, 0.3; image_std 0.4, 0.5, 0.6" in line
    with pytest.raises(WeightsError, match="for images of 1 channel, and a detector takes 3"):
        start_from(nuclei(), str(finished.directory))
    # A detector gives all that its weights depend on.
    (tmp_path / "config.json").write_text(
        dump_config(override(nuclei(), "model.box_dim=64", "data.masks=False"))
    )
    config, _ = start_from(get_recipe("coco"), str(tmp_path))
    assert config.model == replace(nuclei().model, box_dim=64, weights=str(tmp_path))
    assert (config.data.masks, config.data.image_size) == (False, 1024)


def test_other_channels_are_one_sentence(finished: RunResult) -> None:
    recipe = override(get_recipe("finetune"), "data.in_chans=3")
    with pytest.raises(
        RunError, match=r"are for images of 1 channel, and data\.in_chans is 3: leave data\.in_ch"
    ):
        start_from(recipe, str(finished.directory), given=["data.in_chans"])


# Frozen parts


def test_frozen_stages_keep_every_bit(tiny: RunConfig, source: Path, folder: Path) -> None:
    train(from_source(tiny, source, "model.frozen_stages=2", "engine.ema=0.5"), run_dir=folder)
    before, after = load_file(source / "weights.safetensors"), state_after(folder)
    averaged, frozen = load_file(folder / "weights.safetensors"), ("conv1.", "bn1.", "layer1.")
    for name, value in before.items():
        if name.startswith(frozen):
            assert torch.equal(value, after[name]), name
            # The average of equal numbers may differ by rounding.
            torch.testing.assert_close(averaged[name], value)
    for name in ("layer2.0.conv1.weight", "layer2.0.bn1.running_mean", "fc.weight"):
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("model.frozen_stages=4",),
            r"at most 3, the stem and the other stages of lambda_resnet_digits; got 4",
        ),
        (("model.frozen_stages=-1",), r"model\.frozen_stages is 0 or more; got -1"),
        (("model.head_epochs=-1",), r"model\.head_epochs is 0 or more; got -1"),
        (("model.accelerate=true", "model.name=resnet10t"), "model.accelerate has no effect on resnet10t"),
    ],
)
def test_parts_that_are_not_there(
    tiny: RunConfig, source: Path, changes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_source(tiny, source, *changes).network(10)


def test_frozen_parts_need_weights(tiny: RunConfig, folder: Path) -> None:
    for field in ("frozen_stages", "head_epochs"):
        with pytest.raises(
            ValueError, match=rf"model\.{field}=1 needs trained weights .* add --weights with the"
        ):
            train(override(tiny, f"model.{field}=1"), run_dir=folder)
    assert not folder.exists()


def test_the_head_is_trained_first(tiny: RunConfig, source: Path, folder: Path) -> None:
    settings = ("model.head_epochs=1", "engine.epochs=1", "engine.max_batches=4", "engine.clip_grad=1")
    train(from_source(tiny, source, *settings), run_dir=folder)
    before, after = load_file(source / "weights.safetensors"), state_after(folder)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    momenta = load_checkpoint(folder / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"]
    assert sorted(tuple(each["momentum_buffer"].shape) for each in momenta.values()) == [(10,), (10, 128)]


def test_the_head_learns_as_on_fixed_features(tiny: RunConfig, source: Path, folder: Path) -> None:
    """The oracle: a linear layer alone, trained by PyTorch's own SGD on the body's features."""
    batches: list[tuple[Tensor, Tensor]] = []
    original: Callable = Classifier.step

    def keep(self: Classifier, batch: tuple[Tensor, Tensor]) -> object:
        batches.append(batch)
        return original(self, batch)

    config = from_source(tiny, source, "model.head_epochs=3", "engine.epochs=1", "schedule.name=constant")
    config = override(config, "schedule.warmup_epochs=0", "loss.label_smoothing=0.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "step", keep)
        train(config, run_dir=folder)
    network: Any = load_run(source).model().double()
    head = network.fc
    rate, decay = config.optimizer.lr, config.optimizer.weight_decay
    groups = [{"params": head.weight, "weight_decay": decay}, {"params": head.bias, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    for images, targets in batches:
        with torch.no_grad():
            features = network.forward_head(network.forward_features(images.double()), pre_logits=True)
        loss = torch.nn.functional.cross_entropy(head(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(batches) == 4
    torch.testing.assert_close(
        state_after(folder)["fc.weight"].double(), head.weight.detach(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("batch", [2, 6])
def test_a_run_that_begins_with_its_head_is_resumed_exactly(
    tiny: RunConfig, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    settings = (
        "model.head_epochs=1",
        "model.frozen_stages=1",
        "engine.epochs=2",
        "optimizer.layer_decay=0.5",
    )
    config = from_source(tiny, source, *settings)
    straight = folder.with_name("straight")
    train(config, run_dir=straight)
    interrupt(monkeypatch, 15, batch=batch)
    with pytest.raises(TrainingInterrupted):
        train(config, run_dir=folder)
    train(run_dir=folder, resume=True)
    assert_same_end(straight, folder)
    changed = state_after(folder)
    assert not torch.equal(
        changed["layer1.0.conv1.weight"], load_file(source / "weights.safetensors")["layer1.0.conv1.weight"]
    )


def test_stages_of_recordings() -> None:
    network = create_model("lambda_audio", num_classes=3, in_chans=8)
    freeze_stages(network, 2, "lambda_audio")
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    depth: Any = network.config
    first = tuple(f"blocks.{number}." for number in range(depth.depths[0]))
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith(("stem", *first))}
    stages = 1 + len(depth.depths)
    with pytest.raises(ValueError, match=rf"is at most {stages}, .* of lambda_audio; got 9"):
        freeze_stages(network, 9, "lambda_audio")


# Learning rates by layer


def learning_rates(network: torch.nn.Module) -> dict[str, float]:
    optimizer = create_optimizer(network, OptimizerConfig(name="adamw", lr=1.0, layer_decay=0.5))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    return {name: scales[id(p)] for name, p in network.named_parameters() if p.requires_grad}


def test_learning_rates_fall_from_layer_to_layer() -> None:
    rates = learning_rates(create_model("lambda_resnet_digits", num_classes=3, in_chans=1))
    # From the top: head, then blocks from the last to the first, then the stem.
    blocks = sorted(
        {name.split(".")[0] + "." + name.split(".")[1] for name in rates if name.startswith("layer")}
    )
    depths = {"fc": 0} | {block: number for number, block in enumerate(reversed(blocks), 1)}
    depths |= {"conv1": len(blocks) + 1, "bn1": len(blocks) + 1}
    for name, rate in rates.items():
        part = ".".join(name.split(".")[:2]) if name.startswith("layer") else name.split(".")[0]
        assert rate == 0.5 ** depths[part], name


def test_learning_rates_of_recordings_and_text() -> None:
    audio = learning_rates(create_model("lambda_audio_small", num_classes=3, in_chans=8))
    depths = {"fc": 0, "blocks.2": 1, "blocks.1": 2, "blocks.0": 3, "stem.0": 4, "stem_norms.0": 4}
    for name, rate in audio.items():
        part = "fc" if name.startswith("fc") else ".".join(name.split(".")[:2])
        assert rate == 0.5 ** depths[part], name
    text = learning_rates(create_language_model("lambda_lm_mini", vocabulary=9))
    depths = {"norm": 0, "blocks.3": 1, "blocks.2": 2, "blocks.1": 3, "blocks.0": 4, "embedding": 5}
    for name, rate in text.items():
        part = ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
        assert rate == 0.5 ** depths[part], name


def test_the_optimiser_steps_with_these_rates(
    tiny: RunConfig, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[float, float, int]]] = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        loss = original(self, *args, **options)  # the closure sets the rates
        seen.append([(g["lr"], g["lr_scale"], len(g["params"])) for g in self.param_groups])
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    settings = (
        "optimizer.layer_decay=0.5",
        "model.frozen_stages=2",
        "engine.epochs=1",
        "schedule.name=constant",
    )
    config = from_source(tiny, source, *settings, "schedule.warmup_epochs=0", "optimizer.lr=0.01")
    train(config, run_dir=folder)
    names = [
        name for name in load_file(source / "weights.safetensors") if name.startswith(("layer2.", "fc."))
    ]
    trained = {name for name, _ in load_run(source).model().named_parameters()} & set(names)
    for groups in seen:
        assert sum(number for *_, number in groups) == len(trained)
        assert {lr / scale for lr, scale, _ in groups} == {0.01}
        assert max(scale for _, scale, _ in groups) == 1.0
        assert min(scale for _, scale, _ in groups) < 1.0


# Layers of timm


def test_accelerated_layers_keep_the_names_of_timm(tiny: RunConfig, folder: Path) -> None:
    small = ("data.image_size=32", "engine.epochs=1", "engine.max_batches=1", "engine.max_val_batches=1")
    config = override(
        tiny.with_model("lambda_resnet26t"), *small, "model.accelerate=true", "data.batch_size=4"
    )
    train(config, run_dir=folder)
    network = load_run(folder).model()
    assert sum(isinstance(layer, TimmLambdaLayer) for layer in network.modules()) == 3
    theirs = timm.create_model(
        "lambda_resnet26t", num_classes=10, in_chans=1, checkpoint_path=str(folder / "weights.safetensors")
    ).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=1e-4, atol=1e-4)


# Longer runs


def test_a_finished_run_is_trained_longer(
    tiny: RunConfig,
    finished: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [shutil.copytree(finished.directory, tmp_path / name) for name in ("straight", "stopped")]
    longer = override(tiny, "engine.epochs=5")
    result = train(longer, run_dir=folders[0], resume=True)
    said = capsys.readouterr().out
    assert "5 epochs instead of 3: the next steps have the learning rates of a run of 5 epochs" in said
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5]
    assert result.history[:3] == finished.history
    # Cosine after a warm-up of one epoch, 4 of now 20 steps; the last steps of epochs 4 and 5 are 15 and 19.
    for row, step in zip(result.history[3:], (15, 19), strict=True):
        assert row["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2)
    assert json.loads((folders[0] / "config.json").read_text())["engine"]["epochs"] == 5
    assert "of 5\n" in (folders[0] / "summary.txt").read_text()
    interrupt(monkeypatch, 15, batch=14)
    with pytest.raises(TrainingInterrupted):
        train(longer, run_dir=folders[1], resume=True)
    assert not (folders[1] / "summary.txt").exists()
    train(run_dir=folders[1], resume=True)
    assert_same_end(*folders)


def test_a_run_is_not_shorter_than_what_is_done(tiny: RunConfig, finished: RunResult) -> None:
    with pytest.raises(RunError, match=r"has done 3 epochs already, more than engine\.epochs=2"):
        train(override(tiny, "engine.epochs=2"), run_dir=finished.directory, resume=True)
    assert json.loads((finished.directory / "config.json").read_text())["engine"]["epochs"] == 3


@pytest.mark.parametrize("weights", [None, "pretrained", "hf-hub:me/digits"])
def test_a_run_in_the_working_directory_is_not_that_of_the_weights(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    monkeypatch.chdir(finished.directory)
    config = load_run(finished.directory).config
    other = replace(config, seed=config.seed + 1, model=replace(config.model, weights=weights))
    assert describe_other_split(other, "") == ""
