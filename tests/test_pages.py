"""The pages are consistent: Python blocks run, links lead somewhere, tables equal the code."""

import ast
import dataclasses
import functools
import re
import tempfile
import typing
import warnings
from pathlib import Path

import pytest
import torch

from docs import field_tables
from lambdanets.cli.fields import field_groups
from lambdanets.models import create_model
from lambdanets.train import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/README.md"),
    *(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")),
]
README_LINES = 180
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/explain.md", "docs/layer.md", "docs/models.md", "docs/sequences.md"]
)
def test_the_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # Inductor needs a C++ compiler and half a minute; the graph is the same without it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    # Programs for an exported file are run by tests/cli/test_text.py.
    blocks = [block for block in BLOCK.findall((ROOT / page).read_text()) if '"book.' not in block]
    assert blocks
    torch.manual_seed(0)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the pages show no use that the package warns of
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.script
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}, block {number}", "exec"), names)


INTEGRATIONS = "docs/integrations.md"
OPTIONAL = ("segmentation_models_pytorch", "executorch")  # packages that the project does not install


@pytest.mark.parametrize("package", [None, *OPTIONAL])
def test_the_blocks_with_other_libraries_run(
    package: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package is not None:
        pytest.importorskip(package, reason=f"needs {package}: make test-integrations")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    blocks = BLOCK.findall((ROOT / INTEGRATIONS).read_text())
    chosen = [
        block
        for block in blocks
        if (package in block if package else not any(name in block for name in OPTIONAL))
    ]
    assert chosen
    for number, block in enumerate(chosen, 1):
        torch.manual_seed(0)
        exec(compile(block, f"{INTEGRATIONS}, block {number}", "exec"), {"__name__": "page"})


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text()):
        address, _, anchor = (link[0] or link[1]).partition("#")
        if address.startswith("https://"):
            continue
        target = (path.parent / address).resolve() if address else path
        assert target.exists(), f"{page} links to {address}"
        assert not anchor or anchor in anchors(target), f"{page} links to {address}#{anchor}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def fields(config: type, prefix: str = "") -> dict[str, object]:
    """Return the defaults of a configuration's fields by their paths, `...` where there is none."""
    found: dict[str, object] = {}
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        path = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            found |= fields(types[field.name], f"{path}.")
        elif field.default_factory is not dataclasses.MISSING:
            found[path] = field.default_factory()
        else:
            found[path] = ... if field.default is dataclasses.MISSING else field.default
    return found


def test_the_tables_are_those_of_the_docstrings() -> None:
    text = (ROOT / "docs/training.md").read_text()
    assert text == field_tables.page(), "run: python docs/field_tables.py"


@pytest.mark.parametrize("title", field_tables.TASKS)
def test_the_page_lists_every_setting_with_its_default(title: str) -> None:
    sections = re.split("^### ", (ROOT / "docs/training.md").read_text(), flags=re.MULTILINE)
    shown = {}
    for section in sections:
        if not section.startswith(("Of every run: ", f"{title}: ")):
            continue
        for line in re.findall(r"^\| `[a-z_.]+` \|.*\|$", section, re.MULTILINE):
            path, _, default, sentence = (cell.strip() for cell in line.strip("|").split(" | "))
            assert path not in shown
            assert sentence
            shown[path.strip("`")] = ... if default == "required" else ast.literal_eval(default.strip("`"))
    expected = fields(field_tables.TASKS[title])
    del expected["recipe"]  # the recipe's own name
    assert shown == expected


def test_a_field_without_a_sentence_is_an_error() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Silent(RunConfig):
        """A configuration with a field more."""

        loudness: int = 0

    with pytest.raises(ValueError, match="the docstring of Silent has no sentence on 'loudness'"):
        field_groups(Silent)


def test_the_page_has_the_parameters_of_the_models() -> None:
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|.*?((?:\d+,\d{3},\d{3}(?:, )?)+) \|",
        (ROOT / "docs/models.md").read_text(),
        re.MULTILINE,
    )
    shown = {
        name: int(count.replace(",", ""))
        for names, counts in rows
        for name, count in zip(re.findall(r"\w+", names), re.findall(r"\d+,\d{3},\d{3}", counts), strict=True)
    }
    assert len(shown) >= 20
    for name, count in shown.items():
        model = create_model(name, device="meta", num_classes=1000)
        assert sum(parameter.numel() for parameter in model.parameters()) == count, name
