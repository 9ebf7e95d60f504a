"""The library of the native kernel, of a stand-in's sources: built, found and checked by real processes."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import sanitize

from lambdanets.ops.kernels.native import compiler
from native_source import DISPATCH, KERNEL, write_source
from preloaded import run_preloaded

PACKAGE = Path(__file__).parents[2] / "src/lambdanets"
# Without torch, as the build hook does it.
BUILD = """
import runpy, sys
from pathlib import Path
print(runpy.run_path(sys.argv[1])["build"](Path(sys.argv[2]), Path(sys.argv[3])))
"""
NOT_BUILT = "its library is not built, `lambdanets native` builds it"

pytestmark = pytest.mark.skipif(
    compiler.unsupported_platform() is not None or not any(map(shutil.which, compiler.COMPILERS)),
    reason="there is no C++ compiler for the native kernel",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package whose native kernel is the stand-in."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "lambdanets", ignore=shutil.ignore_patterns("__pycache__", "source"))
    write_source(folder / "lambdanets/ops/kernels/native/source")
    return folder


def printed(home: Path, cache: Path, program: str, **variables: str) -> Any:
    """What a program prints as JSON, with the copy of the package and a user's cache."""
    environment = os.environ | {"PYTHONPATH": str(home), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    done = run_preloaded("-c", program, env=environment | variables, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def build_in(home: Path, cache: Path) -> Path:
    return compiler.build(cache / "lambdanets/native", home / "lambdanets/ops/kernels/native/source")


def test_processes_that_build_at_once_end_with_one_library(tmp_path: Path) -> None:
    source, folder = write_source(tmp_path / "source"), tmp_path / "libraries"
    words = [sys.executable, "-c", BUILD, compiler.__file__, str(folder), str(source)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    shown = {process.communicate(timeout=100)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert shown == {str(path) for path in folder.iterdir()}
    assert len(shown) == 1
    (library,) = folder.iterdir()
    assert compiler.is_intact(library)
    before = library.stat()
    assert compiler.build(folder, source) == library
    assert library.stat() == before  # it is not compiled again
    library.write_bytes(library.read_bytes()[:-1])
    assert compiler.is_intact(compiler.build(folder, source))


def test_a_library_belongs_to_its_sources_and_its_machine_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source")
    keys = {compiler.source_key(source)}
    write_source(source, kernel=KERNEL + "// another comment\n")
    keys.add(compiler.source_key(source))
    (source / "numbers.h").rename(source / "values.h")
    keys.add(compiler.source_key(source))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    keys.add(compiler.source_key(source))
    assert len(keys) == 4


USED = """
import ctypes, json, os
from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import library

class Numbers(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("count", ctypes.c_int), ("sum", ctypes.c_float)]

def total():
    values = (ctypes.c_float * 100)(*range(100))
    numbers = Numbers(ctypes.addressof(values), 100)
    assert library.load().numbers_sum(ctypes.byref(numbers)) == 0
    return numbers.sum

found = [str(library.path()), library.unavailable(), native.describe(), total()]
child = os.fork()
if child == 0:
    os._exit(0 if total() == found[-1] else 1)
found.append(os.waitpid(child, 0)[1])
os.environ["LAMBDANETS_NATIVE"] = "0"
library.refresh()
print(json.dumps([*found, library.load(), native.describe()]))
"""


def test_a_built_library_is_used_also_after_a_fork_unless_turned_off(home: Path, tmp_path: Path) -> None:
    built = build_in(home, tmp_path)
    path, reason, sentence, total, forked, *off = printed(home, tmp_path, USED)
    assert (path, reason, total, forked) == (str(built), None, sum(range(100)), 0)
    assert sentence in (f"Native kernel: {isa}." for isa in ("avx512", "avx2", "base"))
    assert off == [None, "No native kernel: LAMBDANETS_NATIVE=0 turns it off."]


SPOILED = """
import hashlib, json
from pathlib import Path
from lambdanets.ops.kernels.native import compiler, library

good = compiler.build(library.cache_folder())
content, (start, _, _) = good.read_bytes(), good.stem.rpartition("-")
good.unlink()
reasons = {}

def offer(case, content, name=None, mode=0o644):
    name = name or f"{start}-{hashlib.sha256(content).hexdigest()[:32]}.so"
    file = good.with_name(name)
    file.write_bytes(content)
    file.chmod(mode)
    library.refresh()
    reason = library.unavailable()
    reasons[case] = reason and reason.replace(str(file), "FILE")
    file.unlink()

offer("truncated", content[: len(content) // 2], good.name)
offer("empty", b"", good.name)
offer("damaged", content[:-9] + b"x" + content[-8:], good.name)
offer("text", b"no library")
offer("other machine", content[:18] + bytes([243, 0]) + content[20:])  # e_machine of RISC-V
offer("other sources", content, "lambdanets-0123456789abcdef-" + good.name[28:])
offer("no functions", Path(NO_FUNCTIONS).read_bytes())
offer("other interface", Path(OTHER_INTERFACE).read_bytes())
offer("writable", content, mode=0o666)
offer("good", content)
good.mkdir()
library.refresh()
reasons["folder"] = library.unavailable().replace(str(good), "FILE")
print(json.dumps(reasons))
"""


def test_a_damaged_or_foreign_library_is_refused(home: Path, tmp_path: Path) -> None:
    program = SPOILED
    texts = {
        "NO_FUNCTIONS": 'extern "C" int another() { return 0; }',
        "OTHER_INTERFACE": DISPATCH.replace("return 1;", "return 42;"),
    }
    for name, text in texts.items():
        source = write_source(tmp_path / name, dispatch=text)
        program = program.replace(name, repr(str(compiler.build(tmp_path / "others", source))))
    reasons = printed(home, tmp_path / "cache", program)
    damaged = "FILE is damaged, `lambdanets native` builds it again"
    for case in ("truncated", "empty", "damaged"):
        assert reasons.pop(case) == damaged
    assert reasons.pop("other sources") == NOT_BUILT
    assert reasons.pop("other interface") == "FILE has version 42 of the interface, not 1"
    assert reasons.pop("writable") == "FILE or its folder may be written by other users"
    assert reasons.pop("good") is None
    for case in ("text", "other machine", "no functions", "folder"):
        assert reasons.pop(case).startswith("FILE cannot be loaded ("), case
    assert not reasons


FORWARD = """
import json, torch, lambdanets
from lambdanets.ops.kernels.native import library
lambdanets.LambdaLayer2d(8, grid=4)(torch.randn(2, 8, 4, 4))
print(json.dumps(library.unavailable()))
"""


def test_nothing_is_compiled_by_an_import_or_a_forward_pass(home: Path, tmp_path: Path) -> None:
    script, called = tmp_path / "c++", tmp_path / "called"
    script.write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    script.chmod(0o755)
    assert printed(home, tmp_path, FORWARD, CXX=str(script)) == NOT_BUILT
    assert not called.exists()


def test_a_build_that_fails_has_the_compilers_message(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", dispatch="int broken( {\n")
    with pytest.raises(compiler.BuildError, match=r"(?s)^the compiler failed, .*dispatch\.cpp.*error: "):
        compiler.build(tmp_path / "libraries", source)
    assert list((tmp_path / "libraries").iterdir()) == []
    undefined = write_source(source, dispatch="int missing();\nint caller() { return missing(); }\n")
    with pytest.raises(compiler.BuildError, match="missing"):
        compiler.build(tmp_path / "libraries", undefined)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(OSError, match="/proc/self/lambdanets"):
        compiler.build(Path("/proc/self/lambdanets/native"), source)
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(PermissionError, match="cache"):
        compiler.build(folder / "native", source)


OVERRUN = """
import ctypes, sys
class Numbers(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("count", ctypes.c_int), ("sum", ctypes.c_float)]
values = (ctypes.c_float * 1000)()
numbers = Numbers(ctypes.addressof(values), 1000 + int(sys.argv[2]))
ctypes.CDLL(sys.argv[1]).numbers_sum(ctypes.byref(numbers))
"""


def test_the_sanitizer_finds_a_read_beyond_the_end(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    try:
        environment = sanitize.sanitizing(tmp_path)
    except SystemExit as missing:
        pytest.skip(str(missing))
    library = compiler.build(tmp_path / "libraries", source, sanitize=True)
    assert library.name.split("-")[1] == compiler.source_key(source)
    codes = [
        subprocess.run([sys.executable, "-c", OVERRUN, library, str(beyond)], env=environment).returncode
        for beyond in (0, 1)
    ]
    assert codes == [0, -signal.SIGABRT]
    (finding,) = tmp_path.glob("finding.*")
    assert "heap-buffer-overflow" in finding.read_text()


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        (b"\0GLIBC_2.2.5\0GLIBC_2.17\0libc.so.6\0", "manylinux_2_17"),
        (b"\0GLIBC_2.2.5\0GLIBC_2.18\0libc.so.6\0", "linux"),
        (b"\0GLIBC_2.17\0GLIBCXX_3.4.29\0libstdc++.so.6\0", "linux"),
        (b"\0GLIBC_2.17\0libc.so.6\0libgomp.so.1\0", "linux"),
        (b"\0GLIBC_2.17\0GLIBC_ABI_DT_RELR\0libc.so.6\0", "linux"),
        (b"\0libc.musl-x86_64.so.1\0", "linux"),
    ],
)
def test_a_wheel_is_for_every_linux_if_the_symbols_allow(tmp_path: Path, content: bytes, tag: str) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(content)
    assert compiler.platform_tag(library) == f"{tag}_{compiler.machine()}"
