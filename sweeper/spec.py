"""SweepSpec: the YAML that a user writes, read as data, with errors that say where, what and what instead."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cluster.strict import Loader, readable, text_of
from jobs.spec import BackboneSpec, EvalSpec, Execution, ObjectiveSpec, TrainSpec
from jobs.strict import Strict, nearest
from jobs.task_spec import Positive, TaskSpec
from jobs.yardsticks import PRIMARY, YARDSTICKS

AXES = ("backbone", "task", "objective", "seed")
Model = TypeVar("Model", bound=Strict)


class SpecError(ValueError):
    """The sweep cannot be run as written; one line a problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class SchedulerSpec(Strict):
    """Who may end a trial early. Only yardsticks are comparable across objectives, so only they are accepted."""

    name: Literal["fifo", "asha", "median", "race"] = "fifo"
    metric: str = PRIMARY
    grace_steps: Positive = Field(1, description="no trial is stopped before this step; asha, race: the first rung")
    reduction_factor: int = Field(3, ge=2, description="asha, race: one in this many goes on at each rung")
    confidence: float = Field(
        0.8, ge=0.5, lt=1, description="race: how sure it must be that an objective is behind before it is stopped"
    )

    @field_validator("metric")
    @classmethod
    def _neutral(cls, value: str) -> str:
        if value not in YARDSTICKS:
            raise ValueError(
                f"'{value}' is no yardstick (a trial's own loss cannot be compared);{nearest(value, YARDSTICKS)}"
            )
        return value


class Where(Strict):
    """Which cells an override is for: all that match every name given."""

    backbone: str | None = None
    task: str | None = None
    objective: str | None = None


class Override(Strict):
    where: Where
    train: dict[str, Any] = Field({}, description="fields of train to replace")
    execution: dict[str, Any] = Field({}, description="fields of execution to replace")
    evaluation: dict[str, Any] = Field({}, description="fields of evaluation to replace, for all objectives alike")

    @model_validator(mode="after")
    def _replaces_something(self) -> Override:
        if not self.train and not self.execution and not self.evaluation:
            raise ValueError("replaces nothing; give train, evaluation or execution the fields to replace")
        if self.evaluation and self.where.objective is not None:
            raise ValueError("objectives are measured alike; evaluation goes with where backbone or task")
        if "every" in self.evaluation:
            raise ValueError("when trials are measured is the same for all of a sweep; set evaluation.every itself")
        return self


class Settings(Strict):
    """All of a sweep but its grid."""

    name: str
    train: TrainSpec
    evaluation: EvalSpec = EvalSpec()
    execution: Execution = Execution()
    scheduler: SchedulerSpec = SchedulerSpec()
    overrides: tuple[Override, ...] = ()
    concurrency: Positive | None = Field(
        None, description="trials (or groups of them) at once; without it, as many as fit"
    )
    priority: float = Field(1.0, gt=0, description="weight beside other sweeps on the same cluster")
    max_failures: int = Field(
        0, ge=0, description="how often a trial that raised an error starts again; what dies does so without it"
    )
    lanes: bool = Field(True, description="workers stay up and serve one trial after another")
    together: Literal["auto", "off"] | Annotated[int, Field(ge=2)] = Field(
        "auto", description="how many trials train at once on one frozen backbone, where they differ in no more than "
        "objective and seed"
    )  # fmt: skip

    @field_validator("together", mode="before")
    @classmethod
    def _off_is_no_truth(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads off as false

    @field_validator("name")
    @classmethod
    def _makes_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"letters, digits and . _ - (it names a folder), got '{value}'")
        return value


@dataclass(frozen=True)
class Block:
    """One full product of axes; a sweep may join several."""

    backbone: tuple[BackboneSpec, ...]
    task: tuple[TaskSpec, ...]
    objective: tuple[ObjectiveSpec, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class SweepSpec:
    """A whole sweep. `text` is the file as written, kept for the record."""

    source: str
    text: str
    settings: Settings
    grid: tuple[Block, ...]


class _Loader(Loader):
    """Reads 1e-3 as a number, too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_sweep(path: Path, profile: str | None = None, sets: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep file. Raises SpecError with every problem found.

    profile: one of the file's `profiles`, merged over it; sets: 'train.steps=4', 'grid.seed.1=7', applied last
    """
    text = text_of(path, SpecError)
    if profile is not None or sets:
        text = variant(text, path.name, profile, sets)
    return parse_sweep(text, path.name)


def variant(text: str, source: str, profile: str | None, sets: Sequence[str]) -> str:
    """The text of a sweep file with a profile and single values merged in: what is run is what is recorded.

    A profile's mappings are merged, its lists and values replace; the sweep's name gets the profile's behind it.
    """
    raw = _read_yaml(text, source)
    profiles = raw.pop("profiles", {})
    if profile is not None:
        if not isinstance(profiles, dict) or profile not in profiles:
            known = profiles if isinstance(profiles, dict) else {}
            raise SpecError(source, [f"no profile '{profile}';{nearest(profile, known)}"])
        raw = _merged(raw, {"name": f"{raw.get('name')}-{profile}"} | profiles[profile])
    for written in sets:
        path, equals, value = written.partition("=")
        if not equals or not path:
            raise SpecError(source, [f"--set {written}: write it as train.steps=4"])
        change: Any = _read_yaml(value, f"--set {path}", whole=False)
        try:
            raw = _put(raw, path.split("."), change)
        except ValueError as error:
            raise SpecError(source, [f"--set {written}: {error}"]) from None
    said = [f"profile {profile}"] * (profile is not None) + [f"--set {one}" for one in sets]
    return f"# {source} with {', '.join(said)}\n" + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _put(base: Any, path: Sequence[str], value: Any, at: str = "") -> Any:
    """`base` with `value` at `path`: names of keys, and numbers from 0 for items of a list; one past its end adds one.

    Raises ValueError where the path leads nowhere.
    """
    if not path:
        return _merged(base, value) if isinstance(base, Mapping) and isinstance(value, Mapping) else value
    step, rest = path[0], path[1:]
    here = f"{at}.{step}" if at else step
    if isinstance(base, list):
        if not step.isdigit() or int(step) > len(base):
            has = f"{at}.0 to {at}.{len(base) - 1}" if base else "no items"
            raise ValueError(f"{at} is a list with {has}, not {at}.{step}; {at}.{len(base)} would add one")
        item = base[int(step)] if int(step) < len(base) else None
        return [*base[: int(step)], _put(item, rest, value, here), *base[int(step) + 1 :]]
    if base is None or isinstance(base, Mapping):
        known = base or {}
        return _merged(known, {step: _put(known.get(step), rest, value, here)}, deep=False)
    raise ValueError(f"{at} is {base!r}, which has no '{step}'; write --set {at}=... to replace it")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], deep: bool = True) -> dict[str, Any]:
    """Mappings are merged (deep: those in them, too), all else is replaced; steps and epochs replace each other."""
    if {"steps", "epochs"} & over.keys():
        base = {key: value for key, value in base.items() if key not in ("steps", "epochs")}
    both = {
        key: _merged(base[key], over[key])
        for key in base.keys() & over.keys()
        if deep and isinstance(base[key], Mapping) and isinstance(over[key], Mapping)
    }
    return {**base, **over, **both}


def _read_yaml(text: str, source: str, whole: bool = True) -> Any:
    """whole: a sweep, so a mapping."""
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise SpecError(source, [f"{where}not YAML: {getattr(error, 'problem', error)}"]) from None
    if whole and not isinstance(raw, dict):
        raise SpecError(source, ["a sweep is a mapping with name, grid and train"])
    return raw


def parse_sweep(text: str, source: str) -> SweepSpec:
    raw = _read_yaml(text, source)
    profiles = raw.pop("profiles", None)
    problems: list[str] = []
    if profiles is not None and not (
        isinstance(profiles, dict) and all(isinstance(p, dict) for p in profiles.values())
    ):
        problems.append("profiles: a mapping from names to what is merged over the file")
    known = {*Settings.model_fields, "grid"}
    problems += [f"unknown key '{key}';{nearest(str(key), known)}" for key in raw if key not in known]
    settings = _valid(Settings, {k: v for k, v in raw.items() if k in Settings.model_fields}, "", problems)
    blocks = _blocks(raw.get("grid"), problems)
    problems += _cannot_judge(settings) if settings else []
    if problems or settings is None:
        raise SpecError(source, problems)
    return SweepSpec(source, text, settings, blocks)


def _cannot_judge(settings: Settings) -> list[str]:
    """Why a scheduler would never hear of a trial before its end."""
    who, every = settings.scheduler, settings.evaluation.every
    if who.name == "fifo":
        return []
    if every is None:
        return [f"scheduler: {who.name} compares trials while they train; set evaluation.every"]
    if who.name == "race" and who.grace_steps % every:
        return [f"scheduler.grace_steps: a race compares at steps that are evaluated; {who.grace_steps} is no multiple "
                f"of evaluation.every {every}"]  # fmt: skip
    return []


def _blocks(grid: Any, problems: list[str]) -> tuple[Block, ...]:
    blocks = grid if isinstance(grid, list) else [grid]
    out = []
    for i, block in enumerate(blocks):
        where = f"grid[{i}]" if isinstance(grid, list) else "grid"
        if not isinstance(block, Mapping):
            problems.append(f"{where}: a mapping with the axes {', '.join(AXES)}")
            continue
        problems += [f"{where}: unknown axis '{key}';{nearest(str(key), AXES)}" for key in block if key not in AXES]
        axes: dict[str, list[Any]] = {}
        for axis in AXES:
            values = block.get(axis)
            if axis == "seed" and values is None:
                values = [0]
            if not isinstance(values, list) or not values:
                problems.append(f"{where}.{axis}: a list with at least one value")
                values = []
            axes[axis] = list(values)
        seeds = axes["seed"]
        problems += [f"{where}.seed[{j}]: a whole number, got {s!r}" for j, s in enumerate(seeds) if type(s) is not int]
        backbones = _axis(BackboneSpec, axes["backbone"], f"{where}.backbone", problems)
        tasks = _axis(TaskSpec, axes["task"], f"{where}.task", problems)
        objectives = _axis(ObjectiveSpec, axes["objective"], f"{where}.objective", problems)
        out.append(Block(backbones, tasks, objectives, tuple(seeds)))
    return tuple(out)


def _axis(model: type[Model], items: list[Any], where: str, problems: list[str]) -> tuple[Model, ...]:
    """Each item is a mapping (an objective may be a bare name); a field that holds a list stands for all its values."""
    values = []
    for i, written in enumerate(items):
        item = {"name": written} if isinstance(written, str) and model is ObjectiveSpec else written
        if not isinstance(item, Mapping):
            problems.append(f"{where}[{i}]: a mapping such as {{{next(iter(model.model_fields))}: ...}}, got {item!r}")
            continue
        for plain in _expand(item, model):
            value = _valid(model, plain, f"{where}[{i}]", problems)
            if value is not None:
                values.append(value)
    return tuple(values)


def _whole(model: type[BaseModel]) -> set[str]:
    """Fields that hold a list or a free mapping themselves, so that theirs is no list of choices."""
    return {name for name, field in model.model_fields.items() if get_origin(field.annotation) in (tuple, dict)}


def _part(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """The model of a field that is one, or one or nothing."""
    field = model.model_fields.get(name) if model is not None else None
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _expand(item: Mapping[str, Any], model: type[BaseModel] | None) -> Iterator[dict[str, Any]]:
    """{a: [1, 2], gate: {at: [3, 4]}} -> four plain mappings, first key slowest; what is a list by itself stays one."""
    choices: list[list[Any]] = []
    whole = set() if model is None else _whole(model)
    for name, value in item.items():
        part = _part(model, name)
        if name in whole:
            choices.append([value])
        elif isinstance(value, list):
            nested = [list(_expand(v, part)) if isinstance(v, Mapping) else [v] for v in value]
            choices.append(list(itertools.chain.from_iterable(nested)))
        elif isinstance(value, Mapping):
            choices.append(list(_expand(value, part)))
        else:
            choices.append([value])
    for combination in itertools.product(*choices):
        yield dict(zip(item, combination, strict=True))


def _valid(model: type[Model], data: Any, where: str, problems: list[str]) -> Model | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for line in readable(error, where):
            if line not in problems:
                problems.append(line)
        return None
