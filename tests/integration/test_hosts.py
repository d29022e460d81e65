"""Three hosts of network namespaces: a firewall between them, and one cable cut for good.

Needs root and `../shared/container-lab/hosts.sh`; nothing can leave the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sweeper.store import Store

from .conftest import ROOT, environment, until, write_spec

LAB = ROOT.parent / "shared" / "container-lab" / "hosts.sh"
HEAD = "10.77.0.1"
NUM_HOSTS = 3
# all of Ray's own are below 20000, as where a firewall lets them through; its workers take 10002 and up by themselves
OWN_PORTS = [
    f"--{name}-port={port}"
    for port, name in enumerate(
        (
            "node-manager", "object-manager", "metrics-export", "dashboard-agent-listen", "dashboard-agent-grpc",
            "runtime-env-agent",
        ),
        start=8701,
    )
]  # fmt: skip
pytestmark = pytest.mark.skipif(
    not LAB.exists() or os.geteuid() != 0 or shutil.which("iptables") is None,
    reason="needs root, iptables and ../shared/container-lab/hosts.sh",
)


class Hosts:
    """Host 1 is the head; every host computes with one CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder = tempfile.mkdtemp()  # the lab keeps each host's /tmp/ray below it
        token = folder / "token"
        token.write_text("b" * 64)
        token.chmod(0o600)
        self.secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.env = environment() | self.secret | {
            "TMPDIR": self.folder, "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        self.lab("down", NUM_HOSTS)  # what a test that was killed has left
        self.lab("up", NUM_HOSTS)

    def start(self) -> None:
        self.ray(1, "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--include-dashboard=true")
        until("the head", lambda: self.alive() == 1, timeout_s=120)
        for number in range(2, NUM_HOSTS + 1):
            self.ray(number, f"--address={HEAD}:6379")
        until("all hosts", lambda: self.alive() == NUM_HOSTS, timeout_s=120)

    def lab(self, *args: object) -> None:
        subprocess.run([LAB, *map(str, args)], env=self.env, check=True, capture_output=True)

    def ray(self, number: int, *options: str) -> None:
        program = Path(sys.executable).parent / "ray"
        # without TMPDIR: hosts that shared Ray's folder would delete each other's working directories
        command = [LAB, "run", str(number), "env", "-u", "TMPDIR", program, "start", "--block",
                   "--num-cpus=1", "--disable-usage-stats", *OWN_PORTS, f"--node-ip-address=10.77.0.{number}",
                   "--object-store-memory=100000000", *options]  # fmt: skip
        self.processes.append(
            subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    @contextmanager
    def firewall(self, number: int) -> Iterator[None]:
        """Nobody can open a connection to this host above Ray's own ports; nothing says so, as with most firewalls."""
        rule = ["INPUT", "-p", "tcp", "--syn", "--dport", "20000:65535", "-j", "DROP"]
        iptables = ["ip", "netns", "exec", f"sweep-h{number}", "iptables"]
        subprocess.run([*iptables, "-A", *rule], check=True)
        try:
            yield
        finally:
            subprocess.run([*iptables, "-D", *rule], check=True)

    def inside(self, *command: object) -> subprocess.CompletedProcess[str]:
        """A command on the head's network."""
        return subprocess.run(
            ["ip", "netns", "exec", "sweep-h1", sys.executable, *map(str, command)],
            cwd=ROOT, env=environment() | self.secret, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    def alive(self) -> int:
        """Hosts that the head counts as alive; 0 while it does not answer."""
        ask = f"u.Request('http://{HEAD}:8265/nodes?view=summary', headers={{'Authorization': 'Bearer {'b' * 64}'}})"
        found = self.inside("-c", f"import urllib.request as u; print(u.urlopen({ask}, timeout=5).read().decode())")
        if found.returncode != 0:
            return 0
        return sum(n["raylet"]["state"] == "ALIVE" for n in json.loads(found.stdout)["data"]["summary"])

    def trains(self, number: int) -> bool:
        """Whether a Ray Train worker is on that host."""
        found = subprocess.run(
            ["ip", "netns", "pids", f"sweep-h{number}"], capture_output=True, text=True, check=True
        ).stdout.split()
        names = [Path(f"/proc/{pid}/cmdline") for pid in found]
        return any(b"RayTrainWorker" in name.read_bytes() for name in names if name.exists())

    def down(self) -> None:
        for process in reversed(self.processes):
            process.kill()  # the whole host goes with it
            process.wait()
        self.lab("down", NUM_HOSTS)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        made.start()
        yield made
    finally:
        made.down()


def test_the_doctor_finds_a_firewall_that_lets_only_ray_through(hosts: Hosts, storage: Path) -> None:
    def all_reduce(limit_s: int) -> dict[str, str]:
        """limit_s: for nodes to answer, too, which have torch to import, beside another test"""
        where = ["--address", f"http://{HEAD}:8265", "--python", sys.executable, "--storage", storage]
        done = hosts.inside("-m", "sweeper", "doctor", *where, "--time-limit", limit_s, "--json")
        found = [f for f in json.loads(done.stdout)["findings"] if f["check"].startswith("all-reduce")]
        assert len(found) == 1, done.stdout
        assert done.returncode == (found[0]["level"] == "error"), done.stdout
        return found[0]

    healthy = all_reduce(limit_s=120)
    assert (healthy["level"], healthy["what"][:9]) == ("ok", "3 nodes, ")  # though no host knows its own name
    with hosts.firewall(2):
        broken = all_reduce(limit_s=30)
    assert (broken["level"], broken["what"][:15]) == ("error", "3 nodes cannot:")
    assert "open all TCP ports between the nodes" in broken["remedy"]


def test_a_cable_cut_for_good_costs_no_trial(hosts: Hosts, storage: Path, tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path, name="hosts", execution={"workers": 2}, concurrency=None,
        train={"lr": 1e-3, "batch_size": 32, "steps": 150, "max_length": 32, "checkpoint_every": 10},
    )  # fmt: skip
    where = ["--address", f"http://{HEAD}:8265", "--python", sys.executable, "--storage", storage]
    submitted = hosts.inside("-m", "sweeper", "submit", spec, *where)
    assert submitted.returncode == 0, submitted.stderr

    store = Store(storage)

    def trains() -> str | None:
        return in_the_middle(store) or ended_early(hosts, where)

    key = until("two hosts in the middle of a trial", trains, every_s=2)  # asking costs a process
    victim = next(number for number in (2, 3) if hosts.trains(number))
    assert sum(hosts.trains(number) for number in range(1, NUM_HOSTS + 1)) == 2  # three slots: one stays empty
    hosts.lab("cut", victim)
    until("the loss to be known", lambda: store.trial(key).failures())

    ended = hosts.inside("-m", "sweeper", "wait", "hosts", *where)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results: dict[str, Any] = {key: store.trial(key).result() for key in store.trials("hosts")}
    assert {r["status"] for r in results.values()} == {"finished"}
    assert {r["workers"] for r in results.values()} == {2}
    assert results[key]["resumed_from"]
    steps = [row["step"] for row in store.trial(key).rows()]
    assert steps == sorted(set(steps))  # no row twice, none out of turn
    listed = hosts.inside("-m", "sweeper", "list", *where, "--json")
    assert [job["status"] for job in json.loads(listed.stdout)] == ["SUCCEEDED"]


def ended_early(hosts: Hosts, where: list[object]) -> None:
    listed = hosts.inside("-m", "sweeper", "list", *where, "--json")
    if listed.returncode == 0 and json.loads(listed.stdout)[0]["status"] not in ("PENDING", "RUNNING"):
        raise AssertionError(hosts.inside("-m", "sweeper", "logs", "hosts", *where).stdout)


def in_the_middle(store: Store) -> str | None:
    if not (store.sweep_dir("hosts") / "plan.json").exists():
        return None
    for key in store.trials("hosts"):
        folder = store.trial(key)
        if folder.result() is None and folder.checkpoints() and folder.rows()[-1]["step"] >= 30:
            return key
    return None
