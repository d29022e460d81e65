"""Plans and states as facts (for programs) and as tables (for people)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jobs.backbone import local_dir
from jobs.ending_files import ending_in_files
from jobs.record import DAMAGED
from jobs.spec import TrialSpec
from sweeper.board import Place
from sweeper.estimate import estimate, measured_seconds
from sweeper.fitting import fitting
from sweeper.foreseen import foreseen
from sweeper.gpu_memory import may_share, measured, placed, why_whole
from sweeper.gpu_share import in_words, parts_of
from sweeper.grouping import groups_facts
from sweeper.kept import weights_not_kept
from sweeper.plan import Plan
from sweeper.preview import data_facts, print_data
from sweeper.results import OVER, failure_of, status_of
from sweeper.store import Store
from sweeper.task_facts import at_hand
from sweeper.trouble import trouble, words


def plan_facts(plan: Plan, store: Store) -> dict[str, Any]:
    """All that `sweeper plan` knows, as JSON types. Raises TaskError for data that `run` would refuse."""
    foreseen_notes = foreseen(plan, store.root)
    seconds = measured_seconds(store, list(plan.trials))
    trials = []
    for trial in plan.trials:
        cost = estimate(trial, store.root, seconds.get((trial.backbone.name, trial.task.name)))
        # fixed shares need nothing of the storage
        place = placed(fitting(trial, store.root) if may_share(trial) else trial, store.root)
        trials.append(
            {
                "key": trial.key,
                "backbone": trial.backbone.name,
                "task": trial.task.name,
                "objective": trial.objective_label,
                "seed": trial.seed if trial.objective else None,
                "steps": cost.steps,
                "gpus": place.shape.gpus * trial.execution.workers,
                "gpus_from": _gpus_from(trial, place),
                "workers": trial.execution.workers,
                "status": status_of(store.trial(trial.key).result()),
                "tokens": cost.tokens,
                "memory_bytes": cost.memory_bytes,
                "seconds": cost.seconds,
                "seconds_from": cost.seconds_from,
            }
        )
    return {
        "sweep": plan.spec.settings.name,
        "source": plan.spec.source,
        "cells": plan.num_cells,
        "merged": plan.merged,
        "gpu_hours": _gpu_hours(trials),
        "gpu_shares": _gpu_shares(plan, store),
        "together": groups_facts(plan.trials, plan.spec.settings.together, store.root),
        "data": data_facts(at_hand([trial.task for trial in plan.trials]).items()),
        "notes": [*plan.notes, *foreseen_notes, *filter(None, [weights_not_kept(store, plan)])],
        "answers": answers_facts(plan.trials, store.root),
        "trials": trials,
    }


def _gpus_from(trial: TrialSpec, place: Place) -> str:
    """Whether the sweep file says so ('file'), a measure does ('measured'), or one is to come ('unmeasured')."""
    if not may_share(trial):
        return "file"
    return "measured" if place.unmeasured is None else "unmeasured"


def _gpu_shares(plan: Plan, store: Store) -> list[str]:
    """What the plan says of measured shares, a line each."""
    lines: dict[str, None] = {}
    kinds: dict[str, None] = {}
    for trial in plan.trials:
        if (reason := why_whole(trial)) is not None:
            lines[f"{trial.backbone.name} gets whole GPUs: {reason}"] = None
        if not may_share(trial):
            continue
        fit = fitting(trial, store.root)
        place, known = placed(fit, store.root), measured(fit, store.root)
        if place.unmeasured is not None:
            kinds[place.unmeasured] = None
        elif known is not None:
            what = "trained" if trial.objective is not None else "measured as it is"
            took, of = _size(known.peak_bytes + known.outside_bytes), _size(known.total_bytes)
            gets = in_words(parts_of(place.shape.gpus))
            lines[f"{trial.backbone.name} on {trial.task.name}, {what}: took {took} of {of}, gets {gets}"] = None
    if kinds:
        text = (
            f"measured on the first trial of each kind, which has a whole GPU; {len(kinds)} kinds are not measured yet"
        )
        lines[text] = None
    return list(lines)


def _gpu_hours(trials: list[dict[str, Any]]) -> float | None:
    """Of what is still to do; None where some trial's time is not known, 0 without GPUs."""
    todo = [t for t in trials if t["status"] not in OVER]
    if any(t["seconds"] is None for t in todo):
        return None
    return round(sum(t["seconds"] * t["gpus"] for t in todo) / 3600, 2)


def answers_facts(trials: Iterable[TrialSpec], root: Path) -> dict[str, str]:
    """What ends the answers of each backbone, as far as its files are at hand; the built-in ones have one end each."""
    found: dict[str, str] = {}
    for backbone, stop in dict.fromkeys((trial.backbone.bare(), trial.evaluation.stop) for trial in trials):
        folder = local_dir(backbone, root) if backbone.builtin is None else None
        if folder is not None and folder.is_dir():
            line = ending_in_files(folder, backbone.chat_template, backbone.eos)
            texts = f"; and at {', '.join(map(repr, stop))}" if stop else ""
            found |= {backbone.name: line + texts} if line else {}
    return found


def print_plan(facts: dict[str, Any]) -> None:
    trials = facts["trials"]
    trained = [t for t in trials if t["objective"] != "backbone"]
    todo = [t for t in trials if t["status"] not in OVER]
    print(f"{facts['sweep']} ({facts['source']}): {facts['cells']} cells, {len(trained)} trials to train,", end=" ")
    print(f"{len(trials) - len(trained)} backbones to measure; {len(trials) - len(todo)} done already\n")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["backbone"], trial["task"], trial["objective"]), []).append(trial)
    rows: list[tuple[str, ...]] = [
        ("backbone", "task", "objective", "seeds", "steps", "tokens", "memory", "time", "done")
    ]
    for (backbone, task, objective), group in groups.items():
        one = group[0]
        seeds = " ".join(str(t["seed"]) for t in group) if one["seed"] is not None else ""
        done = sum(t["status"] in OVER for t in group)
        time = _time(one["seconds"]) + ("" if one["seconds_from"] == "measured" else " ~")
        rows.append(
            (backbone, task, objective, seeds, _count(one["steps"]), _count(one["tokens"]), _size(one["memory_bytes"]),
             time, f"{done}/{len(group)}")
        )  # fmt: skip
    _print_columns(rows)
    print()
    print_data(facts["data"])
    for key, labels in facts["merged"].items():
        print(f"same trial: {', '.join(dict.fromkeys(labels))} -> {key}")
    known = [t["seconds"] for t in todo]
    if all(s is not None for s in known):
        print(
            f"to do: {len(todo)} trials, {_time(sum(known))} of training one after another; ~ marks a formula's guess"
        )
    if hours := facts["gpu_hours"]:
        text = f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"
        print(f"GPU-hours: {text} at most, by a formula (40 % of 500 TFLOP/s; full-length answers by transformers)")
    for backbone, line in facts["answers"].items():
        print(f"{backbone}: {line}")
    for line in facts["gpu_shares"]:
        print(f"GPU share: {line}")
    for group in facts["together"]:
        print(_together(group))
    for note in facts["notes"]:
        print(f"note: {note}")


def _together(group: dict[str, Any]) -> str:
    """A line on trials that join, or on what keeps them from it."""
    who = f"{group['trials']} trials of {group['backbone']} on {group['task']}"
    if group["most"] == 1:
        return f"alone: {who}: {group['why']}"
    sizes = _size(group["memory_bytes"]), _size(group["alone_bytes"])
    return f"together: {who}, up to {group['most']} on one copy of the weights: {sizes[0]} a worker, alone {sizes[1]}"


def status_facts(store: Store, sweep: str) -> dict[str, Any]:
    trials = []
    for key, trial in store.trials(sweep).items():
        folder = store.trial(key)
        damage = folder.damage()
        result = folder.result() if damage is None else {"status": DAMAGED, "error": damage}
        rows = folder.rows()
        trials.append(
            {
                "key": key,
                "status": status_of(result),
                "step": rows[-1]["step"] if rows else 0,
                "steps": trial.train.steps if trial.objective else 0,
                "error": (result or {}).get("error"),
                "failure": {k: v for k, v in failure_of(result).items() if k != "traceback"} or None,
            }
        )
    counts = Counter(t["status"] for t in trials)
    return {
        "sweep": sweep,
        "done": sum(counts[status] for status in OVER) == len(trials),
        "counts": dict(counts),
        "mlflow": trouble(store, sweep),
        "trials": trials,
    }


def print_status(facts: dict[str, Any]) -> None:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(facts["counts"].items()))
    print(f"{facts['sweep']}: {counts} of {len(facts['trials'])} trials")
    if facts["mlflow"] is not None:
        print(words(facts["mlflow"], time.time()))
    paused = Counter(trial["error"] for trial in facts["trials"] if trial["status"] == "paused")
    for reason, number in paused.items():
        print(f"\npaused: {number} trials\n  {reason}\n  Mend the cause and run the sweep again: they start then.")
    for trial in facts["trials"]:
        if trial["status"] in ("failed", "diverged", DAMAGED):
            print(f"\n{trial['status']}: {trial['key']} at step {trial['step']:g}\n  {trial['error']}")
        elif trial["status"] == "unfinished" and trial["step"]:
            print(f"under way: {trial['key']} at step {trial['step']:g} of {trial['steps'] or '?'}")
    if facts["counts"].get("failed"):
        print(f"\nTracebacks: sweeper logs {facts['sweep']} TRIAL")


def trial_log(store: Store, sweep: str, trial: str, follow: bool, as_json: bool = False) -> Iterator[str]:
    """A line a recorded row, then the failures; with `follow` until the trial is over. Raises StoreError.

    as_json: {"step", "time", ...} a row, {"time", "error"} a failure, and what is in result.json
    """
    folder, offset = store.trial(store.find_trial(sweep, trial)), 0
    while True:
        over = folder.result() is not None
        rows, offset = folder.rows_from(offset)
        for row in rows:
            if as_json:
                yield json.dumps(row)
                continue
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time"]))
            yield f"{when}  " + "  ".join(f"{k} {v:.6g}" for k, v in row.items() if k != "time")
        if over or not follow:
            break
        time.sleep(0.5)
    if as_json:
        yield from map(json.dumps, [*folder.failures(), *filter(None, [folder.result()])])
        return
    for failure in folder.failures():
        yield from _failure_lines(failure)
    if result := folder.result():
        yield f"{result['status']}" + (f": {result['error']}" if result.get("error") else "")


def _failure_lines(failure: dict[str, Any]) -> Iterator[str]:
    """An attempt that failed, with its traceback; records of earlier versions have a text alone."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure["time"]))
    kind = failure.get("kind", "error")
    of_rank = "" if failure.get("rank") is None else f", rank {failure['rank']}"
    yield f"{when}  failed ({kind}{of_rank}, after step {failure.get('step', 0)}): {failure['error'].strip()}"
    if failure.get("traceback"):
        yield failure["traceback"].rstrip()


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _count(value: float | None) -> str:
    if value is None:
        return "?"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:g}"


def _size(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
