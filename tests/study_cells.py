"""Cells of a study without new interpreters: in the process of the study, or in forks of it."""

import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout

import pytest

from benchmarks.study import Cell, Study, StudyFiles, __main__, running, worker
from lambdanets import cli


class FinishedProcess(subprocess.Popen[bytes]):
    """What `subprocess.Popen` would return for a process that has ended with an exit status."""

    def __init__(self, code: int) -> None:
        self.returncode = code

    def __del__(self) -> None:
        """Do nothing: there is no process."""

    def poll(self) -> int:
        return self.returncode


def run_cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make studies of this process run their cells in it, one after the other: nothing is imported again."""

    def start(study: Study, files: StudyFiles, cell: Cell, jobs: int) -> FinishedProcess:
        log = files.log(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [str(files.directory), cell.contender, str(cell.seed), str(jobs)]
        with log.open("a") as output, redirect_stdout(output), redirect_stderr(output):
            return FinishedProcess(worker.main(words))

    monkeypatch.setattr("benchmarks.study.running._start", start)
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)  # which would end this process


class ForkedProcess(subprocess.Popen[bytes]):
    """What `subprocess.Popen` would return for a process with this id."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode, self.args = pid, None, []
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._waitpid_lock = True, threading.Lock()


def main() -> int:
    """Run `python -m benchmarks.study WORDS...`, whose cells are forks of this process."""
    running._start = _fork
    return cli.main(sys.argv[1:], run=__main__.run)


def _fork(study: Study, files: StudyFiles, cell: Cell, jobs: int) -> ForkedProcess:
    log = files.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, its = os.pipe()  # the writing end closes when the study ends
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(its)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target, source in enumerate((ours, output, output)):
            os.dup2(source, target)
        os._exit(worker.main([str(files.directory), cell.contender, str(cell.seed), str(jobs)]))
    os.close(ours)
    return ForkedProcess(pid)
