"""Names, patterns and sizes; what cannot be is refused in a sentence that says what would."""

import pytest
import timm

from lambdanets.bench import NetworkSpec, compute_cost, select_networks
from lambdanets.bench.networks import unavailable_reason
from lambdanets.models import create_model


def named(*words: str, sizes: tuple[str, ...] = ()) -> list[str]:
    return [str(network) for network in select_networks(words, sizes)]


def test_sizes_are_for_those_that_name_none() -> None:
    assert named("resnet_cifar_conv@40x24", "lambda_resnet_cifar", sizes=("32", "48")) == [
        "resnet_cifar_conv at 40x24",
        "lambda_resnet_cifar at 32",
        "lambda_resnet_cifar at 48",
    ]


def test_without_a_size_it_is_the_model_s_own() -> None:
    assert named("lambda_resnet_digits", "lambda_resnet152") == [
        "lambda_resnet_digits at 8",
        "lambda_resnet152 at 256",
    ]


def test_patterns_are_timm_s_and_each_is_there_once() -> None:
    assert named("lambda_resnet_d*", "lambda_resnet_digits") == ["lambda_resnet_digits at 8"]
    assert len(select_networks(["efficientnet_b?"])) == len(timm.list_models("efficientnet_b?"))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("lambda_resnet51", "there is no model named 'lambda_resnet51'; did you mean lambda_resnet50"),
        ("qqqqqqqq", "there is no model named 'qqqqqqqq'; `lambdanets list` shows the names"),
        ("qqq*", "no model name matches 'qqq\\*'"),
        ("resnet18@big", "an image size is 224 or 160x224 \\(height x width\\), got 'big'"),
        ("resnet18@0", "got '0'"),
    ],
)
def test_mistakes_are_sentences(word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        select_networks([word])


def test_what_it_costs_is_known_without_running_it() -> None:
    """Against the weights themselves, and the products of the layers of a network by hand."""
    (spec,) = select_networks(["resnet_cifar_conv@32"])
    network = create_model("resnet_cifar_conv")
    assert compute_cost(spec).parameters == sum(each.numel() for each in network.parameters())
    assert compute_cost(spec).macs > 50e6
    assert compute_cost(spec).channels == 3
    # A class token belongs to no layer.
    (vit,) = select_networks(["vit_tiny_patch16_224"])
    assert compute_cost(vit).parameters == 5_717_416


def test_a_size_that_a_model_cannot_take() -> None:
    (fixed,) = select_networks(["vit_tiny_patch16_224@160"])
    with pytest.raises(
        ValueError, match=r"vit_tiny_patch16_224 cannot take images of 160: .*; it takes 224 alone"
    ):
        compute_cost(fixed)
    (single,) = select_networks(["resnet18@32"])
    assert compute_cost(single).parameters
    with pytest.raises(ValueError, match=r"resnet18 cannot take images of 32: Expected more than 1 value"):
        compute_cost(single, batch=1, train=True)
    assert compute_cost(single, batch=2, train=True).parameters


def test_a_row_of_the_paper_may_have_no_network() -> None:
    assert unavailable_reason(NetworkSpec(model="lambda_resnet_digits", size=(8, 8))) == ""
    assert unavailable_reason(NetworkSpec(model="resnet50_of_the_future", size=(8, 8))).startswith(
        "there is no model named"
    )
    unknown = NetworkSpec(model="lambda_resnet_digits", size=(8, 8), options=(("dim_q", 3),))
    assert "has no option 'dim_q'" in unavailable_reason(unknown)
