"""`load_weights`: all kinds of files, heads, position tables, timm's models, and errors."""

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from closeness import assert_close
from foreign import awake, saved
from lambdanets import LambdaLayer1d, LambdaLayer2d, accelerate
from lambdanets.models import WeightsError, create_model, load_weights

DIM = 24
ONE = "lambda_resnet_digits"


def assert_same(model: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


# Files


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_file(tmp_path: Path, name: str) -> None:
    model, other = create_model(ONE), create_model(ONE)
    assert load_weights(other, saved(model, tmp_path / name)) == ()
    assert_same(other, model)
    load_weights(create_model(ONE), str(tmp_path / name))


def wrapped(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda m, other: {"state_dict": m, "epoch": 3},
        lambda m, other: {"model": m, "optimizer": {"lr": 0.1}},
        lambda m, other: {"state_dict": other, "state_dict_ema": m},
        lambda m, other: {"state_dict": m, "args": argparse.Namespace(lr=0.1)},
        lambda m, other: wrapped("module.", m),
        lambda m, other: wrapped("_orig_mod.", m),
        lambda m, other: {"state_dict": wrapped("module._orig_mod.", m)},
        lambda m, other: {"model_state_dict": m, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda m, other: {"epoch": 3, "net": m, "model": "resnet"},
        lambda m, other: wrapped("module.", m) | {"n_averaged": torch.tensor(7)},
        lambda m, other: {"state_dict": wrapped("model.", m)},
        lambda m, other: wrapped("net.module.backbone.", m),
        lambda m, other: {k: v for k, v in m.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=[
        *("state_dict", "model", "ema", "timm", "ddp", "compiled", "both"),
        *("model_state_dict", "net", "averaged", "lightning", "nested", "old_batch_norms"),
    ],
)
def test_files_of_training_scripts_load(tmp_path: Path, form: Callable[..., Any]) -> None:
    model, other = create_model(ONE), create_model(ONE)
    load_weights(
        other,
        saved(form(model.state_dict(), create_model(ONE).state_dict()), tmp_path / "checkpoint.pth.tar"),
    )
    assert_same(other, model)


def test_a_file_of_several_networks_is_refused(tmp_path: Path) -> None:
    states = [create_model(ONE).state_dict() for _ in range(2)]
    path = saved(dict(zip(("student", "teacher"), states, strict=True)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="several networks' weights, 'student', 'teacher': save the one"):
        load_weights(create_model(ONE), path)
    path = saved(wrapped("net.", states[0]) | wrapped("ema.", states[1]), tmp_path / "w.pt")
    number = len(states[0])
    with pytest.raises(WeightsError, match=rf"has {number} in 'net' and {number} in 'ema' under the model's"):
        load_weights(create_model(ONE), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer2.0.conv2.positions", "bn1.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    source, model = create_model(ONE), create_model(ONE)
    source.state_dict()[name].flatten()[0] = value
    before = copy.deepcopy(model)
    number = source.state_dict()[name].numel()
    expected = rf"w\.pt cannot be used: 1 of the {number:,} elements of {name} are NaN or infinite"
    with pytest.raises(WeightsError, match=expected):
        load_weights(model, saved(source, tmp_path / "w.pt"))
    assert_same(model, before)


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda x: x.to("meta"), lambda x: x + 0j])
def test_what_is_no_plain_number_is_refused(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    model = create_model(ONE)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(iter(weights))
    weights[name] = change(weights[name])
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"w\.pt cannot be used: {name} is sparse, quantised, complex or"):
        load_weights(model, tmp_path / "w.pt")


def test_weights_in_eight_bits(tmp_path: Path) -> None:
    """PyTorch has no comparison for them."""
    source, model = create_model(ONE), create_model(ONE)
    narrow = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor
        for name, tensor in source.state_dict().items()
    }
    torch.save(narrow, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, narrow[name].to(tensor.dtype)), name


@pytest.mark.parametrize("name", ["weights.safetensors", "model.safetensors", "pytorch_model.bin"])
def test_a_folder(tmp_path: Path, name: str) -> None:
    model, other = create_model(ONE), create_model(ONE)
    saved(model, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    load_weights(other, tmp_path)
    assert_same(other, model)


@pytest.mark.parametrize("parts", [("network.",), ("network.", "average.")])
def test_a_checkpoint_of_a_run(tmp_path: Path, parts: tuple[str, ...]) -> None:
    models = [create_model(ONE) for _ in parts]
    states: dict[str, Tensor] = {}
    for part, model in zip(parts, models, strict=True):
        states |= wrapped(part, model.state_dict())
    other = create_model(ONE)
    load_weights(other, saved({"state_dict": states, "global_step": 3}, tmp_path / "last.ckpt"))
    assert_same(other, models[-1])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a model into the cache of huggingface_hub, and disable the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def publish(model: nn.Module, owner: str, name: str, file: str, revision: str = "main") -> None:
        place, commit = tmp_path / "hub" / f"models--{owner}--{name}", f"{len(revision):040x}"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
        saved(model, place / "snapshots" / commit / file)

    return publish


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_hub(hub: Callable[..., None], file: str) -> None:
    model, other, newer = (create_model(ONE) for _ in range(3))
    hub(model, "timm", "some.digits", file)
    load_weights(other, "hf-hub:timm/some.digits")
    assert_same(other, model)
    hub(newer, "timm", "some.digits", file, revision="v2")
    load_weights(other, "hf-hub:timm/some.digits@v2")
    assert_same(other, newer)


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", ""])
def test_a_missing_model_on_the_hub_is_an_error(hub: Callable[..., None], name: str) -> None:
    with pytest.raises(WeightsError, match=f"hf-hub:{name} (cannot be downloaded|gives no model.saf.*): "):
        load_weights(create_model(ONE), f"hf-hub:{name}")


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, (Harmful.place,)

    place = ""


@pytest.mark.parametrize("new", [True, False], ids=["archive", "legacy"])
def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, new: bool) -> None:
    Harmful.place = str(tmp_path / "harm")
    content = {"state_dict": create_model(ONE).state_dict(), "more": Harmful()}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match=r"w\.pt holds more than tensors.*run code.*ask for safetensors"):
        load_weights(create_model(ONE), tmp_path / "w.pt")
    assert not Path(Harmful.place).exists()


def test_a_whole_model_is_refused_by_the_names_of_its_classes(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"holds more than tensors and plain values \(torch\.nn\.modules\.linear\.Linear\)"
    ):
        load_weights(create_model(ONE), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 5, 5000, -100])
def test_a_damaged_file(tmp_path: Path, name: str, keep: int) -> None:
    path = saved(create_model(ONE), tmp_path / name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"is damaged"):
        load_weights(create_model(ONE), path)


@pytest.mark.parametrize("content", [{"epoch": 3, "net": {"a": 1}}, {}, {"state_dict": {"a": 1}}, [1]])
def test_a_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no weights"):
        load_weights(create_model(ONE), tmp_path / "w.pt")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there are no weights .*nowhere: no such file or folder"):
        load_weights(create_model(ONE), tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"holds no weights: it has none of weights\.safetensors, "):
        load_weights(create_model(ONE), tmp_path)


# Errors


@pytest.mark.parametrize(
    ("source", "target", "complaint"),
    [
        (ONE, "resnet_digits_conv", r"3 of its \d+ tensors are missing \(the first is layer1\.1\.conv2\.w"),
        (ONE, "resnet_digits_conv", r"42 are unknown \(the first is .*; they look like those of " + ONE),
        ("resnet50_lambda", "lambda_resnet50", "not those of lambda_resnet50: .* those of resnet50_lambda"),
        ("lambda_resnet26t", "lambda_resnet50ts", r"look like those of timm \(lambda_resnet26t\)"),
        ("mobilenetv2_lambda", ONE, "look like those of mobilenetv2_lambda"),
        ("resnet18", ONE, r"unknown \(the first is \S+\)$"),
    ],
)
def test_weights_of_another_model(tmp_path: Path, source: str, target: str, complaint: str) -> None:
    path = saved(timm.create_model(source), tmp_path / "w.pt")
    model = create_model(target)
    before = copy.deepcopy(model)
    with pytest.raises(WeightsError, match=complaint):
        load_weights(model, path, head="replace")
    assert_same(model, before)


def test_options_of_the_model_that_differ(tmp_path: Path) -> None:
    path = saved(create_model(ONE), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"has the shape \(7, 7, 16, 1\), the model needs \(7, 7, 8"):
        load_weights(create_model(ONE, dim_k=8), path)
    with pytest.raises(WeightsError, match=r"conv1\.weight has the shape \(32, 1, 3, 3\)"):
        load_weights(create_model(ONE, in_chans=3), path)


@pytest.mark.parametrize("option", ["head", "positions"])
def test_an_unknown_choice_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(WeightsError, match=f"{option} must be one of same, .*, got 'no'"):
        load_weights(create_model(ONE), tmp_path, **{option: "no"})


@pytest.mark.parametrize(
    ("name", "head"),
    [(ONE, "fc"), ("mobilenetv2_lambda", "classifier"), ("lambda_resnet26t", "head.fc")],
)
def test_the_head_of_other_classes_is_replaced_on_demand(tmp_path: Path, name: str, head: str) -> None:
    source = create_model(name, num_classes=5)
    path = saved(source, tmp_path / "w.safetensors")
    model = create_model(name, num_classes=3)
    with pytest.raises(WeightsError, match="are for 5 classes and the model is for 3; head='replace'"):
        load_weights(model, path)
    own = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(f"{head}.")}
    assert load_weights(model, path, head="replace") == (f"{head}.weight", f"{head}.bias")
    expected = source.state_dict() | own
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    same, none = create_model(name, num_classes=5), create_model(name, num_classes=0)
    assert load_weights(same, path, head="replace") == ()
    assert_same(same, source)
    assert load_weights(none, path, head="replace") == ()
    assert set(none.state_dict()) == set(source.state_dict()) - set(own)


# Position tables


def test_a_global_table_is_interpolated_as_the_layer_does_it(tmp_path: Path) -> None:
    layer = LambdaLayer2d(DIM, grid=(4, 7), dim_u=2)
    path = saved(nn.Sequential(layer), tmp_path / "w.pt")
    other = LambdaLayer2d(DIM, grid=(6, 5), dim_u=2)
    with pytest.raises(WeightsError, match=r"0\.positions has embeddings for 7 x 13 offsets, .* for 11 x 9;"):
        load_weights(nn.Sequential(other), path)
    load_weights(nn.Sequential(other), path, positions="resize")
    layer.resize_positions((6, 5))
    assert_same(other, layer)


@pytest.mark.parametrize(
    ("there", "here", "grid"),
    [
        ({"scope": 5}, {"grid": (4, 7)}, (4, 7)),
        ({"scope": 5}, {"scope": 13}, (4, 7)),
        ({"scope": 4}, {"scope": 7}, (4, 7)),
        ({"scope": 5}, {"scope": (4, 7)}, (2, 7)),
        ({"grid": (2, 3)}, {"scope": (3, 6)}, (2, 3)),
    ],
    ids=str,
)
def test_the_middle_of_a_table_gives_the_same_output_on_a_smaller_grid(
    tmp_path: Path, there: dict, here: dict, grid: tuple
) -> None:
    layer, other = (LambdaLayer2d(DIM, **sizes).double().eval() for sizes in (there, here))
    load_weights(other, saved(layer, tmp_path / "w.pt"), positions="middle")
    x = torch.randn(2, DIM, *grid, dtype=torch.float64)
    assert_close(other(x), layer(x))


def test_a_scope_is_not_interpolated(tmp_path: Path) -> None:
    path = saved(LambdaLayer1d(DIM, scope=7), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"scope of 5 here and 7 there.*'middle'"):
        load_weights(LambdaLayer1d(DIM, scope=5), path, positions="resize")
    other = LambdaLayer1d(DIM, scope=5)
    load_weights(other, path, positions="middle")
    assert torch.equal(other.positions, torch.load(path)["positions"][1:6])


def test_different_tables_do_not_load_into_a_shared_one(tmp_path: Path) -> None:
    name = "resnet_cifar_lambda"
    apart, shared = create_model(name), create_model(name, shared_positions=True)
    with pytest.raises(WeightsError, match=r"layer3\.1\.\S+ and layer3\.2\.\S+ are one tensor in"):
        load_weights(shared, saved(apart, tmp_path / "apart.pt"))
    path = saved(shared, tmp_path / "shared.pt")
    for model in (apart, create_model(name, shared_positions=True)):
        load_weights(model, path)
        assert_same(model, shared)


# timm's lambda models


@pytest.mark.parametrize("name", ["lambda_resnet26t", "lambda_resnet50ts", "lambda_resnet26rpt_256"])
def test_weights_of_timm_before_and_after_accelerate(tmp_path: Path, name: str) -> None:
    model = awake(timm.create_model(name, num_classes=7)).double().eval()
    path = saved(model, tmp_path / "w.safetensors")
    before, after = (timm.create_model(name, num_classes=7).double().eval() for _ in range(2))
    load_weights(before, path)
    accelerate(before)
    load_weights(accelerate(after), path)
    size = (256, 256) if "rpt" in name else (96, 160)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        exact = model(x)
        assert_close(before(x), exact)
        assert_close(after(x), exact)
    assert_same(accelerate(model), after)


def test_the_hybrid_of_timm(tmp_path: Path) -> None:
    name = "lamhalobotnet50ts_256"
    model = awake(timm.create_model(name, num_classes=7)).double().eval()
    path = saved(model, tmp_path / "w.pt")
    fast = accelerate(timm.create_model(name, num_classes=7).double().eval())
    load_weights(fast, path)
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        assert_close(fast(x), model(x))


def test_relative_positions_of_timm_at_another_size(tmp_path: Path) -> None:
    name = "lambda_resnet26rpt_256"
    path = saved(awake(timm.create_model(name, num_classes=7)), tmp_path / "w.pt")
    fast = timm.create_model(name, num_classes=7).double().eval()
    load_weights(fast, path)
    accelerate(fast)
    for side in (128, 320):  # compared with timm at that size: the middle of the table, or zeros around it
        theirs = timm.create_model(name, num_classes=7, img_size=side).double().eval()
        with pytest.raises(WeightsError, match="pos_emb has embeddings for 31 x 31 offsets"):
            load_weights(theirs, path)
        load_weights(theirs, path, positions="middle")
        x = torch.randn(1, 3, side, side, dtype=torch.float64)
        with torch.no_grad():
            assert_close(fast(x), theirs(x))
    load_weights(theirs, path, positions="resize")
    assert theirs.state_dict()["stages.2.1.self_attn.pos_emb"].shape[:2] == (39, 39)
