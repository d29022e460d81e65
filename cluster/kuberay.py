"""Kubernetes objects of a cluster: KubeRay's RayCluster and RayJob (1.6 or newer), and what they stand on.

Plain mappings, in the order in which they are written. Fields: KubeRay's API reference, ray.io/v1.
"""

from __future__ import annotations

import shlex
from typing import Any

from cluster.places import Job, Kubernetes
from cluster.pods import (
    PART_OF,
    PORTS,
    SWEEP_DIR,
    container_security,
    env_name,
    labels,
    pod_template,
    ray_pod,
    resources,
    start_params,
)
from cluster.values import Values, WorkerGroup, environment

SWEEP_FILE = "sweep.yaml"
TTL_S = 300  # a finished RayJob's cluster stays that long, for a look at its logs
NAMESPACE = "kubernetes.io/metadata.name"  # the label that every namespace has


def base(values: Values, place: Kubernetes) -> list[dict[str, Any]]:
    """Namespace, environment, claim and network policy: shared by the cluster and by every job."""
    # 'restricted' lets pods mount claims only
    level = "restricted" if values.storage.claim else "baseline"
    standard = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
    namespace = _object("v1", "Namespace", values, None, place.namespace)
    namespace["metadata"]["labels"] |= standard
    objects = [
        namespace,
        _object("v1", "ConfigMap", values, place, env_name(values)) | {"data": environment(values)},
        _network_policy(values, place),
    ]
    claim = values.storage.claim
    if claim is not None and claim.size_gib is not None:
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{claim.size_gib}Gi"}},
        }
        spec |= {"storageClassName": claim.storage_class} if claim.storage_class else {}
        objects.append(_object("v1", "PersistentVolumeClaim", values, place, claim.name) | {"spec": spec})
    return objects


def ray_cluster(values: Values, place: Kubernetes) -> list[dict[str, Any]]:
    """A cluster that stays, for `sweeper submit`."""
    spec = _cluster(values, place) | _state(values)
    return [_object("ray.io/v1", "RayCluster", values, place, values.name) | {"spec": spec}]


def _state(values: Values) -> dict[str, Any]:
    """Ray's state outside of the head. Not for a job: a retry of it has a fresh cluster."""
    if values.redis is None:
        return {}
    options: dict[str, Any] = {"redisAddress": values.redis.address}
    if values.redis.secret is not None:
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": values.redis.secret, "key": "password"}}}
    return {"gcsFaultToleranceOptions": options}


def ray_job(values: Values, place: Kubernetes, job: Job, sweep: str) -> list[dict[str, Any]]:
    """A cluster for one sweep, and the text of its file. Applied again, it trains what is not finished yet."""
    name = f"{job.name}-sweep"
    text = _object("v1", "ConfigMap", values, place, name) | {"data": {SWEEP_FILE: sweep}}
    command = ["python", "-m", "sweeper", "run", f"{SWEEP_DIR}/{SWEEP_FILE}", "--address", "auto"]
    deadline = {"activeDeadlineSeconds": job.deadline_hours * 3600} if job.deadline_hours else {}
    submitter = {
        "name": "ray-job-submitter",
        "image": place.image,
        "resources": resources(1, 1),
        "securityContext": container_security(),
    }
    spec = {
        "entrypoint": shlex.join(command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        **deadline,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "submitterPodTemplate": pod_template(
            values, place, [submitter], automountServiceAccountToken=False, restartPolicy="Never"
        ),
        "rayClusterSpec": _cluster(values, place, name),
    }
    return [text, _object("ray.io/v1", "RayJob", values, place, job.name) | {"spec": spec}]


def _cluster(values: Values, place: Kubernetes, sweep: str | None = None) -> dict[str, Any]:
    """A RayClusterSpec. The token's Secret is named, never written."""
    return {
        "rayVersion": values.ray_version,
        "authOptions": {"mode": "token", "secretName": values.token.secret},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": values.idle_minutes * 60,
            "resources": resources(1, 1),
            "securityContext": container_security(),
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": start_params(values.head),
            "template": ray_pod(values, place, values.head, sweep),
        },
        "workerGroupSpecs": [_group(values, place, group) for group in values.workers],
    }


def _group(values: Values, place: Kubernetes, group: WorkerGroup) -> dict[str, Any]:
    return {
        "groupName": group.name,
        "replicas": group.start,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "rayStartParams": start_params(group),
        "template": ray_pod(values, place, group),
    }


def _network_policy(values: Values, place: Kubernetes) -> dict[str, Any]:
    """Only pods of the namespace reach the cluster, and KubeRay's operator the dashboard. Probes are not held up."""
    operator = {"namespaceSelector": {"matchLabels": {NAMESPACE: place.operator_namespace}}}
    spec = {
        "podSelector": {"matchLabels": {PART_OF: values.name}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {}}]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": PORTS["dashboard"]}]},
        ],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", values, place, values.name) | {"spec": spec}


def _object(version: str, kind: str, values: Values, place: Kubernetes | None, name: str) -> dict[str, Any]:
    where = {"namespace": place.namespace} if place else {}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **where, "labels": labels(values)}}
