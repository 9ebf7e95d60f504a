"""Processes of one run as launchers start them, for tests."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from preloaded import Preloaded

RANK_TIMEOUT = 240
# What a launcher, or a process of another run, may have left in the environment.
INNER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LAMBDANETS_STARTED")
TRAIN = ("-m", "lambdanets", "train")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")

Started = subprocess.Popen[str] | Preloaded


def environment(**variables: object) -> dict[str, str]:
    """Return this process's environment without the variables of a launcher, and with the given ones."""
    kept = {name: value for name, value in os.environ.items() if name not in INNER}
    return kept | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in variables.items()}


def start(*words: object, cwd: Path | None = None, **variables: object) -> Preloaded:
    """Start `python WORDS...` without the seconds of importing the libraries."""
    return Preloaded(*words, cwd=cwd, env=environment(**variables))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_slurm(*words: object, tasks: int = 2, program: Sequence[object] = TRAIN) -> list[Preloaded]:
    """Start tasks on one node as srun does."""
    job = {
        "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_NNODES": 1, "SLURM_NODEID": 0, "SLURM_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip
    return [start(*program, *words, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in range(tasks)]


def by_hand(*words: object, folders: Iterable[Path]) -> list[Preloaded]:
    """One process in each folder, as the agents of torchrun on several machines start them."""
    places = list(folders)
    shared = {
        "WORLD_SIZE": len(places), "LOCAL_WORLD_SIZE": len(places), "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip
    return [
        start(*TRAIN, *words, cwd=place, **shared, RANK=rank, LOCAL_RANK=rank)
        for rank, place in enumerate(places)
    ]


def finish(*processes: Started) -> list[tuple[int, str, str]]:
    """Wait for processes, and return exit code, output and errors of each; kill those that do not end."""
    ends = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=RANK_TIMEOUT)
            assert process.returncode is not None
            ends.append((process.returncode, out, errors))
    finally:
        for process in processes:
            process.kill()
    return ends


def terminate(processes: Sequence[Started], once: Path) -> list[tuple[int, str, str]]:
    """Send SIGTERM to all as soon as a file is there, or is another than it was."""
    before = stamp(once)
    until = time.monotonic() + RANK_TIMEOUT
    while stamp(once) == before and all(p.poll() is None for p in processes) and time.monotonic() < until:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    return finish(*processes)


def stamp(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
