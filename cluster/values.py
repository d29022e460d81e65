"""Values: what a cluster is made of, in one typed set from which all of its files are rendered."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from cluster.fields import Count, HostPort, Label, Positive, RayVersion, SharedPath, Text, TrackingUri
from cluster.growth import GROWS_TO, declare
from cluster.places import Aws, Gcp, Kubernetes, Local
from cluster.strict import Strict, nearest

NODE_START_S = 600  # a machine and its image may take that long; Ray Train's own 60 s would ask again and again

Target = Literal["kuberay", "aws", "gcp", "local"]
TARGETS: tuple[Target, ...] = ("kuberay", "aws", "gcp", "local")


class Token(Strict):
    """Where Ray's token lies. Its value is in neither the values nor what is rendered."""

    secret: Label = Field("ray-token", description="Kubernetes Secret with the key auth_token")
    file: Text = Field("~/.ray/auth_token", description="on the machine that calls `ray up`; copied to every node")


class Claim(Strict):
    """A PersistentVolumeClaim that many nodes may write; made where a size is given, else taken as it is."""

    name: Label
    size_gib: Positive | None = None
    storage_class: Text | None = None


class Nfs(Strict):
    """An NFS export, version 4.1 or newer: locks must work."""

    server: Text
    path: str = Field(pattern=r"^/")


class Storage(Strict):
    """What all nodes share, mounted at `path`. Kubernetes takes the claim where there is one, else the export."""

    path: SharedPath
    claim: Claim | None = None
    nfs: Nfs | None = None


class Mlflow(Strict):
    tracking_uri: TrackingUri | None = Field(None, description="without it, MLflow is a file in the storage")
    secret: Label | None = Field(
        None, description="Kubernetes Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )
    credentials_file: Text | None = Field(None, description="MLflow's own file, copied to every node by `ray up`")


class Redis(Strict):
    """Where a head that stays keeps Ray's state, so that the next one knows its nodes and jobs (KubeRay only)."""

    address: HostPort
    secret: Label | None = Field(None, description="Kubernetes Secret with its password under the key password")


class Head(Strict):
    """The head trains nothing; it holds Ray's state and the sweeps' drivers."""

    cpus: Positive = 4
    memory_gib: Positive = 16
    shm_gib: Positive = 4


class WorkerGroup(Strict):
    """Nodes of one kind, between `min` and `max` of them; `replicas` at the start."""

    name: Label
    gpus: Count = 0
    cpus: Positive
    memory_gib: Positive
    shm_gib: Positive = Field(8, description="/dev/shm, part of memory_gib; half of it is Ray's object store")
    min: Count = 0
    max: Positive = 1
    replicas: Count | None = Field(None, description="default: min, or 1 where min is 0")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()

    @property
    def start(self) -> int:
        return max(self.min, 1) if self.replicas is None else self.replicas

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        if not self.min <= self.start <= self.max:
            raise ValueError(f"min <= replicas <= max, got {self.min}, {self.start}, {self.max}")
        if self.shm_gib >= self.memory_gib:
            raise ValueError(f"shm_gib is part of memory_gib and must be less, got {self.shm_gib} of {self.memory_gib}")
        return self


class Values(Strict):
    """A whole cluster. Each of kubernetes, aws, gcp and local is rendered where it is there."""

    name: Label
    ray_version: RayVersion
    token: Token = Token()
    storage: Storage
    data_root: SharedPath = Field(description="where relative paths in sweeps start; inside storage.path")
    mlflow: Mlflow = Mlflow()
    redis: Redis | None = None
    idle_minutes: Positive = Field(10, description="after which a node above `min` that trains nothing is given back")
    head: Head = Head()
    workers: tuple[WorkerGroup, ...] = Field(min_length=1)
    kubernetes: Kubernetes | None = None
    aws: Aws | None = None
    gcp: Gcp | None = None
    local: Local | None = None

    def place(self, target: Target) -> Kubernetes | Aws | Gcp | Local | None:
        places = {"kuberay": self.kubernetes, "aws": self.aws, "gcp": self.gcp, "local": self.local}
        return places[target]

    @model_validator(mode="after")
    def _fits_together(self) -> Values:
        names = [group.name for group in self.workers]
        for name in names:
            if names.count(name) > 1 or name == "head":
                raise ValueError(f"workers: the name '{name}' is taken")
        if not PurePosixPath(self.data_root).is_relative_to(self.storage.path):
            raise ValueError(f"data_root: must lie in storage.path, {self.storage.path}, got '{self.data_root}'")
        if self.kubernetes and self.storage.claim is None and self.storage.nfs is None:
            raise ValueError("storage: name a claim or an nfs export for kubernetes to mount")
        for where, cloud in (("aws", self.aws), ("gcp", self.gcp)):
            if cloud is None:
                continue
            if self.storage.nfs is None:
                raise ValueError(f"storage.nfs is missing: {where} has no claims, its machines mount an export")
            need = {"head", *names}
            for name in cloud.instance_types:
                if name not in need:
                    raise ValueError(f"{where}.instance_types: no group '{name}';{nearest(name, need)}")
            if missing := need - cloud.instance_types.keys():
                raise ValueError(f"{where}.instance_types: {', '.join(sorted(missing))} is missing")
        return self


def environment(values: Values, grows: bool = True) -> dict[str, str]:
    """Where storage, data and MLflow are, for every node: the one place from which all files take it.

    grows: nodes come and go with the demand, between `min` and `max`.
    """
    mlflow = values.mlflow.tracking_uri
    variables = {
        "SWEEPER_STORAGE": values.storage.path,
        "SWEEPER_DATA": values.data_root,
        "SWEEPER_ON_CLUSTER": "1",  # a job's own folder is never the storage
        **({"MLFLOW_TRACKING_URI": mlflow} if mlflow else {}),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if grows:
        variables[GROWS_TO] = declare((group.max, group.cpus, group.gpus) for group in values.workers)
        variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(NODE_START_S)
    return variables
