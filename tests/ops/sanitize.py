"""The native kernel under AddressSanitizer and UndefinedBehaviorSanitizer.

`python tests/ops/sanitize.py --minutes M` compiles the kernel with both into a temporary folder. With it run
the tests of the kernel, and M minutes of `differential.py`, for each instruction set that this CPU has. The
allocator is AddressSanitizer's: an access outside of any tensor is found. Needs gcc, whose runtimes of the
sanitizers can be preloaded. Prints what is found, and exits with 1 then.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lambdanets.ops.kernels import native
from lambdanets.ops.kernels.native import compiler

TESTS = (
    "test_native.py",
    "test_shared_content.py",
    "test_projection.py",
    "test_step.py",
    "../nn/test_native_step.py",
    "test_causal_state.py::test_equals_the_loops",
    "test_causal_state.py::test_any_division_into_calls_gives_the_whole",
    "test_causal_state.py::test_every_instruction_set_gives_the_same",
    "test_causal_state.py::test_results_do_not_depend_on_threads",
    # Not those of this file that interrupt a process or have 2^31 elements.
    "test_native_inputs.py::test_views_give_the_results_of_their_copies",
    "test_native_inputs.py::test_the_number_of_threads_may_change_between_passes_and_calls",
    "test_native_inputs.py::test_strides_beyond_32_bits",
)
RUNTIMES = ("libasan.so", "libubsan.so")
OPTIONS = {
    # PyTorch and Python free no memory at exit, and libraries that are not instrumented pair their own calls.
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}
LOADED = """
from lambdanets.ops.kernels import native
print(native.library.path())
print(native.isa())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = compiler.build(folder / "lambdanets" / "native", sanitize=True)
        environment = sanitizing(folder) | {"XDG_CACHE_HOME": name}
        loaded = subprocess.run(
            [sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, check=False
        )
        path, best = [*loaded.stdout.splitlines(), "", ""][:2]
        if path != str(library):
            raise SystemExit(f"the sanitized library is not loaded: {loaded.stdout}{loaded.stderr}")
        isas = list(native.ISAS)[: native.ISAS[best]]
        *tests, script = (Path(__file__).parent / file for file in (*TESTS, "differential.py"))
        runs = [["-m", "pytest", "-q", *tests]]  # they select each instruction set themselves
        words = [
            "--kernels",
            native.NAME,
            "recurrence",
            "--minutes",
            chosen.minutes / len(isas),
            "--seed",
            chosen.seed,
        ]
        runs += [[script, *words]] * len(isas)
        wrong = False
        for run, isa in zip(runs, [best, *isas], strict=True):
            print(f"instruction set {isa}", flush=True)
            selected = environment | {native.ISA_VARIABLE: isa}
            done = subprocess.run([sys.executable, *map(str, run)], env=selected, check=False)
            wrong = wrong or done.returncode != 0
        findings = sorted(folder.glob("finding.*"))
        for finding in findings:
            print(finding.read_text(errors="replace"))
        return 1 if findings or wrong else 0


def sanitizing(folder: Path) -> dict[str, str]:
    """Return the environment of a process that loads a sanitized library; reports are written to a folder."""
    environment = os.environ | {"LD_PRELOAD": " ".join(map(_runtime, RUNTIMES))}
    for variable, options in OPTIONS.items():
        environment[variable] = f"{options}:log_path={folder / 'finding'}"
    return environment


def _runtime(name: str) -> str:
    """Return the path of a runtime library of the compiler."""
    command = [*compiler.find_compiler(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"the compiler has no {name}; install gcc with its sanitizers, or set CXX=g++.")
    return path


if __name__ == "__main__":
    sys.exit(main())
