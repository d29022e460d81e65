"""The live board of a sweep: what runs, how fast, what is best so far, what failed. Read from the storage alone."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jobs.record import Row, TrialFolder
from jobs.spec import TrialSpec
from jobs.yardsticks import PRIMARY, YARDSTICKS
from sweeper.control import driver
from sweeper.fitting import fitting
from sweeper.gpu_memory import placed
from sweeper.results import OVER, status_of, taken
from sweeper.store import Store

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_S = 2.0
ACTIVE_S = 180.0  # an unfinished trial whose newest row is older is not counted as running
SPEED = "train/target_tokens_per_s"
Facts = dict[str, Any]


class Watcher:
    """Reads every trial's rows once: what was read before is not read again, and finished trials are not opened."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.store, self.sweep = store, sweep
        self.trials = store.trials(sweep)
        self.offsets: dict[str, int] = defaultdict(int)
        self.rows: dict[str, Row] = defaultdict(dict)
        self.results: dict[str, dict[str, Any]] = {}

    def facts(self) -> Facts:
        """All that the board shows, as JSON types; the groups in plan order."""
        for key in self.trials:
            self._read(self.store.trial(key), key)
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key, trial in self.trials.items():
            groups[trial.backbone.name, trial.task.name].append(key)
        over = [k for k in self.trials if self._status(k) in (*OVER, "failed")]
        paused = Counter(str(self.results[k].get("error")) for k in self.trials if self._status(k) == "paused")
        running = [k for k in self.trials if self._runs(k)]
        return {
            "sweep": self.sweep,
            "driver": driver(self.store, self.sweep) is not None,
            "trials": len(self.trials),
            "over": len(over),
            "seconds_left": self._seconds_left(groups, running),
            "tokens_per_s": sum(self.rows[k].get(SPEED, 0.0) for k in running),
            "groups": [self._group(backbone, task, keys) for (backbone, task), keys in groups.items()],
            "running": [self._running(k) for k in running],
            "failures": [
                {"trial": k, "reason": str(self.results[k].get("error", ""))}
                for k in self.trials
                if self._status(k) == "failed"
            ],
            "diverged": sum(self._status(k) == "diverged" for k in self.trials),
            "paused": [{"trials": number, "reason": reason} for reason, number in paused.items()],
        }

    def _read(self, folder: TrialFolder, key: str) -> None:
        if key in self.results and folder.result() is not None:
            return
        rows, self.offsets[key] = folder.rows_from(self.offsets[key])
        for row in rows:
            self.rows[key] |= row
        result = folder.result()
        if result is None:
            self.results.pop(key, None)
        else:
            self.results[key] = result

    def _status(self, key: str) -> str:
        return status_of(self.results.get(key))

    def _runs(self, key: str) -> bool:
        return key not in self.results and time.time() - self.rows[key].get("time", 0.0) < ACTIVE_S

    def _group(self, backbone: str, task: str, keys: list[str]) -> Facts:
        scores: dict[str, list[float]] = defaultdict(list)
        for key in keys:
            if self._status(key) == "diverged":
                scores[self.trials[key].objective_label].append(YARDSTICKS[PRIMARY].worst)
            elif self._status(key) == "finished" and PRIMARY in self.rows[key]:
                scores[self.trials[key].objective_label].append(self.rows[key][PRIMARY])
        means = {label: fmean(values) for label, values in scores.items()}
        trained = {label: mean for label, mean in means.items() if label != "backbone"}
        best = max(trained, key=lambda label: trained[label], default=None)
        return {
            "backbone": backbone, "task": task,
            "over": sum(self._status(k) != "unfinished" for k in keys), "trials": len(keys),
            "best": best, "best_score": means[best] if best else None, "best_seeds": len(scores[best]) if best else 0,
            "nll_score": means.get("nll"), "base_score": means.get("backbone"),
        }  # fmt: skip

    def _running(self, key: str) -> Facts:
        trial, row = self.trials[key], self.rows[key]
        return {
            "trial": key, "backbone": trial.backbone.name, "task": trial.task.name,
            "objective": trial.objective_label, "seed": trial.seed if trial.objective else None,
            "step": int(row.get("step", 0)), "steps": _steps(trial), "tokens_per_s": row.get(SPEED),
            "nll": row.get("train/nll"),
            "gpus": placed(fitting(trial, self.store.root), self.store.root).shape.gpus * trial.execution.workers,
        }  # fmt: skip

    def _seconds_left(self, groups: dict[tuple[str, str], list[str]], running: list[str]) -> float | None:
        """Of all that is left, at the pace of the finished trials of the same backbone and task; None: no telling."""
        took = {
            group: fmean(times)
            for group, keys in groups.items()
            if (times := [s for k in keys if (s := taken(self.results.get(k, {}))) is not None])
        }
        if not took or not running:
            return None
        usual, left = fmean(took.values()), 0.0
        for group, keys in groups.items():
            for key in keys:
                if key not in self.results:
                    steps = _steps(self.trials[key])
                    done = self.rows[key].get("step", 0) / steps if steps else 0.0
                    left += took.get(group, usual) * (1 - min(1.0, done))
        return left / len(running)


def _steps(trial: TrialSpec) -> int | None:
    return trial.train.steps if trial.objective else 0


def stream(store: Store, sweep: str, every_s: float = EVERY_S) -> Iterator[Facts]:
    """Facts now, and again until no driver runs the sweep."""
    watcher = Watcher(store, sweep)
    while True:
        facts = watcher.facts()
        yield facts
        if not facts["driver"]:
            return
        time.sleep(every_s)


def show(facts: Iterable[Facts]) -> Facts:
    """Draw facts as they come: in place on a terminal, else a line whenever something has changed."""
    last: Facts = {}
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            for last in facts:
                live.update(board(last), refresh=True)
        return last
    said = ""
    for last in facts:
        if (line := summary(last)) != said:
            print(line, flush=True)
        said = line
    return last


@contextmanager
def beside(store: Store, sweep: str) -> Iterator[None]:
    """The board below whatever the block prints; nothing where there is no terminal."""
    if not sys.stdout.isatty():
        yield
        return
    from rich.live import Live

    watcher = Watcher(store, sweep)
    with Live(get_renderable=lambda: board(watcher.facts()), refresh_per_second=0.5, transient=True):
        yield


def summary(facts: Facts) -> str:
    """One line: counts, what is best where, how long it takes."""
    best = "; ".join(
        f"{g['backbone']} · {g['task']}: {g['best']} {g['best_score']:.2f}" for g in facts["groups"] if g["best"]
    )
    parts = [f"{facts['sweep']}: {facts['over']} of {facts['trials']} trials over, {len(facts['running'])} running"]
    if facts["failures"]:
        parts.append(f"{len(facts['failures'])} FAILED")
    parts += [f"{number} {word}" for word, number in _held_back(facts)]
    return ", ".join(parts) + (f"; best so far {best}" if best else "")


def _held_back(facts: Facts) -> list[tuple[str, int]]:
    """How many trials diverged, and how many are paused; what is none is left out."""
    paused = sum(one["trials"] for one in facts.get("paused", ()))
    return [(word, number) for word, number in (("diverged", facts.get("diverged", 0)), ("paused", paused)) if number]


def board(facts: Facts) -> RenderableType:
    """A table of groups, one of running trials, and the reasons of failures."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = f"{facts['sweep']}: {facts['over']} of {facts['trials']} trials over"
    if facts["tokens_per_s"]:
        head += f", {facts['tokens_per_s']:,.0f} target tokens/s"
    if facts["seconds_left"] is not None:
        head += f", about {_span(facts['seconds_left'])} left"
    head += "".join(f", {number} {word}" for word, number in _held_back(facts))
    if not facts["driver"]:
        head += "; no driver runs it"
    groups = Table("backbone", "task", "over", "best so far", "accuracy T=1", "nll", "backbone as it is")
    for g in facts["groups"]:
        best = f"{g['best']} ({g['best_seeds']} seeds)" if g["best"] else ""
        groups.add_row(
            g["backbone"], g["task"], f"{g['over']}/{g['trials']}", best,
            _score(g["best_score"]), _score(g["nll_score"]), _score(g["base_score"]),
        )  # fmt: skip
    parts: list[RenderableType] = [Text(head, style="bold"), groups]
    if facts["running"]:
        now = Table("running", "objective", "seed", "step", "target tokens/s", "train nll", "GPUs")
        for r in facts["running"]:
            step = f"{r['step']}/{r['steps']}" if r["steps"] else str(r["step"])
            speed = "" if r["tokens_per_s"] is None else f"{r['tokens_per_s']:,.0f}"
            nll = "" if r["nll"] is None else f"{r['nll']:.3f}"
            seed = "" if r["seed"] is None else str(r["seed"])
            now.add_row(f"{r['backbone']} · {r['task']}", r["objective"], seed, step, speed, nll, f"{r['gpus']:.3g}")
        parts.append(now)
    for failure in facts["failures"][:5]:
        parts.append(Text(f"failed: {failure['trial']}: {failure['reason'][:160]}", style="red"))
    for one in facts.get("paused", ()):
        parts.append(Text(f"paused: {one['trials']} trials: {one['reason'][:160]}", style="red"))
    if len(facts["failures"]) > 5:
        parts.append(Text(f"and {len(facts['failures']) - 5} more; sweeper status {facts['sweep']}", style="red"))
    return Group(*parts)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def from_lines(lines: Iterable[str]) -> Iterator[Facts]:
    """Facts out of the JSON lines that `sweeper watch --json` prints, in whatever pieces they come."""
    rest = ""
    for piece in lines:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            if line.startswith("{"):
                yield json.loads(line)
