"""Locks between processes, signals of data-loading processes, and a system that is not POSIX."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lambdanets.utils import processes
from lambdanets.utils.processes import InUseError, NoLockWarning, locked, lost_worker
from preloaded import Preloaded

HOLD = """
import os, sys, time
from pathlib import Path
from lambdanets.utils.processes import locked
with locked(Path(sys.argv[1]), "it"):
    if os.fork() == 0:  # as a data-loading process
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with locked(path, "the run"):
        refused = locked(path, "the run", patience=0.3)
        says = (
            rf"^the run is in use by another process \(process {os.getpid()} on .+\); wait for it or stop it$"
        )
        with pytest.raises(InUseError, match=says), refused:
            pass
    assert not path.exists()
    with locked(path, "the run"):
        pass


@pytest.mark.slow
def test_a_lock_ends_with_its_process_and_is_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"process {holder.pid} on "), locked(path, "it"):
            pass
        holder.kill()
        holder.wait()
        with locked(path, "it"):  # the child still runs, and the file still lies there
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_lock_that_is_removed_while_it_is_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / ".lock", fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()  # by the process that released it just before

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path, "it"), pytest.raises(InUseError), locked(path, "it"):
        pass


def test_a_lock_that_was_moved_away_leaves_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with locked(path, "the first"):
        path.parent.rename(tmp_path / "moved")
        second = locked(path, "the second")
        second.__enter__()
    with pytest.raises(InUseError), locked(path, "the third"):
        pass
    second.__exit__(None, None, None)
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.warns(NoLockWarning, match=r"\.lock cannot be locked \(.+\): other processes can use it"),
        locked(tmp_path / ".lock", "it"),
    ):
        pass


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a signal's sender is not known here")
def test_a_data_loading_process_outlives_signals_of_others_alone() -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        processes.leave_signals_to_parent()
        os.write(told, b"!")
        time.sleep(60)
        os._exit(1)
    os.close(told)
    assert os.read(ready, 1)
    os.close(ready)
    for number in processes.STOP_SIGNALS:
        subprocess.run(["sh", "-c", f"kill -{int(number)} {child}"], check=True)
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_ignored_hang_up_stays_ignored() -> None:
    assert set(processes.listened_signals()) == set(processes.STOP_SIGNALS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(processes.STOP_SIGNALS) - set(processes.listened_signals()) == {signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "Killed"),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory. Please try to raise your shared memory limit.",
            "Bus error",
        ),
        ("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details", "exit code 1"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "it ended unexpectedly"),
        (
            "unable to write to file </torch_7_42_0>: No space left on device (28)",
            "no shared memory was left",
        ),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_how_a_data_loading_process_ended(text: str, how: str | None) -> None:
    assert lost_worker(RuntimeError(text)) == how
    follower = OSError("curves.png could not be written")
    follower.__context__ = ValueError("something between")
    follower.__context__.__cause__ = RuntimeError(text)
    assert lost_worker(follower) == how


def test_the_signal_that_ended_a_reader_is_found_behind_torchs_second_error() -> None:
    """torch catches its own error while it waits for data, and raises a vaguer one from it."""
    vague = RuntimeError("DataLoader worker (pid(s) 42) exited unexpectedly")
    assert lost_worker(vague) == "it ended unexpectedly"
    vague.__cause__ = RuntimeError("DataLoader worker (pid 42) is killed by signal: Killed. ")
    assert lost_worker(vague) == "Killed"


def test_a_ring_of_errors_ends() -> None:
    """PyTorch's writer of a zip file leaves one where the disk is full."""
    first, second = OSError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert lost_worker(first) is None


WINDOWS = """
import os, signal, sys
import lightning.pytorch, matplotlib.pyplot, timm, torch, tyro  # other packages, for this system
for name in ("fcntl", "resource"):
    sys.modules[name] = None
del os.pread, os.register_at_fork
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
import lambdanets, lambdanets.ops, lambdanets.nn, lambdanets.models
lambdanets.models.create_model("lambda_resnet_digits")
from lambdanets.cli import main
sys.exit(main(["train", "digits", "--out", sys.argv[1]]))
"""


@pytest.mark.slow
def test_on_windows_models_import_and_training_is_refused_in_a_sentence(tmp_path: Path) -> None:
    program = tmp_path / "windows.py"
    program.write_text(WINDOWS)
    done = Preloaded(program, tmp_path / "run", env=os.environ)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 1
    assert errors.splitlines() == [
        "lambdanets: training needs a POSIX system, such as Linux or macOS; on Windows use WSL"
    ]
    assert not (tmp_path / "run").exists()
