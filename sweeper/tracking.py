"""MLflow, written from the trials' folders by one writer: a view that can be made again at any time.

Identity is by tags: one parent run a sweep, one child a making of a trial (a folder that is deleted and made again is
another making).
Points are idempotent, because a row's step, time and value are on disk and MLflow keeps equal points once: writing a
trial again adds nothing. What somebody has deleted in MLflow stays deleted, until `sync --restore`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.failure import Failure
from jobs.spec import TrialSpec
from jobs.yardsticks import TRUNCATED, hardly_ends
from sweeper import mlflow_file
from sweeper.results import OVER, failure_of, status_of
from sweeper.store import Store
from sweeper.view import view_tags, view_url

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

KEY = "sweeper.key"
SWEEP = "sweep"  # the key of the run of the whole sweep
TWIN_OF = "sweeper.twin_of"  # of a second run for one trial: the run that is written
MADE = "sweeper.made"  # which making of the trial's folder a run belongs to
BATCH = 1000  # MLflow's limit of metrics, params and tags in one request
PAGE = 1000  # runs in one answer
ATTEMPTS = 3  # to store artifacts
# of a result: what a worker could take at once
AT_ONCE = ("micro_batch_size", "evaluated_at_once")
NOT_MADE = "is not there yet, the first sweep makes it"
FINAL = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED", "paused": "KILLED"}
# a server that is down is asked again at the next sync, so no request needs MLflow's own minutes of retries
MLFLOW_ENV = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would tell its makers of every run
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a line for each run, between a sweep's own
}
ABOUT = """One run a trial, nested below this sweep; the run called *backbone* is the model before training.

- **task/accuracy_sampled**: right answers drawn at T = 1, mean over k draws a prompt; **task/accuracy_greedy**: greedy.
- **heldout/**: -log p (nats), mean p and token accuracy of held-out target tokens.
- **trainset/mean_p**, on *backbone* runs: how well the backbone predicts the training set before training.
- **objective/loss** is the trial's own loss: its scale differs between objectives, so compare nothing by it.

Compare: select runs, *Compare*; or group the table by `objective`. The report is under this run's artifacts."""


def default_uri(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


class TrackingError(ConnectionError):
    """MLflow answers, and this sweep cannot be written; the message says what to do."""


class Tracking:
    """The writer. Not for use from several processes at once: the sweep's lock sees to that.

    restore: bring back what was deleted in MLflow: the experiment, the sweep's run, runs of trials
    deleted: keys of trials whose run was deleted there: they are not written
    """

    def __init__(self, store: Store, sweep: str, uri: str, restore: bool = False) -> None:
        set_environment()
        from mlflow.tracking import MlflowClient

        if (aside := mlflow_file.ready(uri)) is not None:
            print(aside, file=sys.stderr)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self.store, self.sweep, self.uri = store, sweep, uri
        self.trials = store.trials(sweep)
        self.restore = restore
        self.deleted: set[str] = set()
        self.unsure = False  # whether the server may have made a run that we do not know
        self.experiment_id = self._experiment()
        self.runs: dict[str, Run] = {}
        self._know_runs()
        self.parent = self._parent()
        self.offsets: dict[str, int] = {}
        self.closed: dict[str, str] = {}  # trials whose run has its last state, by status
        self.described = {key for key, run in self.runs.items() if run.data.params}

    def run_ids(self) -> dict[str, str]:
        """Trial key -> MLflow run id."""
        return {key: run.info.run_id for key, run in self.runs.items() if key in self.trials}

    def run_url(self, run_id: str) -> str:
        """Where a tracking server's UI shows a run."""
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{run_id}"

    def sync(self, over: bool = False) -> None:
        """Bring every trial's run up to its folder. `over`: no driver is running, so nothing may stay RUNNING."""
        if self.unsure:
            self._know_runs()
            self.unsure = False
        if not over and SWEEP not in self.deleted and self.runs[SWEEP].info.status != "RUNNING":
            self._of(SWEEP, self._reopen_parent)
        for key, trial in self.trials.items():
            closed = self.closed.get(key)
            # what has failed or was stopped may be taken up again after it was closed
            again = closed is None or (closed != "finished" and closed != status_of(self.store.trial(key).result()))
            if again and key not in self.deleted:
                self._of(key, partial(self._sync_trial, key, trial, over))
        if over and SWEEP not in self.deleted:
            self._of(SWEEP, self._close_parent)

    def _of(self, key: str, write: Callable[[], None]) -> None:
        """Write to one run. If that run was deleted meanwhile it is left alone, and all others are written."""
        from mlflow.exceptions import MlflowException

        try:
            write()
        except MlflowException:
            if not self._was_deleted(key):
                raise
            self.deleted.add(key)
            print(
                f"MLflow: the run of {key} was deleted there, so it is not written any more; "
                f"sweeper sync {self.sweep} --restore brings it back",
                file=sys.stderr,
            )

    def _was_deleted(self, key: str) -> bool:
        """Raises MlflowException where the server does not answer that either."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        if key not in self.runs:
            return False
        try:
            return bool(self.client.get_run(self.runs[key].info.run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return True  # and cleared away for good
            raise

    def _reopen_parent(self) -> None:
        self.client.update_run(self.parent, status="RUNNING")
        self.runs[SWEEP] = self.client.get_run(self.parent)

    def _close_parent(self) -> None:
        states = [status_of(self.store.trial(key).result()) for key in self.trials]
        done = all(state in OVER for state in states)
        left = "FAILED" if "unfinished" not in states else "KILLED"
        self.client.set_terminated(self.parent, "FINISHED" if done else left)

    def add_artifacts(self, folder: Path) -> str | None:
        """The report, under the parent run. Returns why it could not be stored, or None."""
        if SWEEP in self.deleted:
            return "the sweep's run was deleted in MLflow"
        reason = None
        for attempt in range(ATTEMPTS):
            try:
                time.sleep(attempt)
                self.client.log_artifacts(self.parent, str(folder), "report")
                return None
            except Exception as error:  # of a server, a disk, a bucket: the report is in the storage
                reason = Failure.of(error).line
        return reason

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.sweep)
        if found is not None and found.lifecycle_stage == "deleted":
            if not self.restore:
                restore = f"sweeper sync {self.sweep} --restore"
                raise TrackingError(f"experiment '{self.sweep}' was deleted in MLflow; {restore} brings it back")
            self.client.restore_experiment(found.experiment_id)
        if found is not None:
            for key, value in view_tags().items():
                if found.tags.get(key) != value:
                    self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite")
        where = (self.store.root.resolve() / "mlartifacts" / self.sweep).as_uri() if local else None
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": ABOUT, **view_tags()}
        return str(self.client.create_experiment(self.sweep, artifact_location=where, tags=tags))

    def _know_runs(self) -> None:
        """The run of each trial. Of several for one (an answer to create_run was lost) the one with points is kept."""
        found: dict[str, list[Run]] = {}
        for run in self._all_runs():
            key = run.data.tags.get(KEY)
            if key is not None and TWIN_OF not in run.data.tags and self._is_of_this_making(key, run):
                found.setdefault(key, []).append(run)
        for key, runs in found.items():
            active = [run for run in runs if run.info.lifecycle_stage == "active"]
            if not active and self.restore:
                self.client.restore_run(runs[0].info.run_id)
                active = [self.client.get_run(runs[0].info.run_id)]
            if not active:
                self.deleted.add(key)
            first, *others = sorted(active or runs, key=lambda run: (not run.data.metrics, run.info.start_time))
            for other in others if active else []:
                self.client.set_tag(other.info.run_id, TWIN_OF, first.info.run_id)
                self.client.set_tag(other.info.run_id, "mlflow.note.content", f"A twin of run {first.info.run_id}.")
                self.client.set_terminated(other.info.run_id, "KILLED")
            self.runs[key] = first

    def _is_of_this_making(self, key: str, run: Run) -> bool:
        """Whether a run was made for the trial's folder as it is, not for one that was deleted."""
        made = run.data.tags.get(MADE)
        return key == SWEEP or made is None or made == self.store.trial(key).made()

    def _all_runs(self) -> list[Run]:
        """Deleted ones too."""
        from mlflow.entities import ViewType

        runs: list[Run] = []
        token: str | None = None
        while token is not None or not runs:
            page = self.client.search_runs(
                [self.experiment_id], run_view_type=ViewType.ALL, max_results=PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                break
        return runs

    def _parent(self) -> str:
        if SWEEP in self.runs:
            return str(self.runs[SWEEP].info.run_id)
        tags = {KEY: SWEEP, "mlflow.note.content": ABOUT, "sweeper.kind": "sweep"}
        run = self.client.create_run(self.experiment_id, run_name=f"sweep {self.sweep}", tags=tags)
        self.runs[SWEEP] = run
        self.client.log_text(
            run.info.run_id, (self.store.sweep_dir(self.sweep) / "sweep.yaml").read_text(), "sweep.yaml"
        )
        return str(run.info.run_id)

    def _sync_trial(self, key: str, trial: TrialSpec, over: bool) -> None:
        folder = self.store.trial(key)
        status = status_of(folder.result())
        rows, offset = folder.rows_from(self.offsets.get(key, 0))
        run = self.runs.get(key)
        if not rows and status in ("unfinished", "paused") and run is None:
            return  # not started
        if run is None:
            run = self.runs[key] = self._create(key, trial)
        run_id = run.info.run_id
        wanted = FINAL.get(status, "KILLED" if over else "RUNNING")
        if run.data.tags.get("sweeper.rows") == str(offset) and run.info.status == wanted:
            rows = []  # all of it was written by an earlier driver
        ends, result = status in FINAL or over, folder.result() or {}
        tags = {"sweeper.rows": str(offset), "status": status, **_tags_of(result)} if ends else {}
        tags |= _end_tags(result, folder.rows()) if ends else {}
        self._log(run_id, {} if key in self.described else _params(trial), rows, tags)
        self.described.add(key)
        self.offsets[key] = offset
        if ends:
            if "error" in run.data.tags and "error" not in tags:
                self.client.delete_tag(run_id, "error")  # of an attempt before this one
            self.client.set_terminated(run_id, wanted, end_time=_ms(result["time"]) if result else None)
            self.closed[key] = status
        elif rows and run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self.runs[key] = self.client.get_run(run_id)

    def _create(self, key: str, trial: TrialSpec) -> Run:
        name = f"{trial.objective_label} · {trial.backbone.name} · {trial.task.name}"
        folder = self.store.trial(key)
        started = folder.started() or (folder.result() or {}).get("time", time.time())  # over before it began
        kind = "trial" if trial.objective else "backbone"
        tags = {KEY: key, "sweeper.kind": kind, "mlflow.parentRunId": self.parent}
        if made := folder.made():
            tags[MADE] = made
        self.unsure = True  # until the answer is there
        run = self.client.create_run(
            self.experiment_id,
            start_time=_ms(started),
            run_name=f"{name} · s{trial.seed}" if trial.objective else name,
            tags=tags,
        )
        self.unsure = False
        return run

    def _log(self, run_id: str, params: dict[str, str], rows: list[dict[str, float]], tags: dict[str, str]) -> None:
        """In as few requests as MLflow's limits allow; the tags come with the last of the rows, never before it."""
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(name, float(value), _ms(row["time"]), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("step", "time")
        ]
        given = [Param(name, value) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        size = BATCH - len(given) - len(labels)
        parts = [points[start : start + size] for start in range(0, len(points), size)] or [[]]
        for number, part in enumerate(parts):
            last = labels if number == len(parts) - 1 else []
            if given or part or last:
                self.client.log_batch(run_id, metrics=part, params=given, tags=last)
            given = []


def _params(trial: TrialSpec) -> dict[str, str]:
    objective = trial.objective.canonical() if trial.objective else None
    params: dict[str, Any] = {
        "backbone": trial.backbone.name,
        "task": trial.task.name,
        "objective": trial.objective_label,
        "alpha": objective.alpha if objective else None,
        "gate": objective.gate.label if objective and objective.gate else None,
        "normalisation": objective.normalisation if objective else None,
        **({f"objective.{name}": value for name, value in objective.params.items()} if objective else {}),
        "seed": trial.seed if objective else None,
        **(trial.train.model_dump() if objective else {}),
        **{f"eval.{k}": v for k, v in trial.evaluation.model_dump().items()},
        **trial.execution.model_dump(),
        "attention": trial.attention,
    }
    return {name: str(value) for name, value in params.items() if value is not None}


def set_environment() -> None:
    """MLflow reads these at import: call it before every one."""
    for name, value in MLFLOW_ENV.items():
        os.environ.setdefault(name, value)


def open_tracking(store: Store, sweep: str, uri: str, restore: bool = False) -> Tracking | None:
    """None, and a line on stderr, where MLflow cannot be reached or read: reports are made without it."""
    set_environment()
    try:
        return Tracking(store, sweep, uri, restore)
    except TrackingError as error:
        print(error, file=sys.stderr)
    except Exception as error:  # of a server, a database, a network: a report is made all the same
        print(f"no MLflow at {uri} ({Failure.of(error).line})", file=sys.stderr)
    return None


def reach(uri: str) -> tuple[int | None, str]:
    """Ask MLflow what a sweep asks it first, with the credentials that a sweep would use.

    (200, '') where it answers, (200, NOT_MADE) for a file that the first sweep will make; (HTTP status, its words)
    where it refuses; (None, the reason) where nobody answers.
    """
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if file is not None and not file.exists():  # to ask would be to make it
        folder = next(parent for parent in file.absolute().parents if parent.exists())
        return (200, NOT_MADE) if os.access(folder, os.W_OK) else (None, f"{folder} cannot be written")
    set_environment()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        if uri.startswith(("http://", "https://")):
            credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
            response = http_request(  # type: ignore[no-untyped-call]
                credentials, "/api/2.0/mlflow/experiments/search", "GET",
                params={"max_results": 1}, max_retries=0, timeout=10, raise_on_status=False,
            )  # fmt: skip
            return response.status_code, "" if response.status_code == 200 else response.text.strip()[:200]
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        return None, str(error).strip().splitlines()[-1]
    return 200, ""


def experiment_urls(store: Store, uri: str, server: str) -> dict[str, str]:
    """Sweep -> its page in the UI at `server`, for the sweeps of this storage that MLflow knows."""
    set_environment()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = {sweep: client.get_experiment_by_name(sweep) for sweep in store.sweeps()}
    return {s: view_url(server, str(e.experiment_id), "means") for s, e in found.items() if e is not None}


def _tags_of(result: dict[str, Any]) -> dict[str, str]:
    """What a trial came to: no params, since a trial may go on where these differ."""
    tags = {f"execution.{name}": str(result[name]) for name in AT_ONCE if name in result}
    if check := result.get("objective_check"):
        tags["objective.digest"] = check["digest"]
    if result.get("gate_at") is not None:
        tags["objective.gate_at"] = str(result["gate_at"])
    if result.get("together"):
        tags["together"] = str(result["together"])
    if result.get("error"):
        tags["error"] = str(result["error"])[-4000:]
    if kind := failure_of(result).get("kind"):
        tags["failure.kind"] = str(kind)
    return tags | _memory_tags(result.get("memory"))


def _end_tags(result: dict[str, Any], rows: list[dict[str, float]]) -> dict[str, str]:
    """How answers end, and a warning beside the score where they hardly do."""
    answers = (result.get("corpus") or {}).get("answers")
    tags = {"answers.end": str(answers["sentence"])} if answers else {}
    share = next((row[TRUNCATED] for row in reversed(rows) if TRUNCATED in row), None)
    warning = hardly_ends(share)
    return tags | ({"answers.warning": warning} if warning else {})


def _memory_tags(memory: dict[str, Any] | None) -> dict[str, str]:
    if memory is None:
        return {}
    peak = max(a + b for a, b in zip(memory["peak_bytes"], memory["outside_bytes"], strict=True))
    return {"memory.peak_gib": f"{peak / (1 << 30):.2f}", "memory.gpus_per_worker": f"{memory['gpus']:g}"}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
