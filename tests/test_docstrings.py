"""The public names: they are complete, documented in full, and the examples in their docstrings run."""

import doctest
import inspect
import pydoc
import re
import types
from pathlib import Path

import pytest
import timm
import torch

import lambdanets
from lambdanets import models, nn, ops

PUBLIC = {
    name: value
    for module in (lambdanets, models, nn, ops)
    for name, value in vars(module).items()
    if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
}
LAYERS = [lambdanets.LambdaLayer1d, lambdanets.LambdaLayer2d, lambdanets.LambdaLayer3d]
EXAMPLES = {
    "lambda_layer",
    "accelerate",
    "explain",
    "Explanation",
    "create_model",
    "list_models",
    "load_weights",
    "save_for_hub",
}
EXAMPLES |= {"create_language_model", "Convolution1d", "GRU1d", "LambdaLM"}
EXAMPLES |= {layer.__name__ for layer in LAYERS} | {name for name in PUBLIC if "Attention" in name}


def documented(value: object) -> list[tuple[str, str]]:
    """The docstring of a public name and, of a class of ours, those of its public methods and `__init__`."""
    members = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    found = [(name, member.__doc__) for name, member in members if member.__module__.startswith("lambdanets")]
    return [("", value.__doc__ or "")] + [(name, text) for name, text in found if text]


def test_all_names_what_the_package_exports() -> None:
    exported = {
        name
        for name, value in vars(lambdanets).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(lambdanets.__all__) == exported
    assert lambdanets.__all__ == sorted(lambdanets.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_in_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = 0
    for member, text in documented(PUBLIC[name]):
        test = doctest.DocTestParser().get_doctest(
            text, PUBLIC | {"timm": timm, "torch": torch}, f"{name}.{member}", None, None
        )
        runner = doctest.DocTestRunner()
        runner.run(test)
        assert runner.failures == 0, capsys.readouterr().out
        examples += len(test.examples)
    assert examples or name not in EXAMPLES


@pytest.mark.parametrize("layer", LAYERS)
def test_the_documentation_of_a_layer_has_every_argument_with_type_default_and_errors(layer: type) -> None:
    """`help` shows the docstring of `__init__` under the signature, and so do editors."""
    text = inspect.getdoc(layer.__init__) or ""
    for name, parameter in list(inspect.signature(layer.__init__).parameters.items())[1:]:
        entry = re.search(rf"^    {name} \((.+?)\): (?s:(.+?))(?=^    \w+ \(|\n\n)", text, re.M)
        assert entry, name
        assert entry[2].strip()
        default = parameter.default
        if default is not parameter.empty:
            written = {"dim_out": "`dim`"}.get(
                name, f'"{default}"' if isinstance(default, str) else str(default)
            )
            assert f"Default: {written}" in " ".join(entry[2].split()), name
        assert ("optional" in entry[1]) == ("None" in str(parameter.annotation)), name
    for section in ("Shape:", "Raises:", "Example:", "ValueError", "[b, dim, *grid]", "[b, dim_out, *grid]"):
        assert section in text
    assert "Example:" in (layer.__doc__ or "")


@pytest.mark.parametrize("name", [*(layer.__name__ for layer in LAYERS), "lambda_layer"])
def test_help_shows_every_argument_by_name_with_its_meaning(name: str) -> None:
    """As `help(lambdanets.LambdaLayer2d)` in a terminal prints it."""
    value = getattr(lambdanets, name)
    text = pydoc.plain(pydoc.render_doc(value))
    parameters = inspect.signature(value).parameters
    assert len(parameters) > 5
    kinds = {each.kind for each in parameters.values()}
    assert kinds.isdisjoint({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})
    for argument in parameters:
        assert re.search(rf"^[ |]+{argument}( \(.+?\))?: \S", text, re.MULTILINE), argument


def test_the_common_class_of_the_layers_cannot_be_instantiated() -> None:
    assert all(issubclass(layer, lambdanets.LambdaLayer) for layer in LAYERS)
    with pytest.raises(TypeError, match="LambdaLayer is a base class: use LambdaLayer1d"):
        lambdanets.LambdaLayer(8, scope=3)
