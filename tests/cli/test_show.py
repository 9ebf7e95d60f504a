"""`lambdanets show`: sums, known counts, and the plan of every lambda layer."""

import pytest
import torch
from torch import nn

from lambdanets.cli import main
from lambdanets.models import create_model
from lambdanets.models.summary import Summary, summarise
from lambdanets.nn.lambda_layer import LambdaLayer
from lambdanets.ops import KERNELS, Problem, functional, plan


def summary(name: str, *size: int, **options: object) -> Summary:
    return summarise(create_model(name, device="meta"), size or None, **options)


def test_the_parts_are_the_whole() -> None:
    found = summary("lambda_resnet_mini")
    network = create_model("lambda_resnet_mini")
    assert [part.name for part in found.parts] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.macs == sum(part.macs for part in found.parts)
    assert found.parts[-1].macs == network.num_features * 1000
    for part in found.parts[1:-1]:
        module = network.get_submodule(part.name)
        assert part.parameters == sum(parameter.numel() for parameter in module.parameters())
        assert part.num_blocks == len(module)


def test_the_paper_s_count_of_parameters() -> None:
    assert summary("resnet50_lambda").parameters == 14_995_592


def test_multiply_adds_of_a_convolutional_network_counted_by_hand() -> None:
    found, network = summary("resnet_cifar_conv", 32, 48), create_model("resnet_cifar_conv").eval()
    counted = 0

    def count(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.randn(1, 3, 32, 48))
    assert found.macs == counted
    assert found.plans == {}


@pytest.mark.parametrize("size", [(), (64, 96)])
def test_resolutions_are_those_of_a_forward_pass(size: tuple[int, ...]) -> None:
    found = summary("lambda_resnet_mini", *size)
    network = create_model("lambda_resnet_mini", features_only=True).eval()
    with torch.inference_mode():
        maps = network(torch.randn(1, *found.image))
    assert found.image == (3, *(size or (128, 128)))
    assert [part.resolution for part in found.parts[1:-1]] == [tuple(each.shape[2:]) for each in maps[-4:]]
    assert [part.channels for part in found.parts[1:-1]] == [each.shape[1] for each in maps[-4:]]


@pytest.mark.parametrize("train", [False, True])
def test_every_lambda_layer_has_the_plan_of_the_problem_it_poses(
    monkeypatch: pytest.MonkeyPatch, train: bool
) -> None:
    found = summary("lambda_resnet_digits", batch=3, train=train)
    posed: list[Problem] = []
    whole = Problem.of.__func__

    def of(cls: type[Problem], *args: object) -> Problem:
        posed.append(whole(cls, *args))
        return posed[-1]

    monkeypatch.setattr(Problem, "of", classmethod(of))
    monkeypatch.setattr(functional, "_checked", {})  # problems of earlier calls
    network = create_model("lambda_resnet_digits", in_chans=1).train(train)
    with torch.set_grad_enabled(train):
        network(torch.randn(3, 1, 8, 8))
    names = [name for name, module in network.named_modules() if isinstance(module, LambdaLayer)]
    assert list(found.plans) == names
    assert [made.problem for made in found.plans.values()] == posed
    assert all(made == plan(made.problem) for made in found.plans.values())


def test_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "lambda_resnet152", "--size", "256"]) == 0
    shown = capsys.readouterr().out
    assert "lambda_resnet152 at 256x256" in shown
    assert "51,404,696 parameters" in shown
    layer3 = next(line for line in shown.splitlines() if "layer3" in line)
    assert "16x16" in layer3
    assert "6 of 36: 5, 10, 15, 20, 25, 30" in layer3
    assert any(name in shown for name in KERNELS)


def test_a_device_that_this_machine_need_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "lambda_resnet_mini", "--device", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert "float32 on cuda, inference" in shown
    assert "native: it is for CPUs, not for cuda" in " ".join(shown.split())


def test_models_of_timm_are_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "resnet18", "--num-classes", "7"]) == 0
    shown = capsys.readouterr().out
    assert "0 lambda layers" in shown
    assert f"{11_689_512 - 513 * (1000 - 7):,} parameters" in shown


def test_a_recipe_is_shown_with_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "imagenet-350-152@224"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "83.2 %, 86.5 % with pseudo-labels (published, Table 19; not trained here).",
        "Command lambdanets train imagenet-350-152@224 --data folder:/data/imagenet --devices 8",
        "model.options.drop_path_rate=0.1",
        "350 epochs of ImageNet: an estimate, not measured",
        "Rate of a device: 337 training images/s",
    ):
        assert words in out
    # 350 x (313 steps of 4,096 images, and 2 x 50,000 / 3), at 1,024 in 0.38 seconds, and the exchange.
    hours = 350 * (313 * 4096 + 100_000 / 3) / (1024 / 0.38) / 3600
    exchange = 350 * 313 * 2 * 7 / 8 * 4 * 51_404_696 / 10e9 / 3600
    assert f" 8 64 {hours + exchange:.1f} " in out


def test_a_recipe_is_shown_for_the_devices_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "imagenet-90", "--devices", "8", "24", "--images-per-second", "900"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "24 4,096 do not divide" in out
    assert "900 training images/s (given)" in out
    assert main(["show", "imagenet-90"]) == 0
    assert "--models resnet50_lambda --sizes 224 --pass train" in " ".join(capsys.readouterr().out.split())
    assert main(["show", "digits"]) == 0
    assert "ImageNet" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["imagenet-350-152@22"], "there is no recipe 'imagenet-350-152@22'; did you mean"),
        (["imagenet-90", "--images-per-second", "-1"], "images_per_second is above 0; got -1"),
        (["imagenet-350-50@128", "--images-per-second", "0"], "images_per_second is above 0; got 0"),
        (["imagenet-90", "--size", "160"], "--size, --num-classes and --train are for models"),
        (["lambda_resnet50", "--devices", "8"], "--devices and --images-per-second are for recipes"),
    ],
)
def test_a_recipe_that_cannot_be_shown(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", *words]) == 2
    assert sentence in capsys.readouterr().err
