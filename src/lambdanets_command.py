"""The script `lambdanets`: prints the help, and passes every other command line to `lambdanets.cli`.

Importing the package takes seconds, for PyTorch and timm. This module is outside of it and loads the file
with the help by its path, so that the help is printed at once. The help of a verb needs the signature of a
function, so that the package's own `__init__` is left out then.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> int:
    """Run the command line of this process and return its exit code."""
    verbs = _verbs()
    if (text := verbs.help_for(sys.argv[1:])) is not None:
        verbs.prepare_streams()
        return verbs.print_help(text)
    if verbs.is_verb_help(sys.argv[1:]):
        _leave_out_package()
    try:
        from lambdanets.cli import main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lambdanets"):
            raise
        print(
            f"lambdanets: this needs {error.name}, which is not installed: pip install lambdanets",
            file=sys.stderr,
        )
        return 1
    return main()


def _leave_out_package() -> None:
    """Let modules inside the package be imported without its `__init__`, which imports PyTorch and timm."""
    package: Any = PathFinder.find_spec("lambdanets")
    bare: Any = ModuleType("lambdanets")
    bare.__path__ = list(package.submodule_search_locations)
    sys.modules["lambdanets"] = bare


def _verbs() -> Any:
    package: Any = PathFinder.find_spec("lambdanets")
    path = Path(package.origin).parent / "cli" / "verbs.py"
    spec: Any = spec_from_file_location("lambdanets_verbs", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
