"""Facts of a cluster -> findings: each threshold from both sides, and a remedy for all that is not well."""

from __future__ import annotations

import ast
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.diagnosis import diagnose
from cluster.facts import AllReduce, ClusterFacts, Machine, NodeFacts, Software, Storage
from cluster.finding import Finding, exit_status, lines, verdict
from cluster.node import OWN, PACKAGES, Node, mark_path
from cluster.versions import NEEDED
from jobs.spec import Execution, TrialSpec
from sweeper.commands_doctor import refused, token
from sweeper.disk_need import DiskNeed, disk_need
from sweeper.doctor import disk, placing, tracking
from sweeper.gpu_memory import shape_of
from sweeper.tracking import reach

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
VERSIONS: dict[str, str | None] = {
    "ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "deepspeed": "0.19.8", "mlflow": "3.17.2",
}  # fmt: skip
SOFTWARE = Software("box", "3.11.7", VERSIONS, "abc", token=True)
MACHINE = Machine(shm_total=8 * GIB, shm_free=8 * GIB, cpus=4, gpus=0)
STORAGE = Storage(there=True, error="", free=50 * GIB, sees_driver=True, seen=True)
NODE = NodeFacts("10.0.0.2 (head)", 4, 0, 2 * GIB, "", SOFTWARE, MACHINE, STORAGE, 0.001, 0.002)
SUM = AllReduce("gloo", (NODE.name, "10.0.0.3 (b)"), 0.2)
OTHER = replace(NODE, name="10.0.0.3 (b)")
CLUSTER = ClusterFacts("/shared", SOFTWARE, STORAGE, (NODE, OTHER), (SUM,))


def with_node(**changes: Any) -> ClusterFacts:
    """The healthy cluster with another second node; software, machine and storage as mappings of what differs."""
    parts = {k: replace(getattr(OTHER, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(CLUSTER, nodes=(NODE, replace(OTHER, **parts)))


def bad(facts: ClusterFacts, insecure: bool = False) -> list[Finding]:
    return [finding for finding in diagnose(facts, insecure) if finding.level != "ok"]


def only(facts: ClusterFacts, insecure: bool = False) -> Finding:
    (finding,) = bad(facts, insecure)
    assert finding.remedy
    return finding


def test_a_healthy_cluster_has_nothing_but_ok() -> None:
    findings = diagnose(CLUSTER, insecure=False)
    assert {finding.level for finding in findings} == {"ok"}
    assert exit_status(findings) == 0
    assert verdict(findings) == "healthy: 14 checks, 0 warnings"
    assert {f.check for f in findings if f.where == OTHER.name} == {
        "versions", "clock", "shared memory", "devices", "storage",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("package", "version", "level"),
    [
        ("transformers", "5.22.9", "error"),  # a minor version apart
        ("transformers", "5.23.1", "warning"),  # a patch apart
        ("transformers", "4.57.0", "error"),
        ("transformers", None, "error"),
        ("torch", "2.13.0+cu128", None),  # another build of the same
        ("torch", "2.12.0+cpu", "error"),
        ("ray", "2.60.1", "error"),
        ("deepspeed", "0.19.9", "warning"),
        ("mlflow", "3.16.0", "warning"),  # only the driver writes to MLflow
        ("mlflow", None, None),
    ],
)
def test_versions_of_a_node_are_held_to_the_drivers(package: str, version: str | None, level: str | None) -> None:
    facts = with_node(software={"versions": VERSIONS | {package: version}})
    if level is None:
        assert not bad(facts)
        return
    finding = only(facts)
    assert (finding.level, finding.check, finding.where) == (level, "versions", OTHER.name)
    assert f"{package} {version or 'is not installed'}" in finding.what


def test_a_cluster_that_agrees_on_the_wrong_version_is_told() -> None:
    old = replace(SOFTWARE, versions=VERSIONS | {"transformers": "4.57.0"})
    nodes = tuple(replace(node, software=old) for node in CLUSTER.nodes)
    findings = bad(replace(CLUSTER, driver=old, nodes=nodes))
    assert [f.where for f in findings] == ["driver", NODE.name, OTHER.name]
    assert all("transformers 4.57.0, >=5.20,<6 is needed" in f.what for f in findings)


@pytest.mark.parametrize(("python", "level"), [("3.11.9", "warning"), ("3.12.1", "error")])
def test_python_of_a_node_is_held_to_the_drivers(python: str, level: str) -> None:
    assert only(with_node(software={"python": python})).level == level


@pytest.mark.parametrize("sources", [None, "def"])
def test_a_node_with_other_sources_of_this_package_is_an_error(sources: str | None) -> None:
    finding = only(with_node(software={"sources": sources}))
    assert (finding.level, finding.check) == ("error", "package")


def test_needed_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert {name: declared[name] for name in NEEDED} == {n: SpecifierSet(s) for n, s in NEEDED.items()}
    assert tuple(NEEDED) == PACKAGES


@pytest.mark.parametrize(
    ("skew", "level"), [(0.9, None), (-0.9, None), (1.1, "warning"), (-29, "warning"), (31, "error"), (-31, "error")]
)
def test_a_clock_that_is_off(skew: float, level: str | None) -> None:
    found = bad(with_node(skew=skew))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(("ahead of" if skew > 0 else "behind") in f.what for f in found)


@pytest.mark.parametrize(
    ("shm", "gpus", "level", "said"),
    [
        (63 << 20, 0, "error", "64 MiB is the least"),
        (64 << 20, 0, "warning", "object store of 2.0 GiB goes to disk"),
        (2 * GIB, 0, None, ""),
        (GIB - 1, 1, "warning", "NCCL may need 1.0 GiB"),
        (0, 0, "error", "has 0 MiB"),
    ],
)
def test_small_shared_memory(shm: int, gpus: int, level: str | None, said: str) -> None:
    found = bad(with_node(machine={"shm_total": shm, "shm_free": shm, "gpus": gpus}, gpus=gpus))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(said in f.what and "shm" in f.remedy for f in found)


@pytest.mark.parametrize(
    ("ray", "torch", "cpus", "level", "said"),
    [
        (0, 2, 4, "warning", "torch sees 2 GPUs, Ray counts 0"),
        (2, 0, 4, "error", "Ray counts 2 GPUs, torch sees 0"),
        (2, 2, 4, None, ""),
        (0, None, 4, "error", "torch cannot be imported: OSError: no libcudart"),
        (0, 0, 8, "warning", "Ray counts 8 CPUs, the node has 4"),
    ],
)
def test_devices_of_ray_and_of_torch(ray: int, torch: int | None, cpus: int, level: str | None, said: str) -> None:
    error = "OSError: no libcudart" if torch is None else ""
    found = bad(with_node(gpus=ray, cpus=cpus, machine={"gpus": torch, "torch_error": error}))
    assert [f.level for f in found] == ([level] if level else [])
    assert all(said in f.what for f in found)


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ({"there": False, "free": None}, "/shared is not there"),
        ({"error": "Permission denied"}, "cannot be written: Permission denied"),
        ({"sees_driver": False, "seen": False}, "another directory than the driver's: the driver's file is not seen"),
        ({"seen": False}, "the driver does not see its files"),
    ],
)
def test_a_storage_that_is_not_shared(storage: dict[str, Any], said: str) -> None:
    finding = only(with_node(storage=storage))
    assert (finding.level, finding.check) == ("error", "storage")
    assert said in finding.what


def test_the_drivers_own_storage_needs_no_second_reader() -> None:
    alone = Storage(there=True, error="", free=GIB)
    assert not bad(replace(CLUSTER, driver_storage=alone))
    broken = only(replace(CLUSTER, driver_storage=replace(alone, error="No space left on device")))
    assert (broken.where, broken.level) == ("driver", "error")


def test_data_that_a_node_cannot_read_is_named() -> None:
    finding = only(with_node(storage={"missing": ("/data/a.jsonl", "/b", "/c", "/d")}))
    assert (finding.check, finding.level) == ("data", "error")
    assert "4 of the plan's files: /data/a.jsonl, /b, /c, ..." in finding.what


def test_a_node_that_does_not_answer_is_one_finding() -> None:
    silent = NodeFacts("10.0.0.3 (b)", error="no answer within 60 s")
    finding = only(replace(CLUSTER, nodes=(NODE, silent)))
    assert (finding.level, finding.check, finding.what) == ("error", "answer", "no answer within 60 s")


def test_a_cluster_without_a_token_is_an_error_unless_it_is_meant() -> None:
    facts = with_node(software={"token": False})
    assert (only(facts).level, only(facts).check) == ("error", "token")
    assert "--insecure" in only(facts).remedy
    assert only(facts, insecure=True).level == "warning"


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_an_all_reduce_that_fails_names_nodes_reasons_and_settings_of_its_backend(backend: str) -> None:
    failed = AllReduce(backend, SUM.nodes, None, {OTHER.name: "timed out\nafter 30 s"})
    finding = only(replace(CLUSTER, all_reduces=(failed,)))
    assert (finding.level, finding.check) == ("error", f"all-reduce {backend}")
    assert "10.0.0.3 (b): timed out after 30 s" in finding.what
    assert f"{backend.upper()}_SOCKET_IFNAME" in finding.remedy
    for setting in ("NCCL_DEBUG=INFO", "NCCL_IB_DISABLE=1"):
        assert (setting in finding.remedy) == (backend == "nccl")


def test_errors_decide_the_exit_status_and_remedies_stand_below() -> None:
    warning, error = (
        Finding("warning", "clock", "off", "b", "set it"),
        Finding("error", "storage", "gone", "a", "mount"),
    )
    assert (exit_status([warning]), exit_status([warning, error])) == (0, 1)
    text = list(lines([warning, error, Finding("ok", "clock", "fine", "a")]))
    assert text == [
        "b", "  WARNING  clock    off", "           remedy:  set it",
        "a", "  ERROR    storage  gone", "           remedy:  mount", "  ok       clock    fine",
        "not healthy, a sweep would break: 1 error, 1 warning",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("execution", "level", "said"),
    [
        ({"workers": 2, "cpus_per_worker": 2}, "ok", "room for 2 trial(s) at once, of 4 CPU (2 workers x 2) each"),
        ({"workers": 9}, "error", "a trial needs 9 CPU (9 workers x 1), the cluster has 8"),
        ({"gpus_per_worker": 1}, "error", "needs 1 GPU"),
        ({"cpus_per_worker": 5}, "error", "a worker with 5 CPU finds no node that has it"),  # 8 in all, but 4 a node
        ({"workers": 2, "cpus_per_worker": 3}, "ok", "room for 1 trial(s)"),
    ],
)
def test_placing_counts_nodes_and_names_what_is_short(execution: dict[str, Any], level: str, said: str) -> None:
    finding, at_once = placing(CLUSTER, shape_of(Execution(**execution)))
    assert finding.level == level
    assert said in finding.what
    assert bool(at_once) == (level == "ok")


@pytest.mark.parametrize(
    ("free", "need", "level"),
    [(50, None, "ok"), (0.5, None, "warning"), (50, 49, "ok"), (50, 51, "error"), (0.5, 0.1, "warning")],
)
def test_free_disk_against_the_plans_need(free: float, need: float | None, level: str) -> None:
    facts = with_node(storage={"free": int(free * GIB)})
    finding = disk(facts, None if need is None else DiskNeed(int(need * GIB), ("far/model",)))
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")
    assert need is None or "far/model" in finding.what


@pytest.mark.parametrize(
    ("status", "words", "said"),
    [
        (None, "... [Errno 111] Connection refused')", "--tracking-uri"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "right to make experiments"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (404, "not found", "path and all"),
        (500, "oops", "log"),
    ],
)
def test_mlflow_that_does_not_serve_has_its_own_remedy(status: int | None, words: str, said: str) -> None:
    finding = tracking("http://mlflow:5000", status, words)
    assert finding.level == "error"
    assert said in finding.remedy
    assert tracking("http://mlflow:5000", 200, "").level == "ok"


def test_a_database_that_no_sweep_has_made_yet_is_not_said_to_answer(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    finding = tracking(uri, *reach(uri))
    assert (finding.level, finding.what) == ("ok", f"{uri} is not there yet, the first sweep makes it")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_database_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    finding = tracking("", *reach(f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert finding.level == "error"
    assert f"{tmp_path} cannot be written" in finding.what


def test_the_jobs_api_is_judged_by_what_it_answers_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    assert token("http://h", (401, ""), False).level == "ok"
    assert token("http://h", (None, "Connection refused"), False).check == "connection"
    assert token("http://h", (404, ""), False).check == "connection"
    assert [token("http://h", (200, ""), meant).level for meant in (False, True)] == ["error", "warning"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nonexistent")
    assert "none is at hand" in token("http://h", (401, ""), False).what


def test_a_refusal_is_read_for_its_reason() -> None:
    checks = [refused(text, "driver").check for text in ("Version mismatch: ...", "Authentication failed", "no route")]
    assert checks == ["versions", "token", "connection"]


def test_a_node_leaves_nothing_in_the_storage(tmp_path: Path) -> None:
    driver, node = Node("x-driver"), Node("x-node")
    assert driver.storage(str(tmp_path), "word", None, [])["error"] == ""
    facts = node.storage(str(tmp_path), "word", driver.name, [str(tmp_path), "/nonexistent"])
    assert (facts["there"], facts["sees_driver"], facts["missing"]) == (True, True, ["/nonexistent"])
    assert mark_path(str(tmp_path), "x-node").read_text() == "word"
    node.forget()
    driver.forget()
    assert not list(tmp_path.iterdir())
    assert node.storage(str(tmp_path / "none"), "word", driver.name, [])["there"] is False


def test_what_runs_on_a_node_needs_nothing_of_ours() -> None:
    """But jobs/network.py, which is sent along."""
    for file, sent in (("cluster/node.py", {"jobs.network"}), ("jobs/network.py", set[str]())):
        tree = ast.parse((ROOT / file).read_text())
        named = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        named |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert not {name.split(".")[0] for name in named - sent} & {*OWN, "ray", "packaging", "pydantic"}


def small_trial(objective: str | None, **train: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 0},
            "task": {"builtin": "addition"},
            "objective": {"name": objective} if objective else None,
            "seed": 0,
            "train": {"lr": 1e-3, "steps": 200} | train,
            "evaluation": {},
        }
    )


def test_disk_need_counts_what_is_there_at_once(tmp_path: Path) -> None:
    def peak(trials: list[TrialSpec], at_once: int = 1) -> int:
        return disk_need(trials, tmp_path, at_once).peak_bytes

    one, record = small_trial("nll"), 1 << 20
    params = (peak([small_trial(None)]) - record) / 4  # only the backbone is made
    assert 0.9 < params / 134_592 < 1.1
    assert peak([one]) - record == (4 + 2 * 12) * params  # the backbone, a checkpoint and the next one
    assert peak([one] * 3, 2) - 3 * record == (4 + 2 * 2 * 12) * params
    assert peak([small_trial("nll", steps=100)]) - record == 4 * params  # over before its first checkpoint
    assert peak([small_trial("nll", keep_model=True)]) - peak([one]) == 4 * params
    (tmp_path / "backbones").mkdir()
    hub = one.model_copy(update={"backbone": one.backbone.model_validate({"hub": "far/model"})})
    assert disk_need([hub], tmp_path, 1).unknown == ("model",)
