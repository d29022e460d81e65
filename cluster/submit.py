"""Sweeps as jobs of a Ray cluster: Ray's Jobs API, and commands that run where the storage is.

A sweep's driver is a job on the cluster. What is asked of it from outside (status, stop, report, ...) is the same
command, run on the cluster as a short job: the storage is the truth, and only the cluster sees it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SWEEP = "sweeper.sweep"  # metadata of a driver's job
STOPPED = 130  # exit status of a driver that was told to stop, as of a program that Ctrl-C has ended
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 0.5
POLLS_A_LOOK = 20
MOST_NODES = 10_000  # that Ray's state API tells of
READY_S = 60  # how long a fresh head may take until it takes jobs
# what Ray writes into a job's log before the job's own first line
_NOT_OURS = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\tINFO \S+\.py:\d+ --|Running entrypoint for job )")


class ClusterError(ConnectionError):
    """The cluster's Jobs API does not answer, refuses us, or has no such sweep; the message says what to do."""


class JobTimeout(ClusterError):
    """A short job that does not come to its end; the message says how far it came."""


@dataclass(frozen=True)
class Job:
    """One attempt at a sweep.

    id:     <sweep>-<n>
    status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED (which Ray's own pages call FAILED)
    """

    id: str
    sweep: str
    status: str
    message: str
    started: float | None
    exit_code: int | None

    @property
    def over(self) -> bool:
        return self.status in OVER

    def lost(self) -> Job:
        return replace(self, status="FAILED", message=f"its driver's node is gone; sweeper resume {self.sweep}")


def has_token() -> bool:
    """Whether a Ray token is at hand, where Ray itself looks for one."""
    env = os.environ
    file = Path(env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(env.get("RAY_AUTH_TOKEN")) or file.is_file()


class Cluster:
    """A cluster's Jobs API at http://HEAD:8265.

    python: the interpreter on the cluster; insecure: go on without a token. Raises ClusterError.
    """

    def __init__(self, address: str, python: str = "python", insecure: bool = False) -> None:
        if not address.startswith(("http://", "https://")):
            raise ClusterError(f"{address}: the Jobs API is a web address, such as http://HEAD:8265")
        if not insecure and not has_token():
            raise ClusterError(
                "no Ray token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's "
                "(`ray get-auth-token` there prints it), or say --insecure for a cluster that asks for none"
            )
        if has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.address, self.python = address, python
        from ray.job_submission import JobSubmissionClient

        with _told(address):
            self.client: Any = JobSubmissionClient(address)
        sdk = ("dashboard_sdk", "job.sdk")
        for name in ("ray", "ray._private.runtime_env.packaging", *(f"ray.dashboard.modules.{part}" for part in sdk)):
            logging.getLogger(name).setLevel(logging.ERROR)  # "Uploading package ..." is not the answer

    def jobs(self, sweep: str | None = None) -> list[Job]:
        """Attempts at sweeps, oldest first.

        A head that died and came back with its state (an external Redis) knows its old jobs as running, until somebody
        submits another; those whose node is gone are told as FAILED here.
        """
        with _told(self.address):
            found = [d for d in self.client.list_jobs() if SWEEP in (d.metadata or {})]
            jobs = {_job(d): d.driver_node_id for d in found if sweep in (None, d.metadata[SWEEP])}
            nodes = self._nodes() if any(node and not job.over for job, node in jobs.items()) else set()
        mine = [job if job.over or not node or node in nodes else job.lost() for job, node in jobs.items()]
        return sorted(mine, key=lambda job: job.started or time.time())

    def _nodes(self) -> set[str]:
        """Ids of the nodes that are alive."""
        from ray.util.state import list_nodes

        known = list_nodes(self.address, limit=MOST_NODES, raise_on_missing_output=False)
        return {node.node_id for node in known if node.state == "ALIVE"}

    def newest(self, sweep: str) -> Job:
        """The latest attempt at a sweep. Raises ClusterError where there is none."""
        jobs = self.jobs(sweep)
        if not jobs:
            known = ", ".join(sorted({job.sweep for job in self.jobs()})) or "none"
            raise ClusterError(f"no sweep '{sweep}' was submitted to {self.address}; sweeps there: {known}")
        return jobs[-1]

    def submit(self, sweep: str, arguments: list[str], bundle: Path | None, env: dict[str, str]) -> Job:
        """Start `python -m sweeper ARGUMENTS` as the sweep's driver. Raises ClusterError while one is under way."""
        jobs = self.jobs(sweep)
        running = [job for job in jobs if not job.over]
        if running:
            raise ClusterError(f"sweep '{sweep}' is under way already as {running[-1].id}; sweeper logs -f {sweep}")
        number = 1 + max((int(job.id.rpartition("-")[2]) for job in jobs), default=0)
        self._start(f"{sweep}-{number}", arguments, bundle, env, {SWEEP: sweep})
        return self.newest(sweep)

    def run(
        self, arguments: list[str], bundle: Path | None, env: dict[str, str], limit_s: float = math.inf
    ) -> tuple[str, int]:
        """A short command on the cluster, waited for: (what it printed, its exit status). Raises JobTimeout."""
        id_ = self._start(None, arguments, bundle, env, {})
        give_up = time.monotonic() + limit_s
        with _told(self.address):
            while str(self.client.get_job_status(id_)) not in OVER:
                if time.monotonic() > give_up:
                    raise self._unfinished(id_, limit_s)
                time.sleep(POLL_S)
            job = _job(self.client.get_job_info(id_))
            text = ours(self.client.get_job_logs(id_))
            self.client.delete_job(id_)
        code = job.exit_code if job.exit_code is not None else 0 if job.status == "SUCCEEDED" else 1
        if code and "No module named" in text:
            text += f"the cluster's '{self.python}' lacks a package; name the right interpreter with --python\n"
        return text if text or not code else job.message + "\n", code

    def _unfinished(self, id_: str, limit_s: float) -> JobTimeout:
        """Stops the job; its record stays, for whoever looks into it."""
        job = _job(self.client.get_job_info(id_))
        last = (ours(self.client.get_job_logs(id_)).strip().splitlines() or ["it has printed nothing"])[-1]
        self.client.stop_job(id_)
        return JobTimeout(f"job {id_} is {job.status} after {limit_s:g} s: {job.message}; last of its log: {last}")

    @contextmanager
    def streamed(self, arguments: list[str], bundle: Path | None, env: dict[str, str]) -> Iterator[Iterator[str]]:
        """A command on the cluster that may run for long: its lines as they come. It ends with the block."""
        id_ = self._start(None, arguments, bundle, env, {})
        try:
            yield self._tail(id_)
        finally:
            with _told(self.address):
                if str(self.client.get_job_status(id_)) not in OVER:
                    self.client.stop_job(id_)
                while str(self.client.get_job_status(id_)) not in OVER:
                    time.sleep(POLL_S)
                self.client.delete_job(id_)

    def logs(self, job: Job) -> str:
        with _told(self.address):
            return ours(self.client.get_job_logs(job.id))

    def follow(self, job: Job) -> Iterator[str]:
        """The driver's lines as they come, from its first, until it ends. Raises ClusterError where the head dies."""
        yield from self._tail(job.id)
        with _told(self.address):  # a head that ends in order says goodbye as if the job had ended
            self.client.get_job_status(job.id)

    def _tail(self, id_: str) -> Iterator[str]:
        from aiohttp import ClientError

        lines = self.client.tail_job_logs(id_)
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    yield ours(loop.run_until_complete(anext(lines)))
                except StopAsyncIteration:
                    return
                except (ClientError, OSError, RuntimeError) as error:
                    raise ClusterError(f"{self.address} is gone ({error}); is the cluster up?") from None
        finally:
            loop.close()

    def wait(self, sweep: str) -> Job:
        """The newest attempt, once it is over."""
        while not (job := self.newest(sweep)).over:
            for _ in range(POLLS_A_LOOK):  # at the job alone: to list jobs and nodes is much for the head
                time.sleep(POLL_S)
                with _told(self.address):
                    if _job(self.client.get_job_info(job.id)).over:
                        break
        return job

    def _start(
        self, id_: str | None, arguments: list[str], bundle: Path | None, env: dict[str, str], metadata: dict[str, str]
    ) -> str:
        runtime: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1"} | env}
        if bundle is not None:
            runtime["working_dir"] = str(bundle)
        give_up = time.monotonic() + READY_S
        while True:
            try:
                with _told(self.address):
                    return self.client.submit_job(
                        entrypoint=shlex.join([self.python, "-m", "sweeper", *arguments]),
                        submission_id=id_,
                        runtime_env=runtime,
                        metadata=metadata,
                    )
            except ClusterError as error:
                # a head that has just started serves pages before it can take jobs
                if "No available agent" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(POLL_S)


def ours(log: str) -> str:
    """A job's log without Ray's own lines."""
    return "".join(line for line in log.splitlines(keepends=True) if not _NOT_OURS.match(line))


def _job(details: Any) -> Job:
    status = str(getattr(details.status, "value", details.status))
    return Job(
        id=str(details.submission_id),
        sweep=str((details.metadata or {}).get(SWEEP, "")),
        status="STOPPED" if status == "FAILED" and details.driver_exit_code == STOPPED else status,
        message=str(details.message or ""),
        started=details.start_time / 1000 if details.start_time else None,
        exit_code=details.driver_exit_code,
    )


class _told:
    """Turns what the Jobs client raises into one line."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        from ray.exceptions import AuthenticationError
        from ray.util.state.exception import RayStateApiException

        # what the requests library raises is OSError
        known = (OSError, RuntimeError, ValueError, AuthenticationError, RayStateApiException)
        if isinstance(error, ClusterError) or not isinstance(error, known):
            return
        reason = str(error).strip().splitlines()[0] if str(error).strip() else kind
        raise ClusterError(
            f"{self.address} (Ray's Jobs API): {reason}; is the cluster up, and the token its own?"
        ) from None
