"""The files that users get from an index: the wheel, its description and the source distribution."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from lambdanets.ops.kernels.native import compiler
from native_source import write_source
from preloaded import run_preloaded

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"")
PICTURES = {".png", ".jpg", ".svg"}


HATCHLING = [sys.executable, "-m", "hatchling", "build", "--directory"]
LOADED = """
from lambdanets.ops.kernels.native import library
print(library.path(), library.is_packaged(), library.unavailable())
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built where there is no compiler and no torch."""
    folder = tmp_path_factory.mktemp("dist")
    (folder / "torch.py").write_text("raise ImportError")
    environment = os.environ | {"PATH": "", "CXX": "", "PYTHONPATH": str(folder), "LAMBDANETS_NATIVE": ""}
    done = subprocess.run(
        [*HATCHLING, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
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
    assert next(dist.glob("*.whl")).name.endswith("-py3-none-any.whl")


def test_the_sdist_contains_all_that_tests_read_and_pages_show(dist: Path) -> None:
    archive = next(dist.glob("*.tar.gz"))
    with tarfile.open(archive) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {
        name for name in files_of("src", "tests", "docs", "benchmarks") if Path(name).suffix not in PICTURES
    }
    needed |= {
        "Makefile",
        "constraints.txt",
        "requirements.lock",
        "pyproject.toml",
        "hatch_build.py",
        "CITATION.cff",
        "NOTICE",
    }
    assert needed <= held
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        linked = ((page.parent / (a or b)).resolve() for a, b in LINK.findall(page.read_text()))
        missing = {path.relative_to(ROOT).as_posix() for path in linked if path.is_file()} - held
        assert not missing, f"{page.name} links to files that the source distribution lacks"
    assert archive.stat().st_size < 15e6


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


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a wheel is built of, whose native kernel is a stand-in."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "source"))
    write_source(folder / "src/lambdanets/ops/kernels/native/source")
    return folder


def wheel_of(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HATCHLING, "dist", "--target", "wheel"],
        cwd=project,
        env=os.environ | {"LAMBDANETS_NATIVE": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.skipif(not any(map(shutil.which, compiler.COMPILERS)), reason="there is no C++ compiler")
def test_a_platform_wheel_has_the_native_kernel(project: Path, tmp_path: Path) -> None:
    done = wheel_of(project)
    assert done.returncode == 0, done.stderr
    (path,) = (project / "dist").iterdir()
    machine = compiler.machine()
    assert path.name.endswith((f"-py3-none-manylinux_2_17_{machine}.whl", f"-py3-none-linux_{machine}.whl"))
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as wheel:
        (described,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
        text = wheel.read(described).decode()
        wheel.extractall(unpacked)
    assert "Root-Is-Purelib: false" in text
    assert f"Tag: {path.stem.split('-', 2)[2]}" in text
    libraries = list(unpacked.rglob("*.so"))
    assert [each.parent for each in libraries] == [unpacked / "lambdanets/ops/kernels/native"]

    environment = os.environ | {"PYTHONPATH": str(unpacked), "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    shown = run_preloaded("-c", LOADED, cwd=tmp_path, env=environment)
    assert shown.stdout == f"{libraries[0]} True None\n", shown.stderr


def test_a_platform_wheel_is_refused_where_there_is_no_compiler(project: Path) -> None:
    done = wheel_of(project, PATH="", CXX="")
    assert done.returncode == 1
    assert "there is no C++ compiler" in done.stderr
    assert not list(project.rglob("*.whl"))
