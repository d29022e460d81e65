"""TaskSpec: what is learnt, as data. Where examples come from, which fields they have, how an answer is scored."""

from __future__ import annotations

import glob
import re
from datetime import date as Day
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jobs.fields import check_template
from jobs.presets import with_preset
from jobs.scores import ScoreSpec
from jobs.strict import Strict, exactly_one

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
Format = Literal["alpaca", "instruction", "openai", "sharegpt", "prompt-completion"]
CHATS = ("openai", "sharegpt")

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def kind_of_file(name: str) -> str | None:
    """The suffix that says how a data file is read; None where it is no data file."""
    plain = name.lower().removesuffix(".gz")
    kind = next((kind for kind in FILE_KINDS if plain.endswith(kind)), None)
    return None if kind == ".parquet" and plain != name.lower() else kind


class GeneratorSpec(Strict):
    """Examples of the package reasoning-gym: item i is a function of seed + i."""

    name: str = Field(description="a task of reasoning-gym, e.g. figlet_font")
    seed: int = 42
    size: Positive = Field(1000, description="items 0 to size - 1 are for training")
    heldout_size: Positive = Field(256, description="the items after them are for evaluation")
    settings: dict[str, Any] = Field({}, description="the generator's own, e.g. {min_word_len: 2}")


class Expected(Strict):
    """What `plan` takes for granted where the data is not at hand; never part of a key."""

    examples: Positive
    tokens: Positive = Field(description="of a prompt and its response, on average")


class Examples(Strict):
    """Where examples come from (exactly one of builtin, path, hub, generator, parts), and what they consist of."""

    builtin: Literal["addition", "reversal", "cipher"] | None = None
    path: str | None = Field(
        None, description=f"local rows: a file ({', '.join(FILE_KINDS)}, or one of them .gz), a folder, or a pattern"
    )
    hub: str | None = Field(None, description="a data set's hub id")
    subset: str | None = Field(None, description="hub: the data set's configuration")
    split: str = Field("train", description="hub: the split")
    revision: str | None = Field(None, description="hub: commit, tag or branch")
    generator: GeneratorSpec | None = None
    format: Format | None = Field(None, description="a format by name, instead of fields one by one")
    prompt: str = Field("prompt", description="field of the prompt")
    response: str = Field("response", description="field of the response")
    messages: str | None = Field(None, description="field of chat messages, instead of prompt and response")
    reference: str | None = Field(None, description="field of the reference answer; without it, the response")
    template: str | None = Field(None, description="the prompt from a row's fields: '{question}\\nA. {choices[0]}'")
    response_template: str | None = Field(None, description="the response from a row's fields")
    omit_empty: bool = Field(False, description="leave out the template's lines with a field that is null or empty")
    system: str | None = Field(None, description="a system turn before every prompt")
    train_on: Literal["last", "all"] = Field(
        "last", description="messages: which of the assistant's turns are trained; answers are always the last one"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="what the chat template is given besides: date_string, enable_thinking and others"
    )
    date: Day | None = Field(None, description="the day that the chat template takes for today")
    invalid: Literal["refuse", "drop"] = Field(
        "refuse", description="rows that cannot be used: refuse the sweep, or leave them out and count them"
    )
    answer_marker: str | None = Field(None, description="what follows its last occurrence is scored")
    score: ScoreSpec = ScoreSpec()
    data_seed: int = Field(0, description="split, noise and subset; not the trial's seed")
    fingerprint: str | None = Field(None, description="filled in by plan: hash of the files")

    @field_validator("path", "heldout_path", check_fields=False)
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        """A pattern, a folder ('data/' or a name without a suffix), or a file of a known format."""
        if value is None or glob.has_magic(value) or value.endswith("/") or not Path(value).suffix:
            return value
        if kind_of_file(value) is None:
            raise ValueError(f"a file of {', '.join(FILE_KINDS)}, or a folder with / at its end, got {value}")
        return value

    @field_validator("prompt", "response", "template", "response_template", "reference")
    @classmethod
    def _readable_template(cls, value: str | None, info: ValidationInfo) -> str | None:
        always = info.field_name in ("template", "response_template")
        reason = check_template(value) if value is not None and (always or "{" in value) else None
        if reason is not None:
            raise ValueError(reason)
        return value

    @model_validator(mode="after")
    def _settings_of_their_source(self) -> Examples:
        for field in ("subset", "revision"):
            if getattr(self, field) is not None and self.hub is None:
                raise ValueError(f"{field} goes with hub")
        if self.format is not None:
            self._check_format(self.format)
        if self.messages is not None and (self.template or self.response_template or self.system) is not None:
            raise ValueError("messages holds whole chats; templates and system go with prompt and response")
        if self.answer_marker is not None and self.score.kind not in ("exact", "number"):
            raise ValueError(f"answer_marker goes with score exact or number, not {self.score.kind}")
        if self.omit_empty and self.template is None:
            raise ValueError("omit_empty is about lines of a template; give one, or leave it out")
        if self.generator is not None:
            if self.messages is not None:
                raise ValueError("a generator's items are no chats; messages goes with path or hub")
            if self.reference is not None and self.score.kind == "generator":
                raise ValueError("score generator reads the item itself; leave reference out, or score it as exact")
        return self

    def _check_format(self, name: str) -> None:
        """A format says itself which fields it reads. Raises ValueError."""
        if self.path is None and self.hub is None:
            raise ValueError("format is about rows of path or hub")
        named = [one for one in ("template", "response_template") if getattr(self, one) is not None]
        named += [one for one in ("prompt", "response") if getattr(self, one) != one]
        named += ["messages"] if self.messages is not None and name not in CHATS else []
        named += ["system"] if self.system is not None and name in CHATS else []
        if named:
            raise ValueError(f"format {name} has fields of its own; leave {', '.join(named)} out, or format")

    @property
    def holds_chats(self) -> bool:
        """Whether its rows may be chats, which need a chat template."""
        return self.messages is not None or self.system is not None or self.format in CHATS

    def source(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("builtin", "path", "hub", "generator")}

    @property
    def short(self) -> str:
        """A name made from the source."""
        if self.generator is not None:
            return self.generator.name
        if self.builtin is not None:
            return self.builtin
        parts = [
            re.sub(r"[*?\[\]]+", "", part.split(".")[0]).strip("-_") for part in str(self.path or self.hub).split("/")
        ]
        return next((part for part in reversed(parts) if part), "data")


# in every key since the first version; the rest is in it only where it is used, so that old keys stay
_ALWAYS = {"builtin", "prompt", "response", "messages", "answer_marker", "noise", "train_examples"}
_ALWAYS |= {"heldout_examples", "data_seed"}
CHATS_VERSION = 2  # of what is read of a chat: tools, calls and reasoning came with 2
_NEVER = {"name", "preset", "path", "heldout_path", "fingerprint", "expected", "parts", "benchmarks"}


class Benchmark(Examples):
    """Problems that only measure: all of its rows (or the first `examples` of a seeded shuffle)."""

    name: str = ""
    examples: Positive | None = Field(None, description="use N of them, chosen by data_seed")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        data = with_preset("benchmarks", {"preset": data} if isinstance(data, str) else data)
        return {k: v for k, v in data.items() if k != "preset"} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _one_source(self) -> Benchmark:
        exactly_one("a benchmark", self.source())
        if not self.name:
            object.__setattr__(self, "name", self.short)
        return self

    def identity(self) -> dict[str, Any]:
        files = {"files": self.fingerprint or self.path} if self.path else {}
        chats = {"chats": CHATS_VERSION} if self.messages is not None else {}
        same = self.model_dump(exclude=_NEVER, exclude_defaults=True, mode="json")
        return same | files | chats | self.score.identity()


class TaskSpec(Examples):
    """What is learnt: training examples, the held-out ones beside them, and benchmarks of its domain."""

    name: str = ""
    preset: str | None = Field(None, description="a task of the paper: its fields are the defaults of this one")
    parts: tuple[TaskSpec, ...] = Field((), description="a mixture: the examples of all of them, shuffled")
    heldout_path: str | None = Field(None, description="evaluation examples; without it, a share of path")
    heldout_split: str | None = Field(None, description="hub: the split of evaluation examples; without it, a share")
    benchmarks: tuple[Benchmark, ...] = Field(
        (), description="what task accuracy is measured on, their unweighted mean; without them, the held-out examples"
    )
    noise: Share = Field(0.0, description="share of training responses that are swapped for a wrong one")
    train_examples: Positive | None = Field(None, description="use the first N after the shuffle")
    heldout_examples: Positive = 256
    expected: Expected | None = Field(None, description="size, for plan, where the data is not at hand")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        return with_preset("tasks", data)

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        exactly_one("a task", self.source() | {"parts": self.parts or None})
        if self.heldout_split is not None and self.hub is None:
            raise ValueError("heldout_split goes with hub")
        if self.heldout_path is not None and self.path is None:
            raise ValueError("heldout_path goes with path")
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(f"benchmarks: two are called the same ({', '.join(names)}); give each a name")
        if not self.name:
            name = "+".join(part.name for part in self.parts) or self.short
            object.__setattr__(self, "name", f"{name}-noise{self.noise:g}" if self.noise else name)
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the examples and their scores; not the name, nor where the files lie."""
        dump = self.model_dump(mode="json")
        if self.builtin:
            same = {k: dump[k] for k in _ALWAYS - {"prompt", "response", "messages", "answer_marker"}}
        else:
            same = {k: dump[k] for k in _ALWAYS}
            if self.path is not None:
                same["files"] = self.fingerprint or [self.path, self.heldout_path]
        same |= self.model_dump(mode="json", exclude=_ALWAYS | _NEVER, exclude_defaults=True) | self.score.identity()
        if self.messages is not None:
            same["chats"] = CHATS_VERSION
        if self.parts:
            same["parts"] = [part.identity() for part in self.parts]
        if self.benchmarks:
            same["benchmarks"] = [benchmark.identity() for benchmark in self.benchmarks]
        return same
