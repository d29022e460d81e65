"""TrialSpec: one cell of a sweep, named by its content.

Same key, same result: the key hashes every field that changes what is learnt or measured, and none
that says where or how fast it runs. So a sweep that is run again finds its finished trials, and another
sweep that wants the same cell shares it.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.objectives import OBJECTIVES, canonical
from jobs.plugins import known_objectives, objective_named, version_of
from jobs.presets import with_preset
from jobs.strict import Strict, exactly_one, nearest
from jobs.task_spec import Positive, Share, TaskSpec

LATER = {"reduction", "overlong"}  # fields of train that came after the first keys: in them only where they are used
KEY_VERSION = 1  # raised when the meaning of a field changes, so that old results are not taken for new ones
# raised when prompts are laid out, or answers end or are read, otherwise. The built-in backbones have no template, one
# end and a character a token, so their keys are as they were
ANSWERS = 2

Attention = Literal["eager", "sdpa", "flash_attention_2"]


class LoraSpec(Strict):
    """Train low-rank adapters beside frozen weights (peft) instead of the weights; the head stays frozen."""

    rank: Positive = 16
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: Share = 0.0
    targets: tuple[str, ...] = Field((), description="names of layers, e.g. q_proj; without them, every linear one")


class BackboneSpec(Strict):
    """Where the starting weights come from: exactly one of builtin, path, hub, gguf; and what of it is trained."""

    name: str = Field("", description="how tables call it; by default made from the source")
    preset: str | None = Field(None, description="a backbone of the paper: its fields are the defaults of this one")
    builtin: Literal["char-llama"] | None = None
    pretrain_steps: int | None = Field(None, ge=0, description="builtin: how far along its pre-training run")
    path: str | None = Field(None, description="a Hugging Face model directory (safetensors)")
    hub: str | None = Field(None, description="a hub id")
    revision: str | None = Field(None, description="hub: commit, tag or branch")
    gguf: str | None = Field(None, description="a GGUF file")
    package: str | None = Field(None, description="gguf: the installed package that ships the file")
    chat_template: str | None = Field(None, description="Jinja, instead of the tokenizer's own")
    eos: tuple[str, ...] = Field(
        (), description="tokens that end an answer, instead of those that its files name; the first one is trained"
    )
    lora: LoraSpec | None = Field(None, description="train adapters; without it, all weights")
    lr: float | None = Field(None, gt=0, description="its own learning rate, instead of train.lr")
    attention: Attention | None = Field(None, description="its own implementation, instead of execution.attention")
    shape: dict[str, int | bool] = Field(
        {}, description="fields of its config.json, for plan, where the model is not at hand"
    )
    fingerprint: str | None = Field(None, description="filled in by plan: hash of the files or of the recipe")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        return with_preset("backbones", data)

    @field_validator("eos", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("eos")
    @classmethod
    def _no_empty_end(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a token such as '<|im_end|>', got an empty text")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> BackboneSpec:
        exactly_one("a backbone", {"builtin": self.builtin, "path": self.path, "hub": self.hub, "gguf": self.gguf})
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
        if not self.name.endswith(self._suffix):
            object.__setattr__(self, "name", self.name + self._suffix)
        return self

    @property
    def _suffix(self) -> str:
        return ("" if self.attention is None else f"-{self.attention}") + self._adapters

    @property
    def _adapters(self) -> str:
        return "" if self.lora is None else f"-lora{self.lora.rank}"

    def bare(self) -> BackboneSpec:
        """The weights alone: what is measured before training is the same for every way to train them.

        With their attention, where they name one: it computes what is measured.
        """
        if self.lora is None and self.lr is None:
            return self
        return self.model_copy(update={"name": self.name.removesuffix(self._adapters), "lora": None, "lr": None})

    def identity(self) -> dict[str, Any]:
        """What decides the weights and which of them move; a path does not, its files' fingerprint does."""
        if self.builtin is not None:
            same: dict[str, Any] = {
                "builtin": self.builtin,
                "recipe": self.fingerprint,
                "pretrain_steps": self.pretrain_steps,
            }
        else:
            same = {"files": self.fingerprint or self.path or self.gguf, "hub": self.hub, "revision": self.revision}
        if self.chat_template is not None:
            same["chat_template"] = self.chat_template
        if self.eos:
            same["eos"] = list(self.eos)
        if self.builtin is None or self.chat_template is not None:
            same["answers"] = ANSWERS
        if self.attention is not None:
            same["attention"] = self.attention
        return same | ({"lora": self.lora.model_dump(mode="json")} if self.lora else {})


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
        exactly_one("a gate", {"at": self.at, "quantile": self.quantile})
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
        return self._canonical

    @cached_property
    def _canonical(self) -> ObjectiveSpec:
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
    max_length: Positive = Field(1024, description="tokens of prompt + response")
    overlong: Literal["cut", "drop", "refuse"] = Field(
        "cut", description="what becomes of longer ones; both are counted"
    )
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="gradient norm")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    reduction: Literal["tokens", "authors"] = Field(
        "tokens",
        description="tokens: the mean over a step's target tokens (Eq. 4); "
        "authors: every micro-batch's own mean over the tokens it keeps, summed over micro-batches (their code)",
    )
    log_every: Positive = 10
    checkpoint_every: Positive = 100
    keep_model: bool = Field(False, description="write the trained weights (safetensors) into the trial's folder")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        exactly_one("train", {"steps": self.steps, "epochs": self.epochs})
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
        same = self.model_dump(
            exclude={"micro_batch_size", "zero_stage", "log_every", "checkpoint_every", "keep_model"} | LATER
        )
        return same | self.model_dump(include=LATER, exclude_defaults=True)


class EvalSpec(Strict):
    """The yardsticks: measured the same way for every objective."""

    every: Positive | None = Field(None, description="steps between evaluations; without it, once at the end")
    every_problems: Positive | None = Field(
        None, description="held-out problems, of each benchmark, at these; without it all, as at the end"
    )
    samples: Positive = Field(4, description="answers drawn per prompt at T = 1 (k of avg@k)")
    max_new_tokens: Positive = 64
    batch_size: Positive = 64
    seed: int = 0
    probe_examples: Positive = Field(256, description="training examples behind a backbone's mean p; the first ones")
    base_temperatures: tuple[float, ...] = Field(
        (), description="the untrained backbone is sampled at these, too: what sharpening alone would gain"
    )

    stop: tuple[str, ...] = Field(
        (), description="texts that end an answer beside its own end, for base models: what follows is not scored"
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what generates answers; vllm draws others, so it belongs to the trial's identity"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError('a text such as "\\nQuestion:", got an empty one, which would end every answer at once')
        return value

    @field_validator("base_temperatures")
    @classmethod
    def _above_zero(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(t <= 0 for t in value):
            raise ValueError(f"temperatures above 0 (greedy is always measured), got {', '.join(map(str, value))}")
        return value

    def identity(self) -> dict[str, Any]:
        late = {"base_temperatures", "engine", "every_problems", "stop"}  # came after the first keys
        same = self.model_dump(exclude=late)  # batch_size too: each batch of prompts has its own seed
        return same | self.model_dump(mode="json", include=late, exclude_defaults=True)


class Execution(Strict):
    """What one trial occupies. Not part of the key."""

    workers: Positive = 1
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float | Literal["auto"] = Field(
        0.0, description="auto: a share of one, by what the first trial of a kind was measured to take"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass")
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none", description="keep them in host memory: the optimiser's state (ZeRO 1 to 3), parameters too (ZeRO 3)"
    )
    attention: Attention | None = Field(None, description="implementation; without it, what transformers chooses")
    cache: Literal["dynamic", "static"] = Field(
        "dynamic", description="of keys and values while answers are generated: growing, or allocated whole"
    )
    evaluate_at_once: Positive | None = Field(
        None, description="prompts, or held-out examples, of an evaluation batch in memory at once; the draws stay"
    )
    vllm_memory: float = Field(
        0.3, gt=0, lt=1, description="share of the GPU that evaluation.engine vllm takes beside training"
    )
    packing: bool = Field(False, description="several sequences in a row, none of which sees another: less padding")
    deterministic: bool = Field(
        False, description="training steps by torch's deterministic kernels: on a GPU, else the bits differ each time"
    )
    memory_gb: float | None = Field(
        None, gt=0, description="of a worker's GPU or share of it: plan refuses what is more"
    )

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _can_be_given(cls, value: Any) -> Any:
        """Ray gives a part of one card, or whole ones."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value == "auto" or (number and (0 <= value <= 1 or (value > 1 and value == int(value)))):
            return value
        raise ValueError(f"a fraction of a GPU, a whole number of them, or auto; got {value!r}")

    @property
    def is_auto(self) -> bool:
        """Whether shares of GPUs are measured."""
        return self.gpus_per_worker == "auto"

    @property
    def gpus(self) -> float:
        """GPUs of a worker; a whole one while nobody knows which share will do."""
        return 1.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker


class TrialSpec(Strict):
    """Everything that a worker needs to know. `objective: null` measures the backbone as it is."""

    backbone: BackboneSpec
    task: TaskSpec
    objective: ObjectiveSpec | None
    seed: int
    train: TrainSpec
    evaluation: EvalSpec
    execution: Execution = Execution()

    @property
    def attention(self) -> Attention | None:
        """The implementation in force: where the backbone names one it is an axis of the sweep, and part of the key."""
        return self.backbone.attention or self.execution.attention

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, objective in its canonical form."""
        who = {"version": KEY_VERSION, "backbone": self.backbone.identity(), "task": self.task.identity()}
        if self.objective is None:  # nothing is trained: of the training settings only the cut matters
            evaluation = self.evaluation.identity() | {"every": None}
            evaluation.pop("every_problems", None)
            cuts = {"max_length": self.train.max_length} | self.train.model_dump(
                include={"overlong"}, exclude_defaults=True
            )
            return who | {"evaluation": evaluation} | cuts
        objective = self.objective.canonical()
        evaluation = self.evaluation.identity()
        evaluation.pop("base_temperatures", None)
        if not objective.needs_probe:
            evaluation["probe_examples"] = None
        cut = {}
        if (
            objective.normalisation == "kept" or self.train.reduction == "authors"
        ):  # divides by what stands in each micro-batch of each worker
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

    @cached_property
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
    def evaluated_at_once(self) -> int:
        """Prompts, or held-out examples, that a worker has in memory at once."""
        size = self.evaluation.batch_size
        return min(size, self.execution.evaluate_at_once or size)

    @cached_property
    def objective_label(self) -> str:
        return "backbone" if self.objective is None else self.objective.canonical().label
