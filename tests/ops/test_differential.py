"""The random differential test: hundreds of problems, and a check that it finds injected errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import differential

from forked import forked
from preloaded import run_preloaded

SCRIPT = Path(differential.__file__)
CASES = 600
# Replaces a kernel's output and searches, once for each way of failing; it forks, so it must have no threads.
BROKEN = """
import json, os, signal, sys, time
sys.path[:0] = sys.argv[1:3]
import differential
from lambdanets.ops.kernels import attention

correct = attention.output

def wrong(q, v, e, problem, y):
    correct(q, v, e, problem, y)
    y.mul_(1.5)

def died(*arguments):
    os.kill(os.getpid(), signal.SIGSEGV)

def hung(*arguments):
    time.sleep(30)

found = {}
for broken, problems in ((wrong, 4), (died, 4), (hung, 2)):
    attention.output = broken
    tally = differential.Tally(0)
    differential.search(tally, list(range(problems)), ("reference", "attention"), timeout=1.0)
    bad = [(row["kernel"], row["outcome"]) for row in tally.bad]
    found[broken.__name__] = [tally.problems, tally.number("right"), bad]
print(json.dumps(found))
"""


def test_no_kernel_is_wrong_dies_or_hangs_on_random_problems(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    command = [sys.executable, str(SCRIPT), "--seed", "0", "--cases", str(CASES), "--json", str(counts)]
    # With its environment from the beginning, the script does not start itself again.
    environment = os.environ | differential.ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(counts.read_text())
    assert found["problems"] == CASES
    served = {kernel for kernel, _, outcome, _ in found["counts"] if outcome == "right"}
    assert served >= {"reference", "conv", "attention", "fft", "auto", "recurrence", "layer"}


def test_a_broken_kernel_is_found_and_the_search_goes_on() -> None:
    folders = [str(SCRIPT.parent), str(SCRIPT.parents[1])]
    done = run_preloaded("-c", BROKEN, *folders, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"wrong", "died", "hung"}
    for outcome, (problems, right, bad) in found.items():
        assert right >= problems, found
        assert bad, found
        assert {tuple(row) for row in bad} == {("attention", outcome)}, found


def test_an_exception_in_a_forked_process_is_an_ending() -> None:
    def raises():
        yield 1
        raise ValueError("why")

    ending = forked(raises, timeout=5.0)
    assert ending.results == [1]
    assert (ending.how, ending.why) == ("raised", "ValueError: why")


def test_a_forked_process_that_leaves_has_died() -> None:
    def leaves():
        yield 1
        os._exit(3)

    ending = forked(leaves, timeout=5.0)
    assert (ending.results, ending.how, ending.why) == ([1], "died", "exit 3")


def test_a_seed_and_an_index_are_one_problem() -> None:
    assert differential.draw(3, 5).line() == differential.draw(3, 5).line()
    assert differential.draw(3, 5).line() != differential.draw(4, 5).line()
