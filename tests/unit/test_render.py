"""`sweeper cluster render`: what it writes is what published schemas allow, and says the same everywhere.

Validated by what: Kubernetes' kinds and every pod template by Kubernetes' own strict JSON Schemas (of the package
kubernetes-validate); RayCluster and RayJob by tests/schemas/kuberay-1.7.0.yaml, written from KubeRay's field reference
of that release; launcher files by Ray's own schema and its own checks (ray-schema.json, validate_config), and their
commands by Ray's own command line, by bash and by running those that need no cluster. Nothing was run on Kubernetes or
on a cloud.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from cluster.growth import GROWS_TO, GrowthError, possible_nodes
from cluster.pods import PART_OF
from cluster.render import load_values, render, targets
from cluster.strict import ValuesError, parse
from cluster.values import Values, environment
from sweeper.cli import _parser, main
from tests.schemas import KUBERNETES, leaves, problems

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "values.yaml"
VALUES = load_values(FILE)
SWEEP = (ROOT / "examples" / "cluster.yaml").read_text()
FILES = render(VALUES, targets(VALUES, None, "values.yaml"), SWEEP)
OBJECTS = [o for name, text in FILES.items() if name.startswith("kuberay/") for o in yaml.safe_load_all(text)]
LAUNCHERS = {name: yaml.safe_load(text) for name, text in FILES.items() if name.startswith("launcher/")}
# what the 'restricted' pod security standard lets a pod mount
RESTRICTED = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def of_kind(kind: str, objects: list[dict[str, Any]] = OBJECTS) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind]


def cluster_specs() -> list[dict[str, Any]]:
    return [of_kind("RayCluster")[0]["spec"], of_kind("RayJob")[0]["spec"]["rayClusterSpec"]]


def templates() -> list[dict[str, Any]]:
    pods = [of_kind("RayJob")[0]["spec"]["submitterPodTemplate"]]
    for spec in cluster_specs():
        pods += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return pods


def changed(change: Callable[[dict[str, Any]], Any]) -> Values:
    """The example's values, changed."""
    raw = yaml.safe_load(FILE.read_text())
    change(raw)
    return parse(json.dumps(raw), "values.yaml", Values)


def rendered(values: Values) -> dict[str, str]:
    return render(values, targets(values, None, "values.yaml"), SWEEP)


def test_the_committed_files_are_what_the_values_render(tmp_path: Path) -> None:
    assert main(["cluster", "render", "--values", str(FILE), "--out", str(tmp_path)]) == 0
    for folder in (tmp_path, ROOT / "cluster" / "manifests"):
        assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.yaml")} == FILES


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda o: f"{o['kind']}-{o['metadata']['name']}")
def test_every_manifest_is_valid(manifest: dict[str, Any], version: str) -> None:
    assert problems(manifest, version) == []


MISSPELT: list[tuple[str, str, str]] = [
    ("RayCluster", "spec.enableInTreeAutoScaling", "true"),
    ("RayCluster", "spec.authOptions.secret", "ray-token"),
    ("RayCluster", "spec.autoscalerOptions.idleTimeout", "600"),
    ("RayCluster", "spec.gcsFaultToleranceOptions.redisPasswd", "{}"),
    ("RayCluster", "spec.headGroupSpec.rayStartParam", "{}"),
    ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", "0"),  # strings only
    ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.resource", "{}"),
    ("RayCluster", "spec.workerGroupSpecs.0.maxReplica", "8"),
    ("RayCluster", "spec.workerGroupSpecs.0.minReplicas", "-1"),
    ("RayCluster", "spec.workerGroupSpecs.0.template.spec.toleration", "[]"),
    ("RayCluster", "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "28 GB"),
    ("RayCluster", "spec.workerGroupSpecs.0.template.spec.containers.0.securityContext.runAsNonRot", "true"),
    ("RayCluster", "spec.rayVersion", "2.51.0"),
    ("RayJob", "spec.shutdownAfterJobFinish", "true"),
    ("RayJob", "spec.shutdownAfterJobFinishes", "false"),  # with a TTL
    ("RayJob", "spec.submissionMode", "K8sMode"),
    ("RayJob", "spec.submitterPodTemplate.spec.restart", "Never"),
    ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.readinessProbe.httpGet.url", "/"),
    ("RayJob", "metadata.name", "x" * 48),
    ("NetworkPolicy", "spec.ingres", "[]"),
    ("ConfigMap", "data.SWEEPER_ON_CLUSTER", "1"),  # strings only
    ("PersistentVolumeClaim", "spec.accessMode", "[]"),
]


@pytest.mark.parametrize(("kind", "path", "value"), MISSPELT, ids=lambda x: x if "." in str(x) else "")
def test_a_wrong_field_is_caught(kind: str, path: str, value: str) -> None:
    manifest = copy.deepcopy(of_kind(kind)[0])
    *parents, last = path.split(".")
    place: Any = manifest
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = yaml.safe_load(value)
    assert problems(manifest, KUBERNETES[-1])


def test_every_pod_meets_the_restricted_standard_and_is_closed_in_by_the_network_policy() -> None:
    assert of_kind("Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    closed = of_kind("NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"]
    for template in templates():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
        assert all(volume.keys() - {"name"} <= RESTRICTED for volume in spec.get("volumes", []))
        assert closed.items() <= template["metadata"]["labels"].items()
    for spec in cluster_specs():
        assert spec["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_the_namespace_and_the_operator_reach_the_cluster() -> None:
    own, operator = of_kind("NetworkPolicy")[0]["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {}}]}
    assert operator["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}
    ]
    assert [port["port"] for port in operator["ports"]] == [8265]


def test_an_nfs_export_is_mounted_where_there_is_no_claim() -> None:
    files = rendered(changed(lambda raw: raw["storage"].pop("claim")))
    objects = [o for name in files if name.startswith("kuberay/") for o in yaml.safe_load_all(files[name])]
    assert not of_kind("PersistentVolumeClaim", objects)
    volumes = of_kind("RayCluster", objects)[0]["spec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "storage", "nfs": {"server": "nfs.example.internal", "path": "/sweeps"}} in volumes
    level = of_kind("Namespace", objects)[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "baseline"  # 'restricted' refuses exports
    assert [problem for o in objects for problem in problems(o, KUBERNETES[-1])] == []


def test_the_token_and_logins_are_named_and_never_written() -> None:
    assert not of_kind("Secret")
    for spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    for template in templates():
        for container in template["spec"]["containers"]:
            assert all(entry.keys() == {"name", "valueFrom"} for entry in container.get("env", []))
    for text in FILES.values():
        assert "RAY_AUTH_TOKEN" not in text  # its value would stand behind it


def test_the_state_of_a_head_that_stays_is_in_redis_where_there_is_one() -> None:
    stays, job = cluster_specs()
    password = {"valueFrom": {"secretKeyRef": {"name": "redis-login", "key": "password"}}}
    assert stays["gcsFaultToleranceOptions"] == {"redisAddress": "redis.sweeps:6379", "redisPassword": password}
    assert "gcsFaultToleranceOptions" not in job  # its retry has a fresh cluster
    without = yaml.safe_load(rendered(changed(lambda raw: raw.pop("redis")))["kuberay/raycluster.yaml"])
    assert "gcsFaultToleranceOptions" not in without["spec"]
    with pytest.raises(ValuesError, match=r"redis\.secret") as caught:
        changed(lambda raw: raw["redis"].update(address="redis://:hunter2@redis:6379"))
    assert "hunter2" not in str(caught.value)


def test_the_job_runs_the_sweep_file_by_a_command_that_exists() -> None:
    text, job = of_kind("ConfigMap")[1], of_kind("RayJob")[0]["spec"]
    assert text["data"] == {"sweep.yaml": SWEEP}
    python, module, sweeper, *arguments = shlex.split(job["entrypoint"])
    assert (python, module, sweeper) == ("python", "-m", "sweeper")
    given = _parser().parse_args(arguments)
    assert given.address == "auto"
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volume = next(v for v in head["volumes"] if v.get("configMap", {}).get("name") == text["metadata"]["name"])
    mount = next(m for m in head["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
    assert given.spec == Path(mount["mountPath"]) / "sweep.yaml"
    assert (job["backoffLimit"], job["shutdownAfterJobFinishes"]) == (2, True)


def test_every_mounted_volume_and_named_config_map_is_there() -> None:
    maps = {o["metadata"]["name"] for o in of_kind("ConfigMap")}
    for template in templates():
        volumes = template["spec"].get("volumes", [])
        assert {v["configMap"]["name"] for v in volumes if "configMap" in v} <= maps
        for container in template["spec"]["containers"]:
            mounted = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            assert mounted.keys() == {volume["name"] for volume in volumes}
            if volumes:
                assert (mounted["storage"], mounted["shm"]) == (VALUES.storage.path, "/dev/shm")
                assert container["envFrom"] == [{"configMapRef": {"name": "sweeps-env"}}]


@pytest.fixture(scope="module")
def ray_start() -> Any:
    """Ray's own `ray start`, to be asked about its options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import start
    return start


def test_ray_start_knows_every_parameter_of_the_manifests(ray_start: Any) -> None:
    known = {option.removeprefix("--"): param for param in ray_start.params for option in param.opts}
    for spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            for name, value in group["rayStartParams"].items():
                known[name].type.convert(value, None, None)  # click raises where it is of another kind
            shm = next(v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")["emptyDir"]
            room = int(shm["sizeLimit"].removesuffix("Gi")) << 30
            assert int(group["rayStartParams"]["object-store-memory"]) < room


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_every_launcher_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(LAUNCHERS[name])))


@pytest.mark.parametrize(
    ("path", "value"),
    [("idle_timeout", 10), ("auth.user", "x"), ("setup_commands", "ls"), ("available_node_types.gpu.max", 2)],
)
def test_ray_refuses_a_wrong_launcher_file(path: str, value: object) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = copy.deepcopy(LAUNCHERS["launcher/aws.yaml"])
    *parents, last = path.split(".")
    place = config
    for part in parents:
        place = place[part]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, TypeError)):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_commands_are_commands(name: str, ray_start: Any) -> None:
    config = LAUNCHERS[name]
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for key, local in (("head", True), ("worker", False)):
        words = shlex.split(config[f"{key}_start_ray_commands"][-1].rpartition("/bin/ray start ")[2])
        given = ray_start.make_context("ray start", words).params
        assert given["head"] is local
        if local:
            assert (given["dashboard_host"], given["num_cpus"]) == ("127.0.0.1", 0)  # by an SSH tunnel only
        else:
            assert given["address"] == "$RAY_HEAD_IP:6379"
    assert config["file_mounts"]["~/.ray/auth_token"] == VALUES.token.file
    shipped = [local for remote, local in config["file_mounts"].items() if remote.startswith("~/objective-continuum/")]
    assert all((ROOT / part).exists() for part in shipped)
    packages = re.search(r"packages = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    assert packages
    assert set(json.loads(packages[1])) <= set(shipped)


def test_one_environment_everywhere(tmp_path: Path) -> None:
    """The ConfigMap's, and what a shell has after the launchers' own commands, also for a value with signs in it."""
    uri = "https://mlflow.example.internal/it's?a=1&b=$HOME"
    values = changed(lambda raw: raw["mlflow"].update(tracking_uri=uri))
    files = rendered(values)
    maps = [o for o in yaml.safe_load_all(files["kuberay/base.yaml"]) if o["kind"] == "ConfigMap"]
    assert maps[0]["data"] == environment(values)
    assert maps[0]["data"]["MLFLOW_TRACKING_URI"] == uri
    for name in LAUNCHERS:
        config = yaml.safe_load(files[name])
        script = next(command for command in config["setup_commands"] if "sweeper.env" in command)
        source = config["head_start_ray_commands"][-1].rpartition("; ")[0]
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{source}\nenv -0"],
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
        assert environment(values, grows="local" not in name).items() <= found.items()
        assert found["RAY_AUTH_MODE"] == "token"
        assert "OMP_NUM_THREADS" not in found


def test_what_the_cluster_may_grow_to_is_declared_where_nodes_come_and_go() -> None:
    found = possible_nodes(of_kind("ConfigMap")[0]["data"])
    assert found == [{"CPU": 8.0, "GPU": 1.0}] * 8 + [{"CPU": 64.0, "GPU": 8.0}] * 2
    assert GROWS_TO not in FILES["launcher/local.yaml"]  # these machines are counted by Ray
    assert possible_nodes({}) == []
    with pytest.raises(GrowthError, match=r"SWEEPER_GROWS_TO: a list such as .* is expected, got '8 nodes'"):
        possible_nodes({GROWS_TO: "8 nodes"})


def test_a_host_whose_storage_is_not_there_ends_with_the_reason(tmp_path: Path) -> None:
    def without_export(path: Path) -> str:
        values = changed(
            lambda raw: raw.update(
                storage={"path": str(path)}, data_root=f"{path}/data", kubernetes=None, aws=None, gcp=None
            )
        )
        config = yaml.safe_load(rendered(values)["launcher/local.yaml"])
        return str(config["initialization_commands"][0])

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert run(without_export(tmp_path)).returncode == 0
    missing = run(without_export(tmp_path / "nowhere else"))
    assert missing.returncode == 1
    assert "nowhere else: not writable" in missing.stderr


def test_the_example_speaks_of_the_ray_that_is_pinned() -> None:
    assert f"ray=={VALUES.ray_version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_rendered_yaml_has_no_anchors_and_reads_back() -> None:
    for text in FILES.values():
        assert not re.search(r"[:-] [&*]\w+", text)
    assert {path for o in OBJECTS for path, value in leaves(o) if value is None} == set()
    assert PART_OF in FILES["kuberay/base.yaml"]


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("key", lambda v: v.update(woker=[]), "values.yaml: unknown key 'woker'; did you mean 'workers'? known: aws"),
    ("nested", lambda v: v["workers"][1].update(gpu=8), "workers[1]: unknown key 'gpu'; did you mean 'gpus'?"),
    ("missing", lambda v: v.pop("storage"), "values.yaml: storage: is missing"),
    ("type", lambda v: v["head"].update(cpus="many"), "head.cpus: input should be a valid integer, unable to parse"),
    ("name", lambda v: v.update(name="My_Sweeps"), "name: at most 40 small letters, digits and -, a letter first"),
    ("image", lambda v: v["kubernetes"].update(image="a/b:latest"), "kubernetes.image: name a version"),
    ("image", lambda v: v["kubernetes"].update(image="host:5000/b"), "kubernetes.image: name a version"),
    ("ray", lambda v: v.update(ray_version="2.51.0"), "ray_version: a release such as 2.60.0, 2.52.0 or newer"),
    ("path", lambda v: v["storage"].update(path="shared"), "storage.path: an absolute path below /"),
    ("data", lambda v: v.update(data_root="/elsewhere"), "data_root: must lie in storage.path, /shared, got '/else"),
    ("min", lambda v: v["workers"][0].update(min=9), "workers[0]: min <= replicas <= max, got 9, 2, 8"),
    ("shm", lambda v: v["workers"][0].update(shm_gib=28), "workers[0]: shm_gib is part of memory_gib and must be less"),
    ("twice", lambda v: v["workers"][1].update(name="gpu"), "workers: the name 'gpu' is taken"),
    ("types", lambda v: v["aws"]["instance_types"].update(gpuu="x"), "aws.instance_types: no group 'gpuu'; did you"),
    ("types", lambda v: v["gcp"]["instance_types"].pop("gpu8"), "gcp.instance_types: gpu8 is missing"),
    ("nfs", lambda v: v["storage"].pop("nfs"), "storage.nfs is missing: aws has no claims"),
    ("storage", lambda v: v.update(storage={"path": "/shared"}, aws=None, gcp=None), "storage: name a claim or an nfs"),
    ("hosts", lambda v: v["local"].update(worker_ips=[]), "local.worker_ips: tuple should have at least 1 item"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_values_are_refused_with_what_instead(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ValuesError) as caught:
        changed(change)
    assert message in str(caught.value)


def test_a_login_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValuesError, match=r"mlflow.tracking_uri: a login does not belong in an address") as caught:
        changed(lambda raw: raw["mlflow"].update(tracking_uri="https://me:hunter2@mlflow"))
    assert "hunter2" not in str(caught.value)


def test_what_the_values_have_no_place_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(FILE.read_text())
    for place in ("kubernetes", "aws", "gcp"):
        raw.pop(place)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert main(["cluster", "render", "--values", str(file), "--only", "kuberay"]) == 2
    assert capsys.readouterr().err == "mine.yaml: --only kuberay needs the key 'kubernetes'\n"
    assert main(["cluster", "render", "--values", str(file)]) == 0
    assert capsys.readouterr().out == "--- # launcher/local.yaml\n" + FILES["launcher/local.yaml"]
    file.write_text(yaml.safe_dump({k: v for k, v in raw.items() if k != "local"}))
    assert main(["cluster", "render", "--values", str(file)]) == 2
    assert "nothing to render: name kubernetes, aws, gcp or local" in capsys.readouterr().err
    assert main(["cluster", "render", "--values", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


def test_a_job_whose_sweep_names_files_outside_the_storage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = yaml.safe_load(FILE.read_text())
    raw["kubernetes"]["job"]["sweep"] = "sweep.yaml"
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(raw))
    sweep = yaml.safe_load(SWEEP)
    sweep["grid"]["task"] = [{"path": "/etc/passwords.jsonl"}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["cluster", "render", "--values", str(tmp_path / "values.yaml"), "--only", "kuberay"]) == 2
    assert "/etc/passwords.jsonl lies outside /shared/data and /shared" in capsys.readouterr().err


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of the values, dotted; lists and optional parts as what they hold."""
    found = []
    for name, field in model.model_fields.items():
        inner = [t for t in inside(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        found += [key for t in inner for key in keys(t, f"{prefix}{name}.")] or [f"{prefix}{name}"]
    return found


def inside(kind: Any) -> list[Any]:
    return [kind, *(part for argument in get_args(kind) for part in inside(argument))]


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert len(keys(Values)) > 50
    assert [key for key in keys(Values) if f"`{key}`" not in page] == []


def test_a_cluster_command_that_is_not_there_lists_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cluster", "rendr", "--values", str(FILE)])
    assert "choose from render" in capsys.readouterr().err.replace("'", "")
