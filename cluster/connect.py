"""A connection to Ray: one embedded in this process, or a cluster at an address."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from cluster.growth import possible_nodes

# The poll decides how soon an end or a death is seen; Ray Train's own 2 s would cost each trial a second.
RAY_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # of Ray Train's own doing; trials' metrics are ours
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # ours are started with an environment of their own
    "RAY_ENABLE_AUTO_CONNECT": "0",  # what still runs when Ray is shut down may not start another
    "TOKENIZERS_PARALLELISM": "false",
}

# Ray 2.60 takes loopback for the node's own address only where it would run no cluster, as on macOS: read at its
# import. As _node_ip_address it would be replaced by the host's, and all of Ray would listen on every interface.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

HEAD = {"node:__internal_head__": 0.0001}  # Ray's name for the head: an actor that asks for a bit of it runs there


MOST_TMPDIR = 35


class ConnectError(ConnectionError):
    """No Ray at the address."""


@contextmanager
def connected(address: str | None, num_cpus: int | None = None, preload: str | None = None) -> Iterator[None]:
    """Ray for the block. Without an address an embedded one on loopback, ended with the block.

    The embedded one (cluster/embedded.py) has a token of its own, handed down by environment, so that nothing is
    written to the home directory and no other user gets in. preload: a module that its workers are to find imported,
    and that does not import Ray.
    """
    for name, value in RAY_ENV.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if address is None:
        os.environ.update(LOOPBACK_ENV)
        os.environ["RAY_TMPDIR"] = short_folder(os.environ)
    import ray

    if address is not None:
        _answers(address)
    terminate = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        try:
            if address is None:
                from cluster.embedded import embedded

                joined = stack.enter_context(embedded(num_cpus, preload))
            else:
                joined = address
            ray.init(address=joined, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            raise ConnectError(f"no Ray at {address or 'this machine'}: {error}") from error
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own there, which skips ours
        try:
            yield
        finally:
            _shut_down()


def short_folder(environment: Mapping[str, str]) -> str:
    """Where an embedded Ray keeps its session: the temporary directory, or a shorter one where that is too long.

    Its sockets' paths have some 65 characters below it, and the system allows 107 in all. Schedulers such as Slurm set
    a long TMPDIR. Raises ConnectError where no short one can be written.
    """
    named = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    for folder in (named, "/tmp", "/var/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= MOST_TMPDIR and os.access(folder, os.W_OK):
            return folder
    raise ConnectError(
        f"Ray needs a temporary directory of at most {MOST_TMPDIR} characters that can be written; {named} is none, "
        "nor are /tmp, /var/tmp and /dev/shm: set RAY_TMPDIR to one"
    )


def _shut_down() -> None:
    """End Ray without a garbage collection in another thread meanwhile.

    Tuners and trainers leave cycles that hold references into Ray. Collected by whatever thread comes to it while Ray
    goes down, they end the process ("The core worker has already been shutdown").
    """
    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def nodes() -> list[dict[str, float]]:
    """CPU and GPU of every node that there may be: as the cluster's files declare it, else of every living one."""
    import ray

    alive = [_computes(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return possible_nodes(os.environ) or alive


def _computes(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: float(resources[name]) for name in ("CPU", "GPU") if name in resources}


def http_status(url: str, timeout_s: float = 10) -> tuple[int | None, str]:
    """What is answered to somebody without a token: (status, ''), or (None, the reason) where nobody answers."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ValueError) as error:  # ValueError: no web address at all
        return None, str(getattr(error, "reason", error))


def _answers(address: str) -> None:
    """Ray itself would try for minutes; a port that nobody listens on is known at once."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # 'auto' and the like: Ray looks them up
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectError(f"no Ray at {address}: {error.strerror or error}; is the cluster up?") from None
