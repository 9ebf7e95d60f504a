"""The rooms and what an import costs, each checked in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(program: str) -> str:
    """What a fresh interpreter prints when it runs a program."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_rooms_import_only_from_the_rooms_below_them() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What imports of the package, and then of its room `data`, add to PyTorch and timm."""
    program = """
import builtins, sys, torch, timm
def roots():
    return {name.partition(".")[0] for name in sys.modules}
before, asked, original = roots(), set(), builtins.__import__
def spy(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__") or ""
    if level == 0 and importer.partition(".")[0] == "lambdanets":
        asked.add(name.partition(".")[0])
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = spy
import lambdanets
print("loaded", *sorted(roots() - before - set(sys.stdlib_module_names)))
print("asked", *sorted(asked - set(sys.stdlib_module_names)))
builtins.__import__ = original
import lambdanets.data
print("data", *sorted(roots()))
"""
    return {line.split()[0]: set(line.split()[1:]) for line in run(program).splitlines()}


def test_importing_the_package_costs_torch_and_timm_and_nothing_more(imported: dict[str, set[str]]) -> None:
    """Neither loaded beyond what those two load themselves, nor asked for by our own files.

    The second half matters because timm brings torchvision along: what is loaded cannot tell who wanted it.
    """
    assert imported["loaded"] == {"lambdanets"}
    assert "torch" in imported["asked"], "the spy must see something"
    assert imported["asked"] <= {"torch", "timm", "lambdanets"}


def test_importing_the_room_of_data_leaves_optional_packages_alone(imported: dict[str, set[str]]) -> None:
    assert "lambdanets" in imported["data"]
    assert imported["data"].isdisjoint({"sklearn", "rich", "lightning", "matplotlib"})


def test_the_operator_and_the_layer_need_torch_alone() -> None:
    """The rooms are imported without the package's front page, all else made impossible to import."""
    program = """
import importlib.util, sys, types
package = types.ModuleType("lambdanets")
package.__path__ = list(importlib.util.find_spec("lambdanets").submodule_search_locations)
sys.modules["lambdanets"] = package
import torch
for name in ("timm", "torchvision", "lightning", "matplotlib", "torchmetrics", "rich", "tyro", "PIL"):
    sys.modules[name] = None
import lambdanets.ops
print("lambdanets.nn" in sys.modules)
import lambdanets.nn
print(lambdanets.ops.__name__, lambdanets.nn.__name__, "lambdanets.models" in sys.modules)
"""
    assert run(program) == "False\nlambdanets.ops lambdanets.nn False"
