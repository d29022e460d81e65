"""What needs no cluster to be right: logs without Ray's lines, paths inside the roots, commands that travel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.submit import Cluster, ClusterError, has_token, ours
from sweeper.cli import _parser, main
from sweeper.control import driver, stop
from sweeper.plan import make_plan
from sweeper.remote import bundle, check_paths
from sweeper.spec import SpecError, parse_sweep
from sweeper.store import Store

SPEC = """
name: far
grid:
  backbone: [{builtin: char-llama, pretrain_steps: 0}]
  task: [{path: %s}]
  objective: [nll]
train: {lr: 1e-3, steps: 1, batch_size: 8}
"""


def test_a_jobs_log_is_ours_alone() -> None:
    log = (
        "2026-11-23 06:52:18,020\tINFO job_manager.py:568 -- Runtime env is setting up.\n"
        'Running entrypoint for job far-1: python -m sweeper\n{"sweep": 1}\n'
    )
    assert ours(log) == '{"sweep": 1}\n'


@pytest.mark.parametrize(("path", "fine"), [("a/b.jsonl", True), ("../x.jsonl", False), ("/etc/x.jsonl", False)])
def test_a_spec_names_no_file_outside_the_roots(path: str, fine: bool) -> None:
    plan = make_plan(parse_sweep(SPEC % path, "far.yaml"), Path("/data"))
    if fine:
        check_paths(plan, [Path("/data")])
    else:
        with pytest.raises(SpecError, match=r"far.yaml: /\S+ lies outside /data"):
            check_paths(plan, [Path("/data")])


@pytest.mark.parametrize(
    ("task", "fine"),
    [
        ("{hub: openai/gsm8k}", True),
        ("{hub: /etc}", False),
        ("{hub: ../../etc}", False),
        ("{hub: a/b/c}", False),
        ("{parts: [{path: a.jsonl}, {path: /etc/x.jsonl}]}", False),
        ("{builtin: addition, benchmarks: [{path: /etc/x.jsonl}]}", False),
        ("{builtin: addition, benchmarks: [{hub: /etc, name: e}]}", False),
        ("{builtin: addition, benchmarks: [{path: p.jsonl}]}", True),
    ],
)
def test_no_part_or_benchmark_names_one_either(task: str, fine: bool) -> None:
    text = (SPEC % "x.jsonl").replace("{path: x.jsonl}", task)
    assert task in text
    plan = make_plan(parse_sweep(text, "far.yaml"), Path("/data"))
    if fine:
        check_paths(plan, [Path("/data")])
    else:
        with pytest.raises(SpecError, match="lies outside /data"):
            check_paths(plan, [Path("/data")])


def test_no_token_no_talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert not has_token()
    with pytest.raises(ClusterError, match="--insecure"):
        Cluster("http://127.0.0.1:1")
    with pytest.raises(ClusterError, match="http://HEAD:8265"):
        Cluster("127.0.0.1:8265", insecure=True)


def test_what_travels_is_the_spec_and_the_package() -> None:
    with bundle("name: x\n", ship=True) as folder:
        assert folder is not None
        assert sorted(p.name for p in folder.iterdir()) == ["cluster", "jobs", "sweep.yaml", "sweeper"]
        assert not list(folder.rglob("__pycache__"))
        assert (folder / "sweeper" / "report.html.j2").is_file()
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        assert size < 1 << 20
    with bundle(None, ship=False) as folder:
        assert folder is None


def test_on_a_cluster_no_storage_is_no_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEPER_ON_CLUSTER", "1")
    monkeypatch.delenv("SWEEPER_STORAGE", raising=False)
    assert main(["list"]) == 2
    assert "name one with --storage" in capsys.readouterr().err


def test_stop_ends_the_driver_that_holds_the_lock_and_a_second_stop_is_quick(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = make_plan(parse_sweep(SPEC % "a.jsonl", "far.yaml"), Path("/data"))
    store.save_plan("far", plan.spec.text, plan.trials, {"source": "far.yaml"})
    assert driver(store, "far") is None
    code = (
        "import sys, time; from pathlib import Path; from sweeper.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('far'):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    found = driver(store, "far")
    assert found is not None
    assert found[0] == holder.pid
    assert stop(store, "far")
    assert holder.wait(10) != 0
    assert not stop(store, "far")


def test_every_command_for_a_cluster_takes_its_address() -> None:
    for command in ("submit x.yaml", "resume s", "stop s", "wait s", "list", "logs s", "status s", "report s"):
        args = _parser().parse_args([*command.split(), "--address", "http://head:8265"])
        assert args.address == "http://head:8265"
    assert os.environ.get("SWEEPER_ON_CLUSTER") is None
