"""Cells of a study without processes of their own."""

import subprocess
from contextlib import redirect_stderr, redirect_stdout

import pytest

from benchmarks.study import Cell, Study, StudyFiles, worker


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
