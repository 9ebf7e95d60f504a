"""Compile the sources of the native kernel into one shared library with a C interface.

The build hook of the wheel loads this file by its path, without torch: it imports the standard library alone.

A library is named `lambdanets-SOURCE-COMPILER-CONTENT.so`. SOURCE is a hash of the sources, the flags and the
machine type, and shows whether a library belongs to this package. COMPILER is a hash of the compiler's
version and the flags that it knows. CONTENT is a hash of the file, and shows damage before it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_name("source")
SUFFIXES = (".cpp", ".h")
KERNEL = "kernel.cpp"  # compiled once for each instruction set, the other files once

# Without exceptions the library needs no unwinder, which would need a newer C library than the rest.
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fno-exceptions", "-fPIC", "-fvisibility=hidden")
ISAS = {  # machine type -> instruction sets, the flags of each
    "x86_64": {
        "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
        "AVX2": ("-mavx2", "-mfma"),
        "BASE": (),
    },
    "aarch64": {"BASE": ()},
}
OPTIONAL = {"AVX512": ("-mavx512bf16",)}  # added where the compiler knows them
# A missing function is an error of the link, not of a call, which would end the process.
LINK = ("-shared", "-Wl,-z,defs", "-Wl,-z,now", "-Wl,--exclude-libs,ALL")
STATIC = ("-static-libstdc++", "-static-libgcc")  # left out where the compiler has no static libraries
SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

COMPILERS = ("c++", "g++", "clang++")
NEEDED = "g++ 12 or newer or clang++"
LAST_LINES = 12  # of the compiler's messages, in an error
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of machine types

# The newest versions of symbols that manylinux_2_17 allows, and the libraries.
MANYLINUX = {"GLIBC": (2, 17), "GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8, 0)}
MANYLINUX_LIBRARIES = re.compile(
    rb"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)|ld-linux-(x86-64|aarch64))\.so\.\d+"
)


class BuildError(RuntimeError):
    """The library cannot be built; the message is for the user."""


def machine() -> str:
    """Return the machine type, such as x86_64."""
    name = platform.machine().lower()
    return MACHINES.get(name, name)


def unsupported_platform() -> str | None:
    """Return why the kernel cannot be built for this platform, as a phrase; None if it can."""
    if sys.platform == "linux" and machine() in ISAS and sys.maxsize > 2**32:
        return None
    names = " and ".join(ISAS)
    return f"the native kernel is for 64-bit Linux on {names}, and this is {sys.platform} on {machine()}"


def source_key(source: Path = SOURCE) -> str:
    """Return the hash that names the libraries of these sources on this machine type.

    Args:
        source: Folder of the sources.
    """
    return _source_key(_read(source))


def build(folder: Path, source: Path = SOURCE, *, sanitize: bool = False) -> Path:
    """Compile the sources, unless the folder has their library already, and return the library.

    The library gets its name when it is complete and on the disk: processes that build at once replace each
    other's library by an equal one.

    Args:
        folder: Folder of the library; it is created.
        source: Folder of the sources.
        sanitize: Add checks of memory accesses and of undefined behaviour, for tests.

    Raises:
        BuildError: The platform is not supported, or there is no compiler, or it fails (with its messages).
        OSError: The folder cannot be written.
    """
    if reason := unsupported_platform():
        raise BuildError(f"{reason}.")
    compiler = find_compiler()
    sources = _read(source)
    if KERNEL not in sources:
        raise BuildError(f"{source} has no {KERNEL}: install the package again.")
    extra = SANITIZE if sanitize else ()
    flags = {isa: (*FLAGS, *extra, *given) for isa, given in _isa_flags(compiler).items()}
    identity = repr((compiler, _version(compiler), flags))
    start = f"lambdanets-{_source_key(sources)}-{_hash(identity.encode())[:8]}"
    for library in folder.glob(f"{start}-*.so"):
        if is_intact(library):
            return library
    # Code is loaded from here: other users must not be able to write.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".build-") as name:
        temporary = Path(name)
        for file, content in sources.items():
            (temporary / file).write_bytes(content)
        compiled = temporary / "compiled.so"
        _compile(compiler, flags, sorted(sources), compiled, sanitize=sanitize)
        library = folder / f"{start}-{_content_hash(compiled)}.so"
        _sync(compiled)
        compiled.chmod(0o644)
        os.replace(compiled, library)
    _sync(folder)
    return library


def is_intact(library: Path) -> bool:
    """Return whether a library is the file that got its name.

    Raises:
        OSError: It cannot be read.
    """
    return library.stem.rpartition("-")[2] == _content_hash(library)


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: `$CXX`, or the first of `COMPILERS` that is installed.

    Raises:
        BuildError: There is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise BuildError(f"the compiler {chosen[0]} that CXX names is not installed.")
        return chosen
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise BuildError(f"there is no C++ compiler: install {NEEDED}, or set CXX.")


def platform_tag(library: Path) -> str:
    """Return the platform tag of a wheel with this library.

    It is that of manylinux_2_17 if the library needs no newer symbols and no other libraries. Names of
    symbols and libraries are searched in the whole file; a chance match only makes the tag narrower.

    Args:
        library: The library.
    """
    content = library.read_bytes()
    symbols = re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI|GCC)_([\w.]+)(?=\0)", content)
    libraries = re.findall(rb"\0([\w+.-]+\.so\.[\w.]+)(?=\0)", content)
    # musl, another C library, has no versions.
    portable = bool(symbols) and all(map(MANYLINUX_LIBRARIES.fullmatch, libraries))
    for name, version in symbols:
        numeric = re.fullmatch(rb"\d+(\.\d+)*", version)
        parts = tuple(map(int, version.split(b"."))) if numeric else ()
        portable = portable and () < parts <= MANYLINUX[name.decode()]
    return f"{'manylinux_2_17' if portable else 'linux'}_{machine()}"


def _read(source: Path) -> dict[str, bytes]:
    """Return the sources by name, in the order of their names; none if there is no folder."""
    files = sorted(source.iterdir()) if source.is_dir() else []
    return {file.name: file.read_bytes() for file in files if file.suffix in SUFFIXES}


def _source_key(sources: dict[str, bytes]) -> str:
    parts = [repr((machine(), FLAGS, ISAS, OPTIONAL, LINK, STATIC)).encode()]
    for name, content in sources.items():
        parts += [name.encode(), content]
    return _hash(b"".join(b"%d:%b" % (len(part), part) for part in parts))[:16]


def _content_hash(library: Path) -> str:
    return _hash(library.read_bytes())[:32]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version(compiler: Sequence[str]) -> str:
    with _compiling():
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace")
    return done.stdout


def _isa_flags(compiler: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the flags of each instruction set, with the optional ones that the compiler knows."""
    probe = [*compiler, "-x", "c++", "-fsyntax-only", os.devnull]
    found = {}
    for isa, flags in ISAS[machine()].items():
        with _compiling():
            known = [
                flag
                for flag in OPTIONAL.get(isa, ())
                if not subprocess.run([*probe, flag], capture_output=True).returncode
            ]
        found[isa] = (*flags, *known)
    return found


def _compile(
    compiler: Sequence[str],
    flags: dict[str, tuple[str, ...]],
    sources: Sequence[str],
    library: Path,
    *,
    sanitize: bool,
) -> None:
    """Compile and link the sources that lie beside the library."""
    commands, objects = [], []
    for isa, given in flags.items():
        objects.append(f"kernel-{isa}.o")
        commands.append([*compiler, *given, f"-DISA_{isa}", "-c", KERNEL, "-o", objects[-1]])
    for source in sources:
        if source.endswith(".cpp") and source != KERNEL:
            objects.append(f"{source}.o")
            commands.append([*compiler, *flags["BASE"], "-c", source, "-o", objects[-1]])
    if message := _run(commands, library.parent):
        raise BuildError(message)
    link = [*compiler, *flags["BASE"], "-o", library.name, *objects]
    if sanitize:
        message = _run([[*link, "-shared"]], library.parent)
    else:
        message = _run([[*link, *LINK, *STATIC]], library.parent) and _run([[*link, *LINK]], library.parent)
    if message:
        raise BuildError(message)


def _run(commands: Sequence[Sequence[str]], folder: Path) -> str | None:
    """Run commands at once in a folder and return the message of the first that fails, if any."""
    options = {"cwd": folder, "env": os.environ | {"LC_ALL": "C"}, "text": True, "errors": "replace"}
    message = None
    with ExitStack() as stack:
        processes = []
        for command in commands:
            with _compiling():
                started = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
                )
            processes.append(stack.enter_context(started))
            stack.callback(started.kill)
        for process, command in zip(processes, commands, strict=True):
            output, _ = process.communicate()
            if process.returncode and message is None:
                lines = "\n".join(output.strip().splitlines()[-LAST_LINES:])
                message = f"the compiler failed, it must be {NEEDED} ({shlex.join(command)}):\n{lines}"
    return message


@contextmanager
def _compiling() -> Iterator[None]:
    """Turn the OSError of a compiler that cannot be run into a BuildError."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"the compiler {error.filename} cannot be run: {error.strerror}.") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot sync a folder; a library that is lost with it is built again.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
