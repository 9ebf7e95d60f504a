"""The compiled library of the native kernel: built from `source` on first use, or why there is none."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("source")
FOLDER = "LAMBDANETS_NATIVE_FOLDER"  # the variable that names the folder of built libraries
ABI_VERSION = 1
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden")
ISAS = {"BASE": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISAS |= {
        "AVX2": ("-mavx2", "-mfma"),
        "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
    }


def load() -> ctypes.CDLL | None:
    """Return the loaded library, None if there is none: see `unavailable`."""
    return _find()[0]


@torch.compiler.assume_constant_result  # a compiled graph would break where files are read
def unavailable() -> str | None:
    """Return why there is no library, as a phrase; None if there is one."""
    return _find()[1]


@lru_cache(maxsize=1)
def _find() -> tuple[ctypes.CDLL | None, str | None]:
    """Build the library, unless the folder has it, and load it."""
    content = hashlib.sha256(repr((FLAGS, ISAS)).encode())
    for file in sorted(SOURCE.iterdir()):
        content.update(file.read_bytes())
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / f"lambdanets-native-{os.getuid()}")
    path = folder / f"lambdanets-{content.hexdigest()[:16]}.so"
    try:
        if not path.exists():
            _build(path)
        library = ctypes.CDLL(str(path))
        library.lambdanets_isa.restype = ctypes.c_char_p
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"its library cannot be built ({error})"
    if library.lambdanets_abi_version() != ABI_VERSION:
        return None, "its library has another version of the interface"
    return library, None


def _build(path: Path) -> None:
    """Compile the sources into a library."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        objects = []
        for isa, flags in ISAS.items():
            objects.append(f"{temporary}/kernel-{isa}.o")
            compile_kernel = ["c++", *FLAGS, *flags, f"-DISA_{isa}", "-c", str(SOURCE / "kernel.cpp")]
            subprocess.run([*compile_kernel, "-o", objects[-1]], check=True)
        library = Path(temporary) / "library.so"
        link = ["c++", *FLAGS, "-shared", str(SOURCE / "dispatch.cpp"), *objects, "-o", str(library)]
        subprocess.run(link, check=True)
        os.replace(library, path)
