"""MLflow, written from the trials' folders by one writer: a view that can be made again at any time.

Identity is by tags: one parent run a sweep, one child a trial. Points are idempotent, because a row's step, time
and value are on disk and MLflow keeps equal points once: writing a trial again adds nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.spec import TrialSpec
from jobs.yardsticks import TRUNCATED, hardly_ends
from sweeper.results import OVER, failure_of, status_of
from sweeper.store import Store
from sweeper.view import view_tags, view_url

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

KEY = "sweeper.key"
SYNC_EVERY_S = 2.0
CLOSE_S = 60.0  # for the runs to be closed when somebody does not want to wait
BATCH = 1000  # MLflow's limit of metrics, params and tags in one request
PAGE = 1000  # runs in one answer
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
}
ABOUT = """One run a trial, nested below this sweep; the run called *backbone* is the model before training.

- **task/accuracy_sampled**: right answers drawn at T = 1, mean over k draws a prompt; **task/accuracy_greedy**: greedy.
- **heldout/**: -log p (nats), mean p and token accuracy of held-out target tokens.
- **trainset/mean_p**, on *backbone* runs: how well the backbone predicts the training set before training.
- **objective/loss** is the trial's own loss: its scale differs between objectives, so compare nothing by it.

Compare: select runs, *Compare*; or group the table by `objective`. The report is under this run's artifacts."""


def default_uri(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


class Tracking:
    """The writer. Not for use from several processes at once: the sweep's lock sees to that."""

    def __init__(self, store: Store, sweep: str, uri: str) -> None:
        _set_environment()
        from mlflow.tracking import MlflowClient

        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self.store, self.sweep, self.uri = store, sweep, uri
        self.trials = store.trials(sweep)
        self.experiment_id = self._experiment()
        self.runs: dict[str, Run] = {r.data.tags[KEY]: r for r in self._all_runs() if KEY in r.data.tags}
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
        if not over and self.runs["sweep"].info.status != "RUNNING":
            self.client.update_run(self.parent, status="RUNNING")
            self.runs["sweep"] = self.client.get_run(self.parent)
        for key, trial in self.trials.items():
            closed = self.closed.get(key)
            # what has failed or was stopped may be taken up again after it was closed
            if closed is None or (closed != "finished" and closed != status_of(self.store.trial(key).result())):
                self._sync_trial(key, trial, over)
        if over:
            states = [status_of(self.store.trial(key).result()) for key in self.trials]
            self.client.set_terminated(
                self.parent,
                "FINISHED" if all(s in OVER for s in states)
                else "FAILED" if "unfinished" not in states
                else "KILLED",
            )  # fmt: skip

    def add_artifacts(self, folder: Path) -> None:
        """The report, under the parent run."""
        self.client.log_artifacts(self.parent, str(folder), "report")

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.sweep)
        if found is not None:
            for key, value in view_tags().items():
                if found.tags.get(key) != value:
                    self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite")
        where = (self.store.root.resolve() / "mlartifacts" / self.sweep).as_uri() if local else None
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": ABOUT, **view_tags()}
        return str(self.client.create_experiment(self.sweep, artifact_location=where, tags=tags))

    def _all_runs(self) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while token is not None or not runs:
            page = self.client.search_runs([self.experiment_id], max_results=PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        return runs

    def _parent(self) -> str:
        if "sweep" in self.runs:
            return str(self.runs["sweep"].info.run_id)
        tags = {KEY: "sweep", "mlflow.note.content": ABOUT, "sweeper.kind": "sweep"}
        run = self.client.create_run(self.experiment_id, run_name=f"sweep {self.sweep}", tags=tags)
        self.runs["sweep"] = run
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
        return self.client.create_run(
            self.experiment_id,
            start_time=_ms(started),
            run_name=f"{name} · s{trial.seed}" if trial.objective else name,
            tags={KEY: key, "sweeper.kind": kind, "mlflow.parentRunId": self.parent},
        )

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


def _set_environment() -> None:
    """MLflow reads these at import: call it before every one."""
    for name, value in MLFLOW_ENV.items():
        os.environ.setdefault(name, value)


def open_tracking(store: Store, sweep: str, uri: str) -> Tracking | None:
    """None, and a line on stderr, where MLflow cannot be reached: reports are made without it."""
    _set_environment()
    from mlflow.exceptions import MlflowException

    try:
        return Tracking(store, sweep, uri)
    except MlflowException as error:
        print(f"no MLflow at {uri} ({str(error).splitlines()[0]})", file=sys.stderr)
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
    _set_environment()
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
    _set_environment()
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


class TrackingThread:
    """The writer beside a running sweep. A server that is down costs no training: what it missed is written later."""

    def __init__(self, store: Store, sweep: str, uri: str) -> None:
        _set_environment()
        self.store, self.sweep, self.uri = store, sweep, uri
        self.stopping, self.closed = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.tracking: Tracking | None = None
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> TrackingThread:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all runs are closed; a signal meanwhile ends the program after that, a second one at once."""
        self.stopping.set()
        try:
            self.closed.wait()  # no join(): interrupted once, that takes the thread for ended (CPython 3.11)
        except KeyboardInterrupt:
            self.closed.wait(CLOSE_S)
            raise

    def _loop(self) -> None:
        """Also the last writing, since signals come to the main thread alone."""
        try:
            while not self.stopping.is_set():
                self._try(over=False)
                self.stopping.wait(SYNC_EVERY_S)
        finally:
            try:
                self._try(over=True)
            finally:
                self.closed.set()

    def _try(self, over: bool) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if self.tracking is None:
                self.tracking = Tracking(self.store, self.sweep, self.uri)
            self.tracking.sync(over)
            self.error = None
        except (MlflowException, OSError) as error:
            self.error = error
