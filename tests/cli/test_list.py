"""`lambdanets list`: every name that exists, and numbers that are true."""

import re

import pytest

from lambdanets.cli import main
from lambdanets.cli.catalogue import PARAMETERS, count, models
from lambdanets.models import list_models
from lambdanets.recipes import list_recipes


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["list", *words]) == 0
    return [line.strip(" |") for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_counted(name: str) -> None:
    assert PARAMETERS[name] == count(name)


def test_no_model_is_listed_that_does_not_exist() -> None:
    assert PARAMETERS.keys() <= set(list_models())


def test_everything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    first = [line.split()[0] for line in lines(capsys) if line]
    assert set(list_models()) | set(list_recipes()) | {"digits", "folder:PATH", "hfids/NAME"} <= set(first)


def test_a_line_says_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = (line for line in lines(capsys, "lambda_resnet152") if line.startswith("lambda"))
    assert re.search(
        r"\b51\.40\b.*256x256 RGB.*3-8-36-3 blocks.*layer3 \(6 of 36\), layer4.*scope 23", line
    ), line


@pytest.mark.parametrize(
    ("pattern", "there", "absent"),
    [
        ("resnet50_*", "resnet50_lambda", "lambda_resnet50"),
        ("cif*", "cifar", "digits"),
        ("folder*", "folder:PATH", "torch/NAME:PATH"),
    ],
)
def test_patterns_choose(capsys: pytest.CaptureFixture[str], pattern: str, there: str, absent: str) -> None:
    first = [line.split()[0] for line in lines(capsys, pattern) if line]
    assert there in first
    assert absent not in first


def test_descriptions_tell_conv_from_lambda() -> None:
    described = {each.name: each.description for each in models()}
    assert "convolutions alone" in described["resnet50_conv"]
    assert "convolutions alone" in described["resnet_cifar_conv"]
    assert "u 4" in described["resnet50_lambda_u4"]
