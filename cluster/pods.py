"""Pods of a Ray cluster: one container each, not root, with shared storage, /dev/shm and one environment."""

from __future__ import annotations

from typing import Any

from cluster.places import Kubernetes
from cluster.values import Head, Values, WorkerGroup

SWEEP_DIR = "/etc/sweeper"  # where a RayJob's head finds its sweep file
PART_OF = "app.kubernetes.io/part-of"
GPU = "nvidia.com/gpu"
GIB = 1 << 30
PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001}


def env_name(values: Values) -> str:
    """Of the ConfigMap that tells every pod where storage, data and MLflow are."""
    return f"{values.name}-env"


def labels(values: Values) -> dict[str, str]:
    """On everything of a cluster, also on the pods of its RayJobs: the NetworkPolicy goes by them."""
    return {PART_OF: values.name}


def container_security() -> dict[str, Any]:
    """What the 'restricted' pod security standard asks of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def resources(cpus: int, memory_gib: int, gpus: int = 0) -> dict[str, Any]:
    """Requests are limits: a trial's speed shall not depend on its neighbours."""
    amount = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({GPU: str(gpus)} if gpus else {})
    return {"requests": amount, "limits": amount}


def start_params(size: Head | WorkerGroup) -> dict[str, str]:
    """Parameters of `ray start`. The head offers no CPUs, so that no trial is placed beside the cluster's state."""
    head = isinstance(size, Head)
    params = {
        "num-cpus": "0" if head else str(size.cpus),
        "num-gpus": "0" if isinstance(size, Head) else str(size.gpus),
        "object-store-memory": str(size.shm_gib * GIB // 2),  # the other half of /dev/shm is for NCCL and data loaders
    }
    return params | ({"dashboard-host": "0.0.0.0"} if head else {})  # of the pod; the NetworkPolicy closes it


def _storage(values: Values) -> dict[str, Any]:
    claim, nfs = values.storage.claim, values.storage.nfs
    if claim is not None:
        return {"name": "storage", "persistentVolumeClaim": {"claimName": claim.name}}
    assert nfs is not None  # Values refuses neither
    return {"name": "storage", "nfs": {"server": nfs.server, "path": nfs.path}}


def _mlflow_login(values: Values) -> list[dict[str, Any]]:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD") if values.mlflow.secret else ()
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": values.mlflow.secret, "key": name}}} for name in names
    ]


def pod_template(values: Values, place: Kubernetes, containers: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """A pod that meets the 'restricted' standard. spec: more of the pod's own."""
    secrets = [{"name": name} for name in place.pull_secrets]
    return {
        "metadata": {"labels": labels(values)},
        "spec": {
            **({"imagePullSecrets": secrets} if secrets else {}),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": place.user,
                "runAsGroup": place.user,
                "fsGroup": place.user,
                "fsGroupChangePolicy": "OnRootMismatch",  # else every start walks the whole storage
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **spec,
            "containers": containers,
        },
    }


def ray_pod(values: Values, place: Kubernetes, size: Head | WorkerGroup, sweep: str | None = None) -> dict[str, Any]:
    """The pod of a head or of a worker. sweep: the ConfigMap with the sweep file that a RayJob's head runs.

    Liveness, a worker's readiness and Ray's token are put in by KubeRay (1.6 and newer), by Ray's HTTP health pages.
    """
    mounts = [{"name": "storage", "mountPath": values.storage.path}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [_storage(values), {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}}]
    if sweep is not None:
        mounts.append({"name": "sweep", "mountPath": SWEEP_DIR})
        volumes.append({"name": "sweep", "configMap": {"name": sweep}})
    login = _mlflow_login(values)
    container: dict[str, Any] = {
        "name": "ray-head" if isinstance(size, Head) else "ray-worker",
        "image": place.image,
        "envFrom": [{"configMapRef": {"name": env_name(values)}}],
        **({"env": login} if login else {}),
        "resources": resources(size.cpus, size.memory_gib, 0 if isinstance(size, Head) else size.gpus),
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if isinstance(size, Head):
        container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
        container["readinessProbe"] = {
            # the dashboard answers for the GCS too, and asks this page no token, as it does /api/version
            "httpGet": {"path": "/api/gcs_healthz", "port": PORTS["dashboard"]},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 10,
        }
        return pod_template(values, place, [container], volumes=volumes)
    choice = {"nodeSelector": size.node_selector, "tolerations": list(size.tolerations)}
    return pod_template(
        values,
        place,
        [container],
        automountServiceAccountToken=False,  # the head's autoscaler needs one, a worker does not
        **{key: value for key, value in choice.items() if value},
        volumes=volumes,
    )
