"""A sweep through the command line: real Ray Tune, Ray Train, DeepSpeed and MLflow on a database."""

import contextlib
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cluster.fork_server import OFF
from jobs.yardsticks import YARDSTICKS
from sweeper.plan import make_plan
from sweeper.spec import load_sweep
from sweeper.store import Store
from sweeper.tracking import Tracking

from .conftest import ROOT, environment, sweeper, until, write_spec

GRID = {
    "backbone": [{"builtin": "char-llama", "pretrain_steps": [0, 60]}],
    "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
    "objective": ["nll", "one-minus-p", {"name": "nll", "gate": {"side": "top", "at": 0.1}}],
    "seed": [1, 2],
}
# The one cell that cannot work, which only its worker finds out: that kernel is not installed here.
BROKEN = {
    "where": {"backbone": "char-llama-0", "objective": "one-minus-p"},
    "execution": {"attention": "flash_attention_2"},
}


def runs_of(storage: Path, name: str = "small") -> list[Run]:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def points(storage: Path, name: str = "small") -> dict[tuple[str, str], list[int]]:
    """(trial key, metric) -> the steps at which MLflow has a point, in order."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    return {
        (run.data.tags["sweeper.key"], metric): sorted(
            m.step for m in client.get_metric_history(run.info.run_id, metric)
        )
        for run in runs_of(storage, name)
        for metric in run.data.metrics
    }


def test_a_sweep_from_yaml_to_report(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, grid=GRID, overrides=[BROKEN], concurrency=None)
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 1, done.stderr  # two trials cannot work, and the sweep says so
    assert "2 trials failed" in done.stderr

    store = Store(storage)
    results = {key: store.trial(key).result() or {} for key in store.trials("small")}
    failed = {key for key, result in results.items() if result["status"] == "failed"}
    assert len(results) == 2 + 2 * 3 * 2
    assert {key.split("_")[2] for key in failed} == {"one-minus-p"}
    assert all("flash" in results[key]["error"].lower() for key in failed)
    assert [len(store.trial(key).failures()) for key in failed] == [1, 1]  # what was raised is not tried again
    assert all(result["status"] == "finished" for key, result in results.items() if key not in failed)
    _check_rows(store)
    _check_mlflow(storage, failed)
    _check_report(storage, failed)

    status = json.loads(sweeper("status", "small", "--json", storage=storage).stdout)
    assert status["counts"] == {"finished": 12, "failed": 2}

    # again: nothing finished is trained again, nothing is written twice
    before = {key: store.trial(key).result() for key in results if key not in failed}
    written = points(storage)
    fixed = write_spec(tmp_path, grid={**GRID, "objective": [*GRID["objective"], {"name": "power", "alpha": 0.5}]})
    plan = json.loads(sweeper("plan", fixed, "--json", storage=storage).stdout)
    todo = [t["objective"] for t in plan["trials"] if t["status"] != "finished"]
    # what has failed is tried again; one alpha costs its own trials
    assert sorted(todo) == ["one-minus-p"] * 2 + ["power a=0.5"] * 4
    done = sweeper("run", fixed, storage=storage)
    assert done.returncode == 0, done.stderr
    assert "18 trials, 12 done before" in done.stdout
    assert {key: store.trial(key).result() for key in before} == before
    after = points(storage)
    assert {place: after[place] for place in written} == written
    done = sweeper("run", fixed, storage=storage)
    assert done.returncode == 0
    assert "18 trials, 18 done before" in done.stdout
    assert points(storage) == after
    assert sweeper("sync", "small", storage=storage).returncode == 0
    assert points(storage) == after


def _check_rows(store: Store) -> None:
    for key, trial in store.trials("small").items():
        rows = store.trial(key).rows()
        if (store.trial(key).result() or {})["status"] == "failed":
            continue
        assert set(YARDSTICKS) <= rows[-1].keys()
        assert [row["step"] for row in rows] == ([0] if trial.objective is None else [10, 20, 30])
        assert not store.trial(key).checkpoints()  # bounded: a finished trial keeps none


def _check_mlflow(storage: Path, failed: set[str]) -> None:
    runs = {run.data.tags["sweeper.key"]: run for run in runs_of(storage)}
    parent = runs.pop("sweep")
    assert parent.info.status == "FAILED"
    assert len(runs) == 14
    for key, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("FAILED" if key in failed else "FINISHED")
        assert run.data.params["task"] == "addition-noise0.3"
        if key in failed:
            assert "FlashAttention" in run.data.tags["error"]
        else:
            assert set(YARDSTICKS) <= run.data.metrics.keys()
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/continuum.png"} <= artifacts


def _check_report(storage: Path, failed: set[str]) -> None:
    folder = storage / "sweeps" / "small" / "report"
    page = (folder / "report.html").read_text()
    assert all(key in page for key in failed)
    with (folder / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    runs = {run.data.tags["sweeper.key"]: run for run in runs_of(storage)}
    assert {row["key"]: row["mlflow_run_id"] for row in table} == {
        key: run.info.run_id for key, run in runs.items() if key != "sweep"
    }
    for row in table:
        recorded = runs[row["key"]].data.metrics.get("heldout/nll")
        assert recorded == (float(row["heldout/nll"]) if row["heldout/nll"] else None)


def test_lanes_change_nothing_but_time(storage: Path, tmp_path: Path) -> None:
    """A trial in a lane, after others, equals the same trial in a worker group of its own, forked or started by Ray."""
    grid = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
        "task": [{"builtin": "addition", "heldout_examples": 64, "score": {"kind": "similarity"}}],
        "objective": ["nll", "one-minus-p"],
        "seed": [1],
    }
    evaluation = {"samples": 4, "max_new_tokens": 4, "batch_size": 64, "base_temperatures": [0.001, 1]}
    for name in ("apart", "started"):
        shutil.copytree(storage, tmp_path / name, symlinks=True)
    numbers = []
    ways = ((True, storage, ""), (False, tmp_path / "apart", ""), (False, tmp_path / "started", "0"))
    for lanes, root, forks in ways:
        spec = write_spec(tmp_path, lanes=lanes, grid=grid, evaluation=evaluation)
        done = sweeper("run", spec, storage=root, env={OFF: forks})
        assert done.returncode == 0, done.stderr
        store = Store(root)
        _check_sampling(store, "small")
        numbers.append({key: untimed(store.trial(key).rows()) for key in store.trials("small")})
    assert numbers[0] == numbers[1] == numbers[2]
    assert len(numbers[0]) == 3


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time" and "per_s" not in k} for row in rows]


def _check_sampling(store: Store, sweep: str) -> None:
    """The scores of a row, from the answers that were kept; and what sharpening the backbone comes to."""
    for key, trial in store.trials(sweep).items():
        row = store.trial(key).rows()[-1]
        (file,) = (store.trial(key).path / "answers").iterdir()
        problems = store.trial(key).answers(file.name.removesuffix(".jsonl.gz"))
        assert len(problems) == 64
        values = [[score["value"] for score in problem["scores"]] for problem in problems]  # greedy first
        assert {len(v) for v in values} == {1 + 4}
        assert row["task/accuracy_greedy"] == pytest.approx(fmean(v[0] for v in values))
        assert row["task/accuracy_sampled"] == pytest.approx(fmean(fmean(v[1:]) for v in values))
        if trial.objective is None:
            assert 0 < row["task/accuracy_greedy"] < 1
            assert row["task/accuracy_at_t0.001"] == pytest.approx(row["task/accuracy_greedy"], abs=1e-6)
            assert row["task/accuracy_at_t1"] == pytest.approx(row["task/accuracy_sampled"], abs=0.1)  # another draw
        else:
            assert not any("at_t" in name for name in row)


def test_a_race_stops_what_is_behind_and_revive_brings_it_to_its_end(storage: Path, tmp_path: Path) -> None:
    """What was held at a rung, stopped and revived equals what was never disturbed."""
    grid = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
        "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
        "objective": ["nll", "one-minus-p", {"name": "power", "alpha": [2, 10]}],
        "seed": [1, 2],
    }
    evaluation = {"samples": 1, "max_new_tokens": 4, "batch_size": 32, "every": 10, "every_problems": 32}
    race = {"name": "race", "metric": "heldout/nll", "grace_steps": 10, "reduction_factor": 2}
    spec = write_spec(tmp_path, name="race", grid=grid, evaluation=evaluation, scheduler=race, concurrency=None)
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 0, done.stderr
    store = Store(storage)

    def results() -> dict[str, Any]:
        return {key: store.trial(key).result() or {} for key in store.trials("race")}

    stopped = {key: result for key, result in results().items() if result["status"] == "stopped"}
    assert stopped
    assert all(result["by"] == "race" and result["step"] in (10, 20) for result in stopped.values())
    assert all(result["status"] == "finished" for key, result in results().items() if "_nll_" in key)
    for key, result in stopped.items():
        assert result["train_s"] > 0
        assert [path.name for path in store.trial(key).checkpoints()] == [f"step-{result['step']:08d}"]
    states = {run.data.tags["sweeper.key"]: run.info.status for run in runs_of(storage, "race")}
    assert all(states[key] == ("KILLED" if key in stopped else "FINISHED") for key in states)
    assert "by race" in (store.sweep_dir("race") / "report" / "report.html").read_text()

    foreseen = sweeper("forecast", spec, "--noise", "0.3", "--json", storage=storage)
    assert foreseen.returncode == 0, foreseen.stderr
    rows = json.loads(foreseen.stdout)
    assert {(row["objective"], row["noise"]) for row in rows} == {
        (name, noise) for name in ("nll", "one-minus-p", "power a=2", "power a=10") for noise in (0.0, 0.3)
    }
    gain = {row["objective"]: row for row in rows if row["noise"] == 0}
    assert gain["nll"]["nll"] > gain["power a=10"]["nll"]  # a backbone that has not learnt yet

    done = sweeper("revive", "race", storage=storage)
    assert done.returncode == 0, done.stderr
    assert {key: result["status"] for key, result in results().items()} == dict.fromkeys(results(), "finished")
    # taken up where it was stopped, not begun anew; it may have been held once more on the way
    assert all(results()[key]["resumed_from"] >= result["step"] for key, result in stopped.items())
    assert all(results()[key]["train_s"] > result["train_s"] for key, result in stopped.items())  # of all legs
    plain = write_spec(tmp_path, name="plain", grid=grid, evaluation=evaluation)
    calm = tmp_path / "calm"
    calm.mkdir()
    (calm / "backbones").symlink_to(storage / "backbones")
    assert sweeper("run", plain, storage=calm).returncode == 0
    assert store.trials("race").keys() == Store(calm).trials("plain").keys()
    for key in store.trials("race"):
        assert measured(store, key) == measured(Store(calm), key), key


HUNGRY = """
import torch
from jobs.objectives import Objective

def loss(t):
    if t.logp.numel() > 64 and t.logp.dtype == torch.float32:  # while it trains, not while it is drawn
        torch.empty(1 << 60)  # more than any machine has
    return -t.logp

HUNGRY = Objective("hungry", loss, "-log p", "a test")
"""


def install(folder: Path, module: str, text: str, *objectives: str) -> dict[str, str]:
    """A package with objectives of its own, installed for who has this environment."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = "".join(f"{name} = {module}:{name.upper()}\n" for name in objectives)
    (info / "entry_points.txt").write_text(f"[objective_continuum.objectives]\n{points}")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_running_out_of_memory_halves_the_micro_batch_and_loses_nothing(storage: Path, tmp_path: Path) -> None:
    """NLL as an objective of an installed package whose memory grows with the tokens at once; 32 x 4 are too many."""
    env = install(tmp_path, "hungry", HUNGRY, "hungry")
    spec = write_spec(tmp_path, name="memory", grid=GRID | {"objective": ["nll", "hungry"], "backbone": [
        {"builtin": "char-llama", "pretrain_steps": 60}], "seed": [1]})  # fmt: skip
    done = sweeper("run", spec, storage=storage, env=env)
    assert done.returncode == 0, done.stderr
    assert "out of memory; from now on a worker takes 16 sequences at once" in done.stdout
    store = Store(storage)
    found = {n: next((storage / "trials").glob(f"*_{n}_*")).name for n in ("nll", "hungry")}
    nll, hungry = (store.trial(found[name]) for name in ("nll", "hungry"))
    assert [(f.result() or {})["micro_batch_size"] for f in (nll, hungry)] == [32, 16]
    assert any("again with 16 sequences at once" in failure["error"] for failure in hungry.failures())
    for name in ("heldout/nll", "train/nll", "train/grad_norm"):
        assert hungry.rows()[-1][name] == pytest.approx(nll.rows()[-1][name], rel=1e-4)


WORDY = """
import torch
from jobs.objectives import Objective

def loss(t):
    return -t.logp

def has_room_for_few():
    from jobs import evaluate
    generate = evaluate.generate

    def few(model, tokenizer, prompts, longest, samples, *more):
        if len(prompts) * max(samples, 1) > 64:
            torch.empty(1 << 60)  # more than any machine has
        return generate(model, tokenizer, prompts, longest, samples, *more)

    evaluate.generate = few

if torch.distributed.is_initialized():  # in the worker that trains by this objective
    has_room_for_few()
WORDY = Objective("wordy", loss, "-log p", "a test")
"""


def test_running_out_of_memory_in_evaluation_halves_that_and_changes_nothing(storage: Path, tmp_path: Path) -> None:
    """NLL as an objective of an installed package that has room for 64 answers at once, where 64 x 2 are asked for."""
    env = install(tmp_path, "wordy", WORDY, "wordy")
    spec = write_spec(tmp_path, name="answers", grid=GRID | {"objective": ["nll", "wordy"], "backbone": [
        {"builtin": "char-llama", "pretrain_steps": 60}], "seed": [1]})  # fmt: skip
    done = sweeper("run", spec, storage=storage, env=env)
    assert done.returncode == 0, done.stderr
    assert "out of memory in evaluation; from now on a worker evaluates 32 prompts at once" in done.stdout
    store = Store(storage)
    found = {n: next((storage / "trials").glob(f"*_{n}_*")).name for n in ("nll", "wordy")}
    nll, wordy = (store.trial(found[name]) for name in ("nll", "wordy"))
    result = wordy.result() or {}
    assert (result["evaluated_at_once"], result["micro_batch_size"]) == (32, 32)
    assert not (storage / "micro_batches").exists()
    assert len(wordy.failures()) == 1
    (file,) = (nll.path / "answers").iterdir()
    texts = [[p["texts"] for p in f.answers(file.name.removesuffix(".jsonl.gz"))] for f in (nll, wordy)]
    assert texts[0] == texts[1]


KEEPER = """
import os, pathlib, torch
from jobs.objectives import Objective

HERE, KEPT = pathlib.Path(__file__).parent, []

def seen(name):
    if torch.distributed.is_initialized():  # not where the report draws it
        with (HERE / name).open("a") as file:
            print(os.getpid(), file=file)

def calm(t):
    seen("calm")
    return -t.logp

def keeper(t):
    seen("keeper")
    if torch.distributed.is_initialized() and not KEPT:
        KEPT.append(torch.ones(3 << 27))  # 1.5 GiB, once a process
    return -t.logp

CALM = Objective("calm", calm, "-log p", "a test")
KEEPER = Objective("keeper", keeper, "-log p", "a test")
"""


def test_a_lane_whose_trial_keeps_memory_is_replaced(storage: Path, tmp_path: Path) -> None:
    env = install(tmp_path, "keeper", KEEPER, "calm", "keeper")
    train = {"lr": 1e-3, "batch_size": 32, "steps": 2, "max_length": 32}
    spec = write_spec(tmp_path, name="kept", grid=GRID | {"objective": ["calm", "keeper"], "backbone": [
        {"builtin": "char-llama", "pretrain_steps": 60}]}, train=train)  # fmt: skip
    done = sweeper("run", spec, storage=storage, env=env)
    assert done.returncode == 0, done.stderr
    calm, keeper = (list(dict.fromkeys((tmp_path / name).read_text().split())) for name in ("calm", "keeper"))
    assert len(calm) == 1  # both seeds in one process,
    assert keeper[0] == calm[0]  # in which comes the first one that keeps something;
    assert len(keeper) == 2  # the next one gets a new lane


def measured(store: Store, key: str) -> list[dict[str, float]]:
    """Rows without the clock."""
    return untimed(store.trial(key).rows())


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_tunes_schedulers_stop_on_a_yardstick_and_spare_the_anchor(
    storage: Path, tmp_path: Path, scheduler: str
) -> None:
    spec = write_spec(
        tmp_path,
        grid={**GRID, "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
              "objective": ["nll", "one-minus-p", {"name": "power", "alpha": [2, 10]}]},
        evaluation={"samples": 1, "max_new_tokens": 4, "batch_size": 64, "every": 10},
        scheduler={"name": scheduler, "metric": "heldout/nll", "grace_steps": 10, "reduction_factor": 2},
    )  # fmt: skip
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 0, done.stderr
    store = Store(storage)
    status = {key: (store.trial(key).result() or {})["status"] for key in store.trials("small")}
    assert set(status.values()) == {"finished", "stopped"}
    for key, state in status.items():
        rows = store.trial(key).rows()
        if "_nll_" in key or "_backbone_" in key:
            assert state == "finished"
        if state == "stopped":
            assert rows[-1]["step"] < 30
            assert "heldout/nll" in rows[-1]
    states = {run.data.tags["sweeper.key"]: run.info.status for run in runs_of(storage)}
    assert all(states[key] == ("KILLED" if s == "stopped" else "FINISHED") for key, s in status.items())


def test_a_cluster_that_is_too_small_says_so_at_once(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, execution={"workers": 2, "cpus_per_worker": 500})
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 2
    assert "a trial needs 1000 CPU (2 workers x 500), the cluster has" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_ray_at_the_address_says_so(storage: Path, tmp_path: Path) -> None:
    done = sweeper("run", write_spec(tmp_path), "--address", "127.0.0.1:1", storage=storage)
    assert done.returncode == 2
    assert "no Ray at 127.0.0.1:1" in done.stderr


def test_bad_rows_and_a_hub_out_of_reach_cost_no_compute(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n{"prompt": "2+2="}\n')
    task = {"path": "rows.jsonl"}
    done = sweeper("run", write_spec(tmp_path, grid={**GRID, "task": [task]}), storage=storage)
    assert done.returncode == 2
    assert "rows.jsonl:2: no text in field 'response'; this row has prompt" in done.stderr
    spec = write_spec(tmp_path, grid={**GRID, "backbone": [{"hub": "no-such-org/no-such-model"}]})
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 2
    assert "no-such-org/no-such-model is not in the cache and the hub does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ui_serves_the_sweep(storage: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Tracking(_planned(storage), "small", f"sqlite:///{storage / 'mlflow.db'}")
    command = [sys.executable, "-m", "sweeper", "ui", "--storage", str(storage), "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        page = [server.stdout.readline() for _ in range(2)][1]
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs" in page
        client = until("the server", lambda: _experiment(f"http://127.0.0.1:{port}"))
        assert any(tag.startswith("mlflow.sharedViewState.") for tag in client)
    finally:
        server.terminate()
        server.wait()


def _experiment(uri: str) -> dict[str, str] | None:
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        request = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=small"
        with urllib.request.urlopen(request) as answer:
            tags = json.loads(answer.read())["experiment"]["tags"]
            return {tag["key"]: tag["value"] for tag in tags}
    return None


def _planned(storage: Path) -> Store:
    """A sweep that is planned and not run."""
    store = Store(storage)
    made = make_plan(load_sweep(write_spec(storage)), storage)
    store.save_plan("small", made.spec.text, made.trials, {"source": "small.yaml", "tracking_uri": ""})
    return store
