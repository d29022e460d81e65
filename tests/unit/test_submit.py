"""What needs no cluster to be right: logs without Ray's lines, paths inside the roots, commands that travel."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from cluster.submit import Cluster, ClusterError, has_token, ours
from sweeper.cli import _parser, main
from sweeper.commands_cluster import _remote_options
from sweeper.control import driver, stop
from sweeper.doctor import data_files
from sweeper.options import tracking_uri_of
from sweeper.plan import make_plan
from sweeper.remote import bundle, check_paths
from sweeper.spec import SpecError, parse_sweep
from sweeper.store import Store, StoreError

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


@pytest.mark.parametrize(("path", "fine"), [("a/b.jsonl", True), ("/etc/x.jsonl", False)])
def test_a_spec_names_no_file_outside_the_roots(path: str, fine: bool) -> None:
    plan = make_plan(parse_sweep(SPEC % path, "far.yaml"), Path("/data"))
    if fine:
        check_paths(plan, [Path("/data")])
    else:
        with pytest.raises(SpecError, match=r"far.yaml: /\S+ lies outside /data"):
            check_paths(plan, [Path("/data")])


@pytest.mark.parametrize(
    "task", ["{path: ../data/x.jsonl}", "{parts: [{path: a.jsonl}, {path: b/../../data/x.jsonl}]}"]
)
def test_a_way_up_is_refused_even_where_it_leads_back(task: str) -> None:
    """The client's root is /data, the cluster's may be /srv/d."""
    plan = make_plan(parse_sweep((SPEC % "x.jsonl").replace("{path: x.jsonl}", task), "far.yaml"), Path("/data"))
    with pytest.raises(SpecError, match=r"far.yaml: \S*/data/x.jsonl has '\.\.' in it; say where below"):
        check_paths(plan, [Path("/data")])


def test_the_driver_on_the_cluster_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (root / "x.jsonl").symlink_to(tmp_path / "x.jsonl")  # inside, as far as a client knows
    (tmp_path / "far.yaml").write_text(SPEC % "x.jsonl")
    monkeypatch.setenv("SWEEPER_ON_CLUSTER", "1")
    where = ["--data-root", str(root), "--storage", str(tmp_path / "storage")]
    assert main(["run", str(tmp_path / "far.yaml"), *where]) == 2
    assert f"{tmp_path}/x.jsonl lies outside {root} and {tmp_path}/storage" in capsys.readouterr().err


def test_only_an_address_of_mlflow_that_was_typed_travels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")  # the laptop's: on the cluster it is nobody's
    words = ["submit", "x.yaml", "--address", "http://head:8265"]
    for more, travels in (([], False), (["--tracking-uri", "http://mlflow:5000"], True)):
        args = _parser().parse_args([*words, *more])
        args.given_storage = None
        assert (more == _remote_options(args)[:2]) is travels
        assert "http://127.0.0.1:5000" not in _remote_options(args)
        assert tracking_uri_of(args, Store(tmp_path), None) == (more or ["", "http://127.0.0.1:5000"])[1]


@pytest.mark.parametrize(
    "uri", ["http://me:hunter2@mlflow:5000", "https://hunter2@mlflow", "postgresql://me:hunter2@db/x"]
)
@pytest.mark.parametrize("command", ["run x.yaml", "submit x.yaml --address http://h:8265", "report s", "doctor"])
def test_a_login_in_mlflows_address_is_refused_and_not_repeated(
    uri: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--tracking-uri", uri])
    told = capsys.readouterr().err
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the sweep runs" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConnectionError, match=r"^\$MLFLOW_TRACKING_URI: a login does not belong") as caught:
        tracking_uri_of(_parser().parse_args(["run", "x.yaml"]), Store(tmp_path), None)
    assert "hunter2" not in told + str(caught.value)
    assert tracking_uri_of(
        _parser().parse_args(["run", "x", "--tracking-uri", "postgresql://me@db/x"]), Store(tmp_path), None
    )


@pytest.mark.parametrize(
    "words", ["status far --addr http://h:8265", "stop far --pyth x", "submit x.yaml --addre http://h:1"]
)
def test_an_option_cut_short_is_none(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would not be taken off what is asked on the cluster, which would then ask itself without end."""
    with pytest.raises(SystemExit):
        _parser().parse_args(words.split())
    assert "--add" in capsys.readouterr().err or "--pyth" in words


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
        assert size < 3 << 19  # the package alone: 1.1 MB
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


def test_who_only_looks_is_no_driver_and_does_not_stop_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = make_plan(parse_sweep(SPEC % "a.jsonl", "far.yaml"), Path("/data"))
    store.save_plan("far", plan.spec.text, plan.trials, {"source": "far.yaml"})
    file = store.sweep_dir("far") / "driver.lock"
    file.write_text(
        f"process {os.getpid()} on {socket.gethostname()}"
    )  # of a driver that was killed: somebody else's by now
    with file.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert driver(store, "far") is None
        assert not stop(store, "far")  # else it would have signalled this process
        Timer(0.2, looking.close).start()
        with store.lock("far"):  # a driver waits until the other has looked
            assert driver(store, "far") == (os.getpid(), socket.gethostname())
            with pytest.raises(StoreError, match=rf"being run already \(process {os.getpid()} on"), store.lock("far"):
                pass


def test_a_process_that_does_not_hold_the_lock_is_not_signalled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = make_plan(parse_sweep(SPEC % "a.jsonl", "far.yaml"), Path("/data"))
    store.save_plan("far", plan.spec.text, plan.trials, {"source": "far.yaml"})
    with subprocess.Popen(["sleep", "600"]) as innocent, store.lock("far"):
        (store.sweep_dir("far") / "driver.lock").write_text(f"process {innocent.pid} on {socket.gethostname()}")
        with pytest.raises(StoreError, match=f"says process {innocent.pid}, which is not it"):
            stop(store, "far")
        assert innocent.poll() is None
        innocent.kill()


def test_what_has_ended_is_not_said_to_be_stopped_and_nothing_is_taken_back_beside_a_driver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    plan = make_plan(parse_sweep(SPEC % "a.jsonl", "far.yaml"), Path("/data"))
    store.save_plan("far", plan.spec.text, plan.trials, {"source": "far.yaml", "tracking_uri": ""})
    first, second = (store.trial(trial.key) for trial in plan.trials)
    first.create(plan.trials[0])
    first.finish("finished", step=0)
    where = ["--storage", str(tmp_path)]
    assert main(["stop", "far", first.key, *where]) == 0
    assert capsys.readouterr().out == f"{first.key} is finished already\n"
    assert main(["stop", "far", second.key, *where]) == 0
    assert capsys.readouterr().out == f"{second.key}: stopped\n"
    assert main(["stop", "far", second.key, "--json", *where]) == 0
    told = {"sweep": "far", "trial": second.key, "stopped": False, "what": "is stopped already"}
    assert json.loads(capsys.readouterr().out) == told
    assert main(["logs", "far", second.key, "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["by"] == "hand"
    with store.lock("far"):
        assert main(["resume", "far", second.key, *where]) == 2
    assert "being run already" in capsys.readouterr().err
    assert (second.result() or {})["status"] == "stopped"
    assert not second.revived()


def test_the_doctor_looks_for_every_file_that_a_plan_names(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "bench.jsonl", "held.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "response": "b"}\n')
    task = "{parts: [{path: a.jsonl}, {path: b.jsonl}], benchmarks: [{path: bench.jsonl}]}"
    task += ", {path: a.jsonl, heldout_path: held.jsonl}"
    plan = make_plan(parse_sweep((SPEC % "x.jsonl").replace("{path: x.jsonl}", task), "far.yaml"), tmp_path)
    assert sorted(Path(file).name for file in data_files(plan)) == ["a.jsonl", "b.jsonl", "bench.jsonl", "held.jsonl"]


def test_every_command_for_a_cluster_takes_its_address() -> None:
    for command in ("submit x.yaml", "resume s", "stop s", "wait s", "list", "logs s", "status s", "report s"):
        args = _parser().parse_args([*command.split(), "--address", "http://head:8265"])
        assert args.address == "http://head:8265"
    assert os.environ.get("SWEEPER_ON_CLUSTER") is None
