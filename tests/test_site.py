"""The docs site, which `make docs` builds, has every page and every public name. Needs no Sphinx."""

import importlib
import pkgutil
import types
from pathlib import Path

import pytest

import lambdanets
from docs.site.contents import NAMES, children, sidebar

ROOT = Path(__file__).parents[1]
PACKAGES = ["lambdanets"] + [
    f"lambdanets.{module.name}"
    for module in pkgutil.iter_modules(lambdanets.__path__)
    if module.ispkg and module.name != "cli"  # the command, which is no library
]


def test_every_page_is_in_the_contents() -> None:
    pages = ["README", *(page for pages in sidebar().values() for page in pages)]
    for page in pages:  # grows
        pages += children(ROOT, page)
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    missing = {path.relative_to(ROOT).with_suffix("").as_posix() for path in files} - set(pages)
    assert not missing, "add them to CONTENTS of docs/site/contents.py"
    assert [page for page in pages if not (ROOT / f"{page}.md").exists()] == []
    assert len(pages) == len(set(pages))


def public_names(package: str) -> set[str]:
    """Return what a package exports, with the names that it imports on first use."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    own = {
        name
        for name, value in vars(module).items()
        if not (name.startswith("_") or isinstance(value, types.ModuleType | bool))
        and getattr(value, "__module__", package).startswith("lambdanets")
    }
    return own | set(getattr(module, "_LAZY", ()))


def shown_names() -> dict[str, list[str]]:
    """Return the names that the pages of docs/api show, by package."""
    shown: dict[str, list[str]] = {}
    for page in (ROOT / "docs/api").glob("*.md"):
        for block in NAMES.finditer(page.read_text(encoding="utf-8")):
            names = [line.partition(": ")[0] for line in block["names"].splitlines()]
            shown.setdefault(block["module"], []).extend(names)
    return shown


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_a_page(package: str) -> None:
    names, all_shown = public_names(package), shown_names()
    shown = all_shown.get(package, [])
    assert len(shown) == len(set(shown))
    assert set(shown) <= names, "these are not public"
    module = importlib.import_module(package)
    for name in sorted(names - set(shown)):
        value = getattr(module, name)
        others = [other for other, listed in all_shown.items() if name in listed]
        assert any(getattr(importlib.import_module(other), name) is value for other in others), (
            f"add {package}.{name} to a page of docs/api"
        )
