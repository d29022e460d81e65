"""Which trials a sweep is made of. Pure: no torch, ray or mlflow; `sweeper plan` prints what this returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cluster.strict import readable
from jobs.backbone import BackboneError, source_files
from jobs.files import data_fingerprint, fingerprint
from jobs.formats import recognised
from jobs.pretrain import recipe_digest
from jobs.row_files import data_files, first_row
from jobs.spec import BackboneSpec, EvalSpec, Execution, ObjectiveSpec, TrainSpec, TrialSpec
from jobs.strict import Strict, nearest
from jobs.task_error import NotAtHand, TaskError
from jobs.task_spec import Benchmark, TaskSpec
from jobs.weights import NotAtHand as BackboneNotAtHand
from jobs.zero import check_shape
from sweeper.memory_need import too_large
from sweeper.spec import Override, SchedulerSpec, SpecError, SweepSpec, Where

Part = TypeVar("Part", bound=Strict)
Source = TypeVar("Source", TaskSpec, Benchmark)


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in the order in which they start: every backbone's own measure first.

    merged: per trial key, the labels of the grid's cells that train identically and became one trial
    notes:  what a reader should know before running (missing data, provisional keys, recognised formats)
    missing: those of the notes that are about files which are not in this place
    """

    spec: SweepSpec
    trials: tuple[TrialSpec, ...]
    num_cells: int
    merged: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def make_plan(spec: SweepSpec, data_root: Path, require_files: bool = False) -> Plan:
    """Expand the grid into trials, merge equal ones, and name all by content.

    data_root:     where relative paths of the spec start
    require_files: refuse missing data and models (run) instead of noting them (plan)
    Raises SpecError.
    """
    settings = spec.settings
    problems: list[str] = []
    notes: list[str] = []
    missing: list[str] = problems if require_files else []
    resolve = _Resolver(data_root, problems, notes, missing)
    trials: dict[str, TrialSpec] = {}
    cells: dict[str, list[str]] = {}
    used: set[int] = set()
    num_cells = 0
    for block in spec.grid:
        for backbone in map(resolve.backbone, block.backbone):
            for task in map(resolve.task, block.task):
                for objective in (None, *block.objective):
                    over = [
                        (i, override)
                        for i, override in enumerate(settings.overrides)
                        if _matches(override.where, backbone, task, objective)
                    ]
                    used |= {i for i, _ in over}
                    own = {} if backbone.lr is None else {"lr": backbone.lr}
                    train = _replaced(TrainSpec, settings.train.model_dump() | own, "train", over, problems)
                    execution = _replaced(Execution, settings.execution.model_dump(), "execution", over, problems)
                    evaluation = _replaced(EvalSpec, settings.evaluation.model_dump(), "evaluation", over, problems)
                    if train is None or execution is None or evaluation is None:
                        continue
                    for seed in (0,) if objective is None else block.seed:
                        trial = TrialSpec(
                            backbone=backbone if objective is not None else backbone.bare(),
                            task=task,
                            objective=objective,
                            seed=seed,
                            train=train,
                            evaluation=evaluation,
                            execution=execution,
                        )
                        num_cells += objective is not None
                        trials.setdefault(trial.key, trial)
                        labels = cells.setdefault(trial.key, [])
                        if objective is not None:
                            labels.append(objective.label)
    _check_names(trials.values(), problems)
    for i, override in enumerate(settings.overrides):
        if i not in used:
            problems.append(f"overrides[{i}].where: {_no_match(override, trials.values())}")
    for trial in trials.values():
        problems += _cannot_run(trial, settings.scheduler, data_root)
    if problems:
        raise SpecError(spec.source, list(dict.fromkeys(problems)))
    if resolve.moving:
        notes.append(
            f"no revision is named for {', '.join(resolve.moving)}: the newest may change under the same trial"
        )
    order = sorted(trials.values(), key=lambda t: t.objective is not None)  # stable: baselines first
    merged = {key: labels for key, labels in cells.items() if len(labels) > 1}
    missing = list(dict.fromkeys(missing))
    return Plan(spec, tuple(order), num_cells, merged, list(dict.fromkeys([*missing, *notes])), missing)


def resolved(trial: TrialSpec, data_root: Path) -> TrialSpec:
    """One trial with its paths made absolute and its files hashed. Raises SpecError where they are missing."""
    problems: list[str] = []
    resolve = _Resolver(data_root, problems, [], problems)
    found = trial.model_copy(update={"backbone": resolve.backbone(trial.backbone), "task": resolve.task(trial.task)})
    if problems:
        raise SpecError(trial.task.name, problems)
    return found


def _matches(where: Where, backbone: BackboneSpec, task: TaskSpec, objective: ObjectiveSpec | None) -> bool:
    names = (None,) if objective is None else (None, objective.name, objective.label)
    return where.backbone in (None, backbone.name) and where.task in (None, task.name) and where.objective in names


def named_files(part: BackboneSpec | TaskSpec) -> list[str]:
    """Files and directories that a backbone names, or a task with the parts of its mixture and its benchmarks."""
    if isinstance(part, BackboneSpec):
        found = [part.path, None if part.package else part.gguf, _local(part.hub)]
    else:
        found = [part.path, part.heldout_path, _local(part.hub)]
        found += [path for benchmark in part.benchmarks for path in (benchmark.path, _local(benchmark.hub))]
        found += [path for inner in part.parts for path in named_files(inner)]
    return [path for path in found if path]


def _local(hub: str | None) -> str | None:
    """A hub id that is a path: the hub's loaders read folders, too. An id is 'name' or 'owner/name'."""
    return hub if hub is not None and (hub.count("/") > 1 or hub.startswith(("/", ".", "~"))) else None


class _Resolver:
    """Paths made absolute, files named by content; each file is read once a plan."""

    def __init__(self, data_root: Path, problems: list[str], notes: list[str], missing: list[str]) -> None:
        """problems: what refuses the sweep; notes: what a reader should know; missing: files that are not here."""
        self.data_root, self.problems, self.notes, self.missing = data_root, problems, notes, missing
        self.moving: dict[str, None] = {}  # of the hub, by no revision
        self.seen: dict[tuple[Path, ...], str] = {}

    def backbone(self, backbone: BackboneSpec) -> BackboneSpec:
        if backbone.builtin is not None:
            return backbone.model_copy(update={"fingerprint": recipe_digest()})
        moved = backbone.model_copy(
            update={
                "path": self._absolute(backbone.path),
                "gguf": backbone.gguf if backbone.package else self._absolute(backbone.gguf),
            }
        )
        if moved.hub is not None and moved.revision is None:
            self.moving[moved.hub] = None
        return moved.model_copy(update={"fingerprint": self._fingerprint(lambda: source_files(moved), weights=True)})

    def task(self, task: TaskSpec) -> TaskSpec:
        parts = {
            "parts": tuple(self.task(part) for part in task.parts),
            "benchmarks": tuple(self._examples(benchmark) for benchmark in task.benchmarks),
            "heldout_path": self._absolute(task.heldout_path),
        }
        return self._examples(task.model_copy(update=parts))

    def _examples(self, source: Source) -> Source:
        """With its path made absolute, its files hashed, and its format, where its fields say it."""
        moved = source.model_copy(update={"path": self._absolute(source.path)})
        if moved.hub is not None and moved.revision is None:
            self.moving[moved.hub] = None
        if moved.path is None:
            return moved
        try:
            other: str | None = getattr(moved, "heldout_path", None)
            train: list[Path] = data_files(moved.path)
            heldout: list[Path] = data_files(other) if other else []
            roles = (*train, Path(), *heldout)
            if roles not in self.seen:
                self.seen[roles] = data_fingerprint(train, heldout)
        except NotAtHand as error:
            self.missing.append(f"task '{source.name}': {error}")
            return moved
        except TaskError as error:
            self.problems.append(f"task '{source.name}': {error}")
            return moved
        except OSError as error:
            self.problems.append(f"task '{source.name}': {error.filename} cannot be read ({error.strerror})")
            return moved
        return self._recognised(moved.model_copy(update={"fingerprint": self.seen[roles]}))

    def _recognised(self, source: Source) -> Source:
        """With the format of its first row, where the task names neither a format nor any field."""
        named = source.format or source.messages or source.template or source.response_template
        if named is not None or (source.prompt, source.response) != ("prompt", "response"):
            return source
        found = recognised(first_row(str(source.path)))
        if not found:
            return source
        way = ", ".join(f"{name}: {value}" for name, value in found.items())
        self.notes.append(f"task '{source.name}': recognised as {way} by its first row's fields; write that to be sure")
        return source.model_copy(update=found)

    def _absolute(self, path: str | None) -> str | None:
        if not path:
            return None
        whole = str((self.data_root / Path(path).expanduser()).resolve())
        return f"{whole}/" if Path(whole).is_dir() else whole  # a folder's name may have a dot

    def _fingerprint(self, files: Callable[[], list[Path]], weights: bool = False) -> str | None:
        try:
            paths = tuple(files())
        except BackboneError as error:
            (self.missing if isinstance(error, BackboneNotAtHand) else self.problems).append(str(error))
            return None
        if paths and paths not in self.seen:
            self.seen[paths] = fingerprint(paths, sampled=weights)
        return self.seen.get(paths)


def _cannot_run(trial: TrialSpec, scheduler: SchedulerSpec, root: Path) -> list[str]:
    """What of a trial's settings contradicts itself, or cannot fit."""
    if scheduler.name == "race" and trial.objective is not None and trial.train.steps is None:
        return ["scheduler: a race is held at steps; give train.steps rather than epochs"]
    positions, longest = trial.backbone.shape.get("max_position_embeddings"), trial.evaluation.max_new_tokens
    if positions is not None and longest >= positions:  # prompts are counted where they are tokenised
        return [f"evaluation.max_new_tokens {longest} and a prompt are more than the {positions} positions of backbone "
                f"'{trial.backbone.name}'; lower it, or override it there"]  # fmt: skip
    try:
        check_shape(trial)
    except ValueError as error:
        return [str(error)]
    larger = too_large(trial, root)
    return [] if larger is None else [larger]


Matching = list[tuple[int, Override]]


def _replaced(
    model: type[Part], data: dict[str, Any], part: str, over: list[tuple[int, Override]], problems: list[str]
) -> Part | None:
    """The sweep's settings of `part` with the overrides that match a cell; later ones win."""
    last = None
    for i, override in over:
        fields = getattr(override, part)
        if {"steps", "epochs"} & fields.keys():
            data |= {"steps": None, "epochs": None}  # one or the other
        data |= fields
        last = i if fields else last
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems += readable(error, part if last is None else f"overrides[{last}].{part}")
        return None


def _check_names(trials: Iterable[TrialSpec], problems: list[str]) -> None:
    """One name, one thing: tables and overrides go by name."""
    for axis in ("backbone", "task"):
        first: dict[str, Any] = {}
        for trial in trials:
            thing = getattr(trial, axis)
            if first.setdefault(thing.name, thing.identity()) != thing.identity():
                problems.append(f"grid.{axis}: two different ones are called '{thing.name}'; give each a name")
    rates: dict[str, float | None] = {}
    for trial in trials:
        name, lr = trial.backbone.name, trial.backbone.lr
        if trial.objective is not None and rates.setdefault(name, lr) != lr:  # or they would pass for seeds
            problems.append(
                f"grid.backbone: '{name}' with lr {rates[name]} and {lr}; write them apart, each with a name"
            )


def _no_match(override: Override, trials: Iterable[TrialSpec]) -> str:
    known = {
        "backbone": {t.backbone.name for t in trials},
        "task": {t.task.name for t in trials},
        "objective": {t.objective.label for t in trials if t.objective}
        | {t.objective.name for t in trials if t.objective},
    }
    for axis, name in override.where.model_dump(exclude_none=True).items():
        if name not in known[axis]:
            return f"no {axis} '{name}' in the grid;{nearest(name, known[axis])}"
    return "no cell of the grid matches all of it"
