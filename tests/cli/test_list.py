"""`lambdanets list`: every name that exists, and numbers that are true."""

import re

import pytest

from lambdanets.cli import main
from lambdanets.models import list_models
from lambdanets.recipes import list_recipes


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["list", *words]) == 0
    return [line.strip(" |") for line in capsys.readouterr().out.splitlines()]


def test_everything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    first = [line.split()[0] for line in lines(capsys) if line]
    assert set(list_models()) | set(list_recipes()) | {"digits", "folder:PATH", "hfids/NAME"} <= set(first)


def test_a_line_describes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_patterns_select_names(
    capsys: pytest.CaptureFixture[str], pattern: str, there: str, absent: str
) -> None:
    first = [line.split()[0] for line in lines(capsys, pattern) if line]
    assert there in first
    assert absent not in first
