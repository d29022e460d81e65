"""Files for Ray's cluster launcher (`ray up`): machines of AWS, of Google Cloud, or ones that are there already.

No containers: packages go into an environment of their own beside the machine's Python, in the versions of
constraints.txt. `ray up` is called in a checkout of this project. Fields: ray/autoscaler/ray-schema.json.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from cluster.places import Aws, Cloud, Gcp, Local
from cluster.values import Values, WorkerGroup, environment

CHECKOUT = "~/objective-continuum"
# what pip needs to install the project with its dependencies
PACKAGE = ("LICENSE", "README.md", "cluster", "constraints.txt", "jobs", "pyproject.toml", "sweeper")
VENV = "~/sweeper-venv"
ENV_FILE = "~/sweeper.env"
TOKEN = "~/.ray/auth_token"  # where Ray looks for it unasked
MLFLOW_LOGIN = "~/.mlflow/credentials"
# the launcher's shell exports both, and Ray would hand one thread and no warnings down to every worker
START = f"ulimit -n 65536; unset OMP_NUM_THREADS PYTHONWARNINGS; set -a; . {ENV_FILE}; set +a; {VENV}/bin/ray start"
STOP = f"{VENV}/bin/ray stop"


def aws(values: Values, place: Aws) -> dict[str, Any]:
    def node(kind: str) -> dict[str, Any]:
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": place.disk_gib, "VolumeType": "gp3"}}
        config: dict[str, Any] = {"InstanceType": place.instance_types[kind], "BlockDeviceMappings": [disk]}
        config |= {"ImageId": place.image_id} if place.image_id else {}
        return config | ({"SecurityGroupIds": list(place.security_groups)} if place.security_groups else {})

    return _cloud(values, place, {"type": "aws"}, node, "boto3>=1.4.8")


def gcp(values: Values, place: Gcp) -> dict[str, Any]:
    gpus = {group.name: group.gpus for group in values.workers}

    def node(kind: str) -> dict[str, Any]:
        boot = {"diskSizeGb": place.disk_gib, "sourceImage": place.source_image}
        disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": boot}
        config: dict[str, Any] = {"machineType": place.instance_types[kind], "disks": [disk]}
        # a machine with GPUs cannot be moved while it runs
        return config | ({"scheduling": [{"onHostMaintenance": "TERMINATE"}]} if gpus.get(kind) else {})

    provider = {"type": "gcp", "project_id": place.project}
    return _cloud(values, place, provider, node, "google-api-python-client>=1.7.8")


def local(values: Values, place: Local) -> dict[str, Any]:
    """Ray counts CPUs and GPUs of these machines itself; the head trains nothing."""
    return {
        "cluster_name": values.name,
        "max_workers": len(place.worker_ips),
        "idle_timeout_minutes": values.idle_minutes,
        "provider": {"type": "local", "head_ip": place.head_ip, "worker_ips": list(place.worker_ips)},
        "auth": {"ssh_user": place.ssh_user, "ssh_private_key": place.ssh_private_key},
        **_common(values, place.python, grows=False),
    }


def _cloud(
    values: Values, place: Cloud, provider: dict[str, str], node: Callable[[str], dict[str, Any]], sdk: str
) -> dict[str, Any]:
    """node: a machine's configuration, by group; sdk: with which the head's autoscaler starts and ends machines."""
    types: dict[str, Any] = {"head": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": node("head")}}
    types |= {group.name: _workers(group) | {"node_config": node(group.name)} for group in values.workers}
    return {
        "cluster_name": values.name,
        "max_workers": sum(group.max for group in values.workers),
        "idle_timeout_minutes": values.idle_minutes,
        "provider": {
            **provider,
            "region": place.region,
            "availability_zone": place.zone,
            "cache_stopped_nodes": False,  # an idle machine is ended, not kept
        },
        "auth": {"ssh_user": place.ssh_user},
        "head_node_type": "head",
        "available_node_types": types,
        **_common(values, place.python),
        "head_setup_commands": [_pip(shlex.quote(sdk))],
    }


def _workers(group: WorkerGroup) -> dict[str, Any]:
    amount = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    return {"min_workers": group.min, "max_workers": group.max, "resources": amount}


def _common(values: Values, python: str, grows: bool = True) -> dict[str, Any]:
    login = values.mlflow.credentials_file
    setup = [
        f"chmod 600 {TOKEN}" + (f" {MLFLOW_LOGIN}" if login else ""),
        f"printf '%s\\n' {_lines(environment(values, grows) | {'RAY_AUTH_MODE': 'token'})} > {ENV_FILE}",
        f"test -x {VENV}/bin/python || {shlex.quote(python)} -m venv {VENV}",
        _pip(CHECKOUT),
    ]
    return {
        "file_mounts": {
            TOKEN: values.token.file,
            **({MLFLOW_LOGIN: login} if login else {}),
            **{f"{CHECKOUT}/{part}": part for part in PACKAGE},
        },
        "rsync_exclude": ["**/__pycache__"],
        "initialization_commands": _mount(values),
        "setup_commands": setup,
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            STOP,
            f"{START} --head --port=6379 --num-cpus=0 --num-gpus=0 --include-dashboard=true --dashboard-host=127.0.0.1 "
            "--dashboard-port=8265 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [STOP, f"{START} --address=$RAY_HEAD_IP:6379"],
    }


def _mount(values: Values) -> list[str]:
    """The shared storage, before anything else; an error where it is not there or cannot be written."""
    path, nfs = shlex.quote(values.storage.path), values.storage.nfs
    writable = f"test -w {path} || {{ echo {path}: not writable for $USER >&2; exit 1; }}"
    if nfs is None:
        return [writable]
    source = shlex.quote(f"{nfs.server}:{nfs.path}")
    return [
        "command -v mount.nfs4 > /dev/null || { sudo apt-get update -q && sudo apt-get install -yq nfs-common; }",
        f"sudo mkdir -p {path}; mountpoint -q {path} || sudo mount -t nfs4 -o nfsvers=4.1,hard {source} {path}",
        writable,
    ]


def _pip(what: str) -> str:
    return f"{VENV}/bin/python -m pip install --quiet -c {CHECKOUT}/constraints.txt {what}"


def _lines(variables: dict[str, str]) -> str:
    """Assignments that a shell reads back, each as one quoted word."""
    return " ".join(shlex.quote(f"{name}={shlex.quote(value)}") for name, value in variables.items())
