"""Two hosts train one run: network namespaces that a pair of virtual Ethernet devices joins.

It needs root and `ip` (iproute2), and is no part of the test run: `make test-hosts`. All addresses are inside
the namespaces, which are removed at the end. The hosts share a file system, as those of a cluster do, and
with it the run folder.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launching import RANK_TIMEOUT, TRAIN, Started, environment, finish, free_port, stamp, start
from runs import assert_same_end

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500  # in a namespace of its own it is free
SLOW, TIMEOUT = 4.0, 12.0  # seconds: a pause that is waited for, and what is not


@dataclass(frozen=True)
class Hosts:
    """Two network namespaces."""

    names: tuple[str, str]

    def start(self, host: int, *words: object, **variables: object) -> Started:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], sys.executable, *map(str, words)],
            env=environment(GLOO_SOCKET_IFNAME="net", **variables),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def torchrun(self, *words: object) -> list[Started]:
        """Start one process on each host."""
        rendezvous = ("--nnodes", 2, "--master-addr", ADDRESSES[0], "--master-port", PORT)
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", 1, *rendezvous)
        return [self.start(host, *launcher, "--node-rank", host, *TRAIN, *words) for host in (0, 1)]

    def slurm(self, *words: object) -> list[Started]:
        """Start one process on each host as srun does."""
        job = {
            "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "train", "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1,
            "SLURM_NNODES": 2, "SLURM_NODELIST": ",".join(ADDRESSES), "SLURM_LOCALID": 0,
        }  # fmt: skip
        return [
            self.start(host, *TRAIN, *words, **job, SLURM_PROCID=host, SLURM_NODEID=host) for host in (0, 1)
        ]

    def signal(self, host: int, number: int) -> None:
        """Send a signal to all processes of a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=True
        )
        for word in listed.stdout.split():
            os.kill(int(word), number)

    def link(self, state: str) -> None:
        """Plug the cable in ("up") or out ("down")."""
        ip("-n", self.names[0], "link", "set", "net", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.fail("two hosts need root and the command ip (package iproute2)", pytrace=False)
    names = (f"lambdanets-{os.getpid()}-a", f"lambdanets-{os.getpid()}-b")
    made = Hosts(names)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "net", "netns", names[0], "type", "veth", "peer", "name", "net", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "net")
            for device in ("lo", "net"):
                ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        for host, name in enumerate(names):
            if Path("/run/netns", name).exists():
                made.signal(host, signal.SIGKILL)
                ip("netns", "del", name)


WORDS = [
    "digits", "--epochs", "4", "--batch-size", "16",
    *(
        word
        for setting in (
            "engine.accelerator=cpu", "engine.threads=1", "engine.strategy=ddp", "engine.max_batches=15",
            "engine.save_steps=1", f"engine.timeout_minutes={TIMEOUT / 60}",
        )
        for word in ("--set", setting)
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes on one host."""
    folder = tmp_path_factory.mktemp("one") / "run"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port())
    ((code, _, said),) = finish(start(*launcher, *TRAIN, *WORDS, "--out", folder))
    assert code == 0, said
    return folder


def until_it_saves(folder: Path, processes: list[Started]) -> None:
    """Wait for three checkpoints of this session."""
    last, seen = folder / "checkpoints" / "last.ckpt", set()
    before, until = stamp(last), time.monotonic() + RANK_TIMEOUT
    while len(seen) < 3 and time.monotonic() < until:
        assert all(process.poll() is None for process in processes), finish(*processes)
        seen |= {stamp(last)} - {before}
        time.sleep(0.02)
    assert seen


def sentences(end: tuple[int, str, str]) -> list[str]:
    """What this package says on a host; torchrun adds a report of its own."""
    return [line for line in end[2].splitlines() if re.match(r"lambdanets( \(process \d\))?: ", line)]


def check_lost(end: tuple[int, str, str], folder: Path, how: str) -> None:
    assert end[0] != 0
    (line,) = sentences(end)
    assert f"another process of this run {how}" in line
    assert line.endswith(f"Continue with: lambdanets train --resume {folder}")


def test_two_hosts_train_what_one_does_and_wait_for_a_slow_one(
    hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    processes = hosts.torchrun(*WORDS, "--out", folder)
    until_it_saves(folder, processes)
    hosts.signal(1, signal.SIGSTOP)
    time.sleep(SLOW)
    hosts.signal(1, signal.SIGCONT)
    ends = finish(*processes)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [sentences(end) for end in ends] == [[], []]
    assert_same_end(whole, folder)


def test_what_is_lost_ends_the_run_which_resumes(hosts: Hosts, whole: Path, tmp_path: Path) -> None:
    """The link is cut under SLURM, a host is killed under torchrun, one stops for ever under SLURM."""
    folder = tmp_path / "run"
    processes = hosts.slurm(*WORDS, "--out", folder)
    until_it_saves(folder, processes)
    hosts.link("down")
    try:
        for end in finish(*processes):
            check_lost(end, folder, "did not answer for 12 s")
    finally:
        hosts.link("up")

    processes = hosts.torchrun("--resume", folder)
    until_it_saves(folder, processes)
    hosts.signal(0, signal.SIGKILL)
    _, end = finish(*processes)
    check_lost(end, folder, "ended (")

    processes = hosts.slurm("--resume", folder)
    until_it_saves(folder, processes)
    hosts.signal(1, signal.SIGSTOP)
    check_lost(*finish(processes[0]), folder, "did not answer for 12 s")
    hosts.signal(1, signal.SIGKILL)
    finish(processes[1])

    ends = finish(*hosts.torchrun("--resume", folder))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert_same_end(whole, folder)
