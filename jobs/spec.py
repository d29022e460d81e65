"""TrialSpec: one cell of a sweep, named by its content.

Same key, same result: the key hashes every field that changes what is learnt or measured, and none
that says where or how fast it runs. So a sweep that is run again finds its finished trials, and another
sweep that wants the same cell shares it.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.objectives import OBJECTIVES, canonical
from jobs.plugins import known_objectives, objective_named, version_of
from jobs.strict import Strict, nearest

KEY_VERSION = 1  # raised when the meaning of a field changes, so that old results are not taken for new ones

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _exactly_one(what: str, given: dict[str, Any]) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        got = " and ".join(names) if names else "none"
        raise ValueError(f"{what} needs exactly one of {', '.join(given)}; got {got}")


class BackboneSpec(Strict):
    """Where the starting weights come from: exactly one of builtin, path, hub, gguf."""

    name: str = Field("", description="how tables call it; by default made from the source")
    builtin: Literal["char-llama"] | None = None
    pretrain_steps: int | None = Field(None, ge=0, description="builtin: how far along its pre-training run")
    path: str | None = Field(None, description="a Hugging Face model directory (safetensors)")
    hub: str | None = Field(None, description="a hub id")
    revision: str | None = Field(None, description="hub: commit, tag or branch")
    gguf: str | None = Field(None, description="a GGUF file")
    package: str | None = Field(None, description="gguf: the installed package that ships the file")
    fingerprint: str | None = Field(None, description="filled in by plan: hash of the files or of the recipe")

    @model_validator(mode="after")
    def _one_source(self) -> BackboneSpec:
        _exactly_one("a backbone", {"builtin": self.builtin, "path": self.path, "hub": self.hub, "gguf": self.gguf})
        if (self.builtin is None) != (self.pretrain_steps is None):
            raise ValueError("pretrain_steps goes with builtin (and builtin needs it)")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        if self.package is not None and self.gguf is None:
            raise ValueError("package goes with gguf")
        if not self.name:
            source = self.path or self.hub or self.gguf or ""
            name = f"{self.builtin}-{self.pretrain_steps}" if self.builtin else source.rstrip("/").split("/")[-1]
            object.__setattr__(self, "name", name.removesuffix(".gguf"))
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the weights; a path does not, its files' fingerprint does."""
        if self.builtin is not None:
            return {"builtin": self.builtin, "recipe": self.fingerprint, "pretrain_steps": self.pretrain_steps}
        return {"files": self.fingerprint or self.path or self.gguf, "hub": self.hub, "revision": self.revision}


class TaskSpec(Strict):
    """What is learnt: a built-in task, or local JSONL / parquet of prompts and responses or chat messages."""

    name: str = ""
    builtin: Literal["addition", "reversal", "cipher"] | None = None
    path: str | None = Field(None, description="training examples: .jsonl or .parquet")
    heldout_path: str | None = Field(None, description="evaluation examples; without it, a share of path")
    prompt: str = Field("prompt", description="field of the prompt")
    response: str = Field("response", description="field of the response")
    messages: str | None = Field(None, description="field of chat messages, instead of prompt and response")
    answer_marker: str | None = Field(None, description="what follows its last occurrence is scored")
    noise: Share = Field(0.0, description="share of training responses that are swapped for a wrong one")
    train_examples: Positive | None = Field(None, description="use the first N after the shuffle")
    heldout_examples: Positive = 256
    data_seed: int = Field(0, description="split, noise and subset; not the trial's seed")
    fingerprint: str | None = Field(None, description="filled in by plan: hash of the files")

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        _exactly_one("a task", {"builtin": self.builtin, "path": self.path})
        if not self.name:
            name = self.builtin or str(self.path).split("/")[-1].split(".")[0]
            object.__setattr__(self, "name", f"{name}-noise{self.noise:g}" if self.noise else name)
        return self

    @field_validator("path", "heldout_path")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith((".jsonl", ".parquet")):
            raise ValueError(f"a .jsonl or .parquet file, got {value}")
        return value

    def identity(self) -> dict[str, Any]:
        """What decides the examples; not the name, nor where the files lie."""
        drop = {"name", "path", "heldout_path", "fingerprint"}
        if self.builtin:
            return self.model_dump(exclude=drop | {"prompt", "response", "messages", "answer_marker"})
        return self.model_dump(exclude=drop) | {"files": self.fingerprint or [self.path, self.heldout_path]}


class Gate(Strict):
    """Train only on tokens on one side of a probability: top keeps p >= it, bottom keeps p <= it (Eq. 4).

    The probability is absolute (`at`), or a quantile of the backbone's token probabilities on the training set.
    """

    side: Literal["top", "bottom"]
    at: float | None = Field(None, description="the probability itself")
    quantile: float | None = Field(None, description="share of the backbone's training tokens below it")

    @field_validator("at")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= 1:
            percentile = f"; for percentile {value:g} write quantile: {value / 100:g}" if 1 < value <= 100 else ""
            raise ValueError(f"a probability between 0 and 1, got {value:g}{percentile}")
        return value

    @field_validator("quantile")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= 1:
            percentile = f"; for percentile {value:g} write {value / 100:g}" if 1 < value <= 100 else ""
            raise ValueError(f"a share between 0 and 1, got {value:g}{percentile}")
        return value

    @model_validator(mode="after")
    def _one_threshold(self) -> Gate:
        _exactly_one("a gate", {"at": self.at, "quantile": self.quantile})
        return self

    @property
    def keeps_all(self) -> bool:
        """Only an absolute gate can be known to: training moves p across the backbone's own extremes."""
        return (self.side, self.at) in {("top", 0.0), ("bottom", 1.0)}

    @property
    def label(self) -> str:
        value = f"{self.at:g}" if self.at is not None else f"Q{self.quantile:g}"
        return f"p{'>=' if self.side == 'top' else '<='}{value}"


class ObjectiveSpec(Strict):
    """A row of the table with its numbers, and a gate or none.

    A param of the objective other than alpha is written beside its name: {name: focal, gamma: 2}.
    """

    name: str
    alpha: float | None = None
    gate: Gate | None = None
    normalisation: Literal["valid", "kept"] = Field(
        "valid",
        description="valid: divide by all target tokens of the step (Eq. 4); "
        "kept: by those that the gate keeps, per micro-batch (the authors' code)",
    )
    params: dict[str, float] = Field(default_factory=dict, description="the objective's own numbers, by name")

    @model_validator(mode="before")
    @classmethod
    def _gather_params(cls, data: Any) -> Any:
        """Collect the numbers that stand beside the name; what is no param is left for the unknown-key check."""
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            return data
        if data["name"] not in known_objectives():
            return data  # told below, at the place of the name
        own = objective_named(data["name"]).params.keys() - {"alpha"}
        found = {key: data[key] for key in data if key in own}
        rest = {key: value for key, value in data.items() if key not in own}
        return rest | ({"params": rest.get("params", {}) | found} if found else {})

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in known_objectives():
            raise ValueError(f"no objective '{value}';{nearest(value, known_objectives())}")
        return value

    @model_validator(mode="after")
    def _params_belong(self) -> ObjectiveSpec:
        known = objective_named(self.name).params
        if self.alpha is not None and "alpha" not in known:
            users = ", ".join(o.name for o in OBJECTIVES.values() if "alpha" in o.params)
            raise ValueError(f"{self.name} has no alpha (those that do: {users})")
        for name in self.params:
            if name not in known or name == "alpha":
                raise ValueError(f"{self.name} has no param '{name}';{nearest(name, known.keys() - {'alpha'})}")
        for name, param in known.items():
            value = self.alpha if name == "alpha" else self.params.get(name, param.default)
            if value is None:
                raise ValueError(f"{self.name} needs {name}, e.g. {name}: 0.5")
            if not param.low <= value <= param.high:
                raise ValueError(f"{name} of {self.name} lies between {param.low:g} and {param.high:g}, got {value:g}")
        return self

    def arguments(self) -> dict[str, float]:
        """Every param of the objective with its value: what its loss function is called with."""
        given = self.params | ({"alpha": self.alpha} if self.alpha is not None else {})
        return {n: float(given.get(n, p.default or 0.0)) for n, p in objective_named(self.name).params.items()}

    def canonical(self) -> ObjectiveSpec:
        """The simplest spec that trains identically."""
        name, arguments = canonical(self.name, self.arguments())
        gate = None if self.gate is None or self.gate.keeps_all else self.gate
        if name == "profit" and gate is None:
            name, gate, arguments = "nll", Gate(side="top", at=arguments["threshold"]), {}
            gate = None if gate.keeps_all else gate
        alpha = arguments.pop("alpha", None)
        return ObjectiveSpec(name=name, alpha=alpha, gate=gate, normalisation=self.normalisation, params=arguments)

    @property
    def needs_probe(self) -> bool:
        """Whether the trial reads what was measured of the backbone on the training set."""
        return "state" in objective_named(self.name).needs or (self.gate is not None and self.gate.quantile is not None)

    def identity(self) -> dict[str, Any]:
        """Of the canonical spec: what was there from the start always, what came later only where it is used."""
        one = self.canonical()
        gate = one.gate.model_dump(exclude_none=True) if one.gate else None
        same: dict[str, Any] = {"name": one.name, "alpha": one.alpha, "gate": gate}
        if one.normalisation != "valid":
            same["normalisation"] = one.normalisation
        if (plugin := version_of(one.name)) is not None:
            same["plugin"] = plugin  # another version may bring another formula
        return same | ({"params": one.params} if one.params else {})

    @property
    def label(self) -> str:
        """Short and unique: 'nll', 'power a=0.5', 'nll p>=0.2', 'focal gamma=3'; defaults are left out."""
        known = objective_named(self.name).params
        parts = [self.name]
        if self.alpha is not None:
            parts.append(f"a={self.alpha:g}")
        parts += [f"{name}={value:g}" for name, value in self.params.items() if value != known[name].default]
        if self.gate is not None:
            parts.append(self.gate.label)
        if self.normalisation != "valid":
            parts.append(self.normalisation)
        return " ".join(parts)


class TrainSpec(Strict):
    """How a trial trains: the same for every objective, or the comparison means nothing."""

    lr: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Share = 0.1
    batch_size: Positive = Field(128, description="sequences in one optimiser step, over all workers")
    micro_batch_size: Positive | None = Field(None, description="sequences a worker takes at once")
    steps: Positive | None = None
    epochs: float | None = Field(None, gt=0)
    max_length: Positive = Field(1024, description="tokens of prompt + response; longer ones are cut, and counted")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="gradient norm")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    log_every: Positive = 10
    checkpoint_every: Positive = 100
    keep_model: bool = Field(False, description="write the trained weights (safetensors) into the trial's folder")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        _exactly_one("train", {"steps": self.steps, "epochs": self.epochs})
        if self.checkpoint_every % self.log_every:
            # a checkpoint between two rows would split the means of the next row after a resume
            example = -(-self.checkpoint_every // self.log_every) * self.log_every
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} is no multiple of log_every {self.log_every}; e.g. {example}"
            )
        return self

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps of a trial; epochs drop the last partial batch, as the paper does."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.floor(self.epochs * num_examples / self.batch_size))

    def identity(self) -> dict[str, Any]:
        """Not how the work is cut up: that changes rounding, never the mathematics."""
        return self.model_dump(
            exclude={"micro_batch_size", "zero_stage", "log_every", "checkpoint_every", "keep_model"}
        )


class EvalSpec(Strict):
    """The yardsticks: measured the same way for every objective."""

    every: Positive | None = Field(None, description="steps between evaluations; without it, once at the end")
    samples: Positive = Field(4, description="answers drawn per prompt at T = 1 (k of avg@k)")
    max_new_tokens: Positive = 64
    batch_size: Positive = 64
    seed: int = 0
    probe_examples: Positive = Field(256, description="training examples behind a backbone's mean p; the first ones")

    def identity(self) -> dict[str, Any]:
        return self.model_dump()  # batch_size too: each batch of prompts draws from its own seed


class Execution(Strict):
    """What one trial occupies. Not part of the key."""

    workers: Positive = 1
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)


class TrialSpec(Strict):
    """Everything that a worker needs to know. `objective: null` measures the backbone as it is."""

    backbone: BackboneSpec
    task: TaskSpec
    objective: ObjectiveSpec | None
    seed: int
    train: TrainSpec
    evaluation: EvalSpec
    execution: Execution = Execution()

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, objective in its canonical form."""
        who = {"version": KEY_VERSION, "backbone": self.backbone.identity(), "task": self.task.identity()}
        if self.objective is None:  # nothing is trained: of the training settings only the cut matters
            evaluation = self.evaluation.identity() | {"every": None}
            return who | {"evaluation": evaluation, "max_length": self.train.max_length}
        objective = self.objective.canonical()
        evaluation = self.evaluation.identity()
        if not objective.needs_probe:
            evaluation["probe_examples"] = None
        cut = {}
        if objective.normalisation == "kept":  # divides by what stands in each micro-batch of each worker
            cut = {"workers": self.execution.workers, "micro_batch_size": self.train.micro_batch_size}
        return (
            who
            | cut
            | {
                "objective": self.objective.identity(),
                "seed": self.seed,
                "train": self.train.identity(),
                "evaluation": evaluation,
            }
        )

    @property
    def key(self) -> str:
        """Readable prefix and hash: the trial's name in storage, in Ray and in MLflow."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        parts = [self.backbone.name, self.task.name, self.objective_label]
        if self.objective is not None:
            parts.append(f"s{self.seed}")
        words = "_".join(parts).replace(">=", "-ge").replace("<=", "-le").replace("=", "")
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in words) + f"_{digest}"

    @property
    def objective_label(self) -> str:
        return "backbone" if self.objective is None else self.objective.canonical().label
