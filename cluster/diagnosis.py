"""From facts to findings: what is wrong with a cluster, and what to do about it. Pure; docs/doctor.md has the table."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.facts import AllReduce, ClusterFacts, Machine, NodeFacts, Storage
from cluster.finding import Finding, Level, size
from cluster.node import MEGABYTES
from cluster.versions import software

SKEW_WARNING_S, SKEW_ERROR_S = 1.0, 30.0
SHM_FLOOR = 64 << 20  # what Docker gives a container that asks for nothing
SHM_FOR_GPUS = 1 << 30  # NCCL's buffers between the GPUs of a node


def diagnose(facts: ClusterFacts, insecure: bool) -> list[Finding]:
    """Every check of the driver, of each node and of the cluster. insecure: a cluster without a token is meant."""
    return [
        *software("driver", facts.driver, facts.driver),
        _storage("driver", facts.driver_storage, facts.root, alone=True),
        *(finding for node in facts.nodes for finding in _node(node, facts)),
        _token(facts, insecure),
        *map(_all_reduce, facts.all_reduces),
    ]


def _node(node: NodeFacts, facts: ClusterFacts) -> Iterator[Finding]:
    if node.error or not (node.software and node.machine and node.storage):
        yield Finding(
            "error", "answer", node.error, node.name,
            "look at this node: is it overloaded or out of memory, is its disk full? `ray status` and Ray's logs there "
            "(raylet.out, dashboard_agent.log) say more; stop Ray on it, and the sweep runs without it",
        )  # fmt: skip
        return
    yield from software(node.name, node.software, facts.driver)
    yield _clock(node)
    yield _shm(node, node.machine)
    yield from _devices(node, node.machine)
    yield _storage(node.name, node.storage, facts.root, alone=False)
    if node.storage.missing:
        some = ", ".join(node.storage.missing[:3]) + (", ..." if len(node.storage.missing) > 3 else "")
        yield Finding(
            "error", "data", f"cannot read {len(node.storage.missing)} of the plan's files: {some}", node.name,
            "put them into a directory that all nodes share, and name it with --data-root",
        )  # fmt: skip


def _clock(node: NodeFacts) -> Finding:
    skew = node.skew or 0.0
    text = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} the driver's (within {node.round_trip / 2:.3f} s)"
    if abs(skew) <= SKEW_WARNING_S:
        return Finding("ok", "clock", text, node.name)
    level: Level = "error" if abs(skew) > SKEW_ERROR_S else "warning"
    return Finding(level, "clock", text, node.name, "run a time service on every node (chronyd, systemd-timesyncd)")


def _shm(node: NodeFacts, machine: Machine) -> Finding:
    text = f"/dev/shm has {size(machine.shm_total)}, {size(machine.shm_free)} free"
    give = "give the container more (Docker: --shm-size or shm_size, Kubernetes: an emptyDir of medium Memory)"
    if machine.shm_total < SHM_FLOOR:
        return Finding("error", "shared memory", f"{text}; {size(SHM_FLOOR)} is the least", node.name, give)
    if node.gpus and machine.shm_total < SHM_FOR_GPUS:
        text += f"; NCCL may need {size(SHM_FOR_GPUS)}"
        return Finding("warning", "shared memory", text, node.name, give)
    if machine.shm_total < node.object_store:
        text += f"; Ray's object store of {size(node.object_store)} goes to disk instead"
        remedy = f"{give}, or start Ray with a smaller --object-store-memory"
        return Finding("warning", "shared memory", text, node.name, remedy)
    return Finding("ok", "shared memory", text, node.name)


def _devices(node: NodeFacts, machine: Machine) -> Iterator[Finding]:
    wrong = False
    if machine.gpus is None:
        wrong = True
        yield Finding(
            "error", "devices", f"torch cannot be imported: {machine.torch_error}", node.name,
            "install the torch of constraints.txt on this node, built for its devices",
        )  # fmt: skip
    elif node.gpus > machine.gpus:
        wrong = True
        yield Finding(
            "error", "devices", f"Ray counts {node.gpus:g} GPUs, torch sees {machine.gpus}", node.name,
            "install a torch with CUDA and a driver that fits it (nvidia-smi), or start Ray with the right --num-gpus",
        )  # fmt: skip
    elif node.gpus < machine.gpus:
        wrong = True
        yield Finding(
            "warning", "devices", f"torch sees {machine.gpus} GPUs, Ray counts {node.gpus:g}", node.name,
            f"the others stay idle: start Ray with --num-gpus={machine.gpus} on this node",
        )  # fmt: skip
    if node.cpus > machine.cpus:
        wrong = True
        yield Finding(
            "warning", "devices", f"Ray counts {node.cpus:g} CPUs, the node has {machine.cpus}", node.name,
            f"start Ray with --num-cpus={machine.cpus} on this node; trials would be in each other's way",
        )  # fmt: skip
    if not wrong:
        yield Finding("ok", "devices", f"{node.cpus:g} CPU, {node.gpus:g} GPU", node.name)


def _storage(where: str, storage: Storage, root: str, alone: bool) -> Finding:
    """alone: the driver itself, with which the nodes are compared."""
    mount = "mount the same directory (NFS, a cluster file system, a volume) at this path on every node"
    if not storage.there:
        return Finding("error", "storage", f"{root} is not there", where, f"{mount}, or name another with --storage")
    if storage.error:
        remedy = "give the user that runs Ray the right to write there; look at the mount (ro?) and the free space"
        return Finding("error", "storage", f"{root} cannot be written: {storage.error}", where, remedy)
    if not alone and not (storage.sees_driver and storage.seen):
        seen = "the driver's file is not seen here" if not storage.sees_driver else "the driver does not see its files"
        return Finding("error", "storage", f"{root} is another directory than the driver's: {seen}", where, mount)
    shared = "" if alone else "shared, "
    return Finding("ok", "storage", f"{root}: {shared}writable, {size(storage.free or 0)} free", where)


def _token(facts: ClusterFacts, insecure: bool) -> Finding:
    without = [node.name for node in facts.nodes if node.software and not node.software.token]
    if not without:
        return Finding("ok", "token", "asked for on every node", "cluster")
    return Finding(
        "warning" if insecure else "error", "token",
        f"not asked for on {', '.join(without)}: whoever reaches the ports runs what they like there", "cluster",
        "start Ray with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node"
        + ("" if insecure else "; a network of your own: say --insecure"),
    )  # fmt: skip


def _all_reduce(sum_: AllReduce) -> Finding:
    check = f"all-reduce {sum_.backend}"
    nodes = dict.fromkeys(sum_.nodes)
    who = f"{len(nodes)} nodes" if len(nodes) > 1 else f"{len(sum_.nodes)} workers on one node"
    if sum_.seconds is not None:
        return Finding("ok", check, f"{who}, {MEGABYTES} MB in {sum_.seconds:.2f} s", "cluster")
    errors = "; ".join(f"{name}: {_short(error)}" for name, error in sum_.errors.items())
    name = sum_.backend.upper()
    more = ""
    if sum_.backend == "nccl":  # its variables: NCCL's user guide, "Environment Variables"
        more = "; NCCL_DEBUG=INFO makes it say what it tried, NCCL_IB_DISABLE=1 leaves a broken InfiniBand out"
    return Finding(
        "error", check, f"{who} cannot: {errors}", "cluster",
        f"open all TCP ports between the nodes (trials take free ones; Ray's own are not enough); where a node has "
        f"several networks, or its host name stands for 127.0.0.1, set {name}_SOCKET_IFNAME to the right interface "
        f"in the environment that Ray starts with{more}",
    )  # fmt: skip


def _short(error: str, length: int = 160) -> str:
    line = " ".join(error.split())
    return line if len(line) <= length else line[: length - 3] + "..."
