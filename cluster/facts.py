"""What is known of a cluster after it was asked: facts without judgement (that is cluster/diagnosis.py)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Software:
    """versions: of each package, None where it is not installed; sources: a digest of our own code, None where missing.

    token: whether a token is asked for.
    """

    host: str
    python: str
    versions: dict[str, str | None]
    sources: str | None
    token: bool


@dataclass(frozen=True)
class Machine:
    """Bytes of /dev/shm; CPUs and GPUs as the system and torch see them, gpus None where torch cannot be imported."""

    shm_total: int
    shm_free: int
    cpus: int
    gpus: int | None
    torch_error: str = ""


@dataclass(frozen=True)
class Storage:
    """there: the directory exists; error: why it cannot be written; free: bytes, None where it is not there.

    sees_driver: whether the driver's file was found in it; seen: whether the driver found this node's.
    missing: data files of the plan that cannot be read here.
    """

    there: bool
    error: str
    free: int | None
    sees_driver: bool | None = None
    seen: bool | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """error: why the node did not answer; the rest is None then. object_store: bytes that Ray wants for it.

    skew: seconds that the node's clock is ahead of the driver's, give or take half of `round_trip`.
    """

    name: str
    cpus: float = 0.0
    gpus: float = 0.0
    object_store: float = 0.0
    error: str = ""
    software: Software | None = None
    machine: Machine | None = None
    storage: Storage | None = None
    skew: float | None = None
    round_trip: float = 0.0


@dataclass(frozen=True)
class AllReduce:
    """One sum over workers on these nodes. seconds: None where it failed; errors: by node's name."""

    backend: str
    nodes: tuple[str, ...]
    seconds: float | None
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterFacts:
    """root: the storage, as the driver calls it."""

    root: str
    driver: Software
    driver_storage: Storage
    nodes: tuple[NodeFacts, ...]
    all_reduces: tuple[AllReduce, ...]

    @property
    def total(self) -> dict[str, float]:
        """Resources of the nodes that answered, by Ray's names."""
        alive = [node for node in self.nodes if not node.error]
        return {"CPU": sum(node.cpus for node in alive), "GPU": sum(node.gpus for node in alive)}
