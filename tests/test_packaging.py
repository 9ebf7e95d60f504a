"""The files that users get from an index: the wheel, its description and the source distribution."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"")
PICTURES = {".png", ".jpg", ".svg"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def metadata(dist: Path) -> Message:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def files_of(*folders: str) -> set[str]:
    """The files below some folders of the repository, without cached bytecode."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_contains_only_the_package_with_its_types(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {name.removeprefix("src/") for name in files_of("src")}
    assert "lambdanets/py.typed" in held


def test_the_sdist_contains_all_that_tests_read_and_pages_show(dist: Path) -> None:
    archive = next(dist.glob("*.tar.gz"))
    with tarfile.open(archive) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {
        name for name in files_of("src", "tests", "docs", "benchmarks") if Path(name).suffix not in PICTURES
    }
    assert needed | {"Makefile", "constraints.txt", "pyproject.toml", "CITATION.cff"} <= held
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        linked = ((page.parent / (a or b)).resolve() for a, b in LINK.findall(page.read_text()))
        missing = {path.relative_to(ROOT).as_posix() for path in linked if path.is_file()} - held
        assert not missing, f"{page.name} links to files that the source distribution lacks"
    assert archive.stat().st_size < 5e6


def test_the_description_needs_no_repository(metadata: Message) -> None:
    text = str(metadata.get_payload())
    links = [a or b for a, b in LINK.findall(text)]
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    # Only pictures and addresses are gone.
    assert "docs/results.md" in text
    assert text.count("\n#") == (ROOT / "README.md").read_text().count("\n#")


@pytest.mark.parametrize("extra", ["detection", "export"])
def test_an_extra_includes_all_that_its_verbs_need(metadata: Message, extra: str) -> None:
    requirements: dict[str, set[str]] = {"train": set(), extra: set()}
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition("; extra == ")
        if marker.strip("'\"") in requirements:
            requirements[marker.strip("'\"")].add(requirement)
    assert requirements["train"] < requirements[extra]
