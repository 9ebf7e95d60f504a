"""The build hook of the wheel: with LAMBDANETS_NATIVE=1 it compiles the native kernel into the wheel.

Without the variable the wheel is for every platform, and building it needs neither a compiler nor torch.
"""

import os
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "lambdanets/ops/kernels/native"


class NativeBuildHook(BuildHookInterface):
    """Add the library to a wheel, and set the wheel's platform tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; an editable installation has it in the user's cache instead."""
        if os.environ.get("LAMBDANETS_NATIVE") != "1" or version == "editable":
            return
        compiler = self._compiler()
        self._folder = tempfile.TemporaryDirectory(prefix="lambdanets-native-")
        library = compiler.build(Path(self._folder.name))
        build_data["force_include"][str(library)] = f"{FOLDER}/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{compiler.platform_tag(library)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled library, of which the wheel has a copy."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _compiler(self) -> Any:
        path = Path(self.root, "src", FOLDER, "compiler.py")
        spec: Any = spec_from_file_location("lambdanets_native_compiler", path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
