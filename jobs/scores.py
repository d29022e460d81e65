"""Whether an answer is right. One scorer a kind; "no answer" is an outcome of its own, never a guess.

No torch: `plan` reads ScoreSpec. docs/scores.md says what each kind takes for an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.answer_text import without_thinking
from jobs.choices import chosen, options_of
from jobs.evalplus_checks import checked
from jobs.numbers import number_of, written
from jobs.strict import Strict

MOST_CHARACTERS = 50_000  # of an answer that are looked at, from its end: the final answer stands there

# kind -> the settings that it has
_SETTINGS = {
    "exact": {"marker", "ignore_case"},
    "number": {"marker"},
    "math": set(),
    "choice": {"options", "cues", "denials"},
    "generator": {"partial"},
    "similarity": set(),
    "code": {"timeout_s", "memory_mb"},
    "evalplus": {"timeout_s", "memory_mb"},
}
# kind -> how often what it reads in an answer has changed, where it has: old results are not taken for new ones
_READINGS = {"choice": 2, "code": 2, "evalplus": 2}
_SKIPS_REASONING = {"number", "choice", "code", "evalplus"}


class ScoreSpec(Strict):
    """How an answer to a task's prompt is scored, in [0, 1]."""

    kind: Literal["exact", "number", "math", "choice", "generator", "similarity", "code", "evalplus"] = "exact"
    marker: str | None = Field(None, description="exact, number: what follows its last occurrence is the answer")
    ignore_case: bool = Field(False, description="exact: a = A")
    options: str = Field("A-J", description="choice: a range of letters, or words: yes|no|maybe")
    cues: tuple[str, ...] = Field(
        (), description="choice: what states an answer in the task's language, beside English: Jibu ni, or {} ni jibu"
    )
    denials: tuple[str, ...] = Field(
        (), description="choice: words that take a statement back, right before it or right after its option"
    )
    partial: bool = Field(False, description="generator: count what its scorer gives for half-right answers, too")
    timeout_s: float = Field(10.0, gt=0, description="code, evalplus: CPU seconds for a problem's tests")
    memory_mb: int = Field(1024, gt=0, description="code, evalplus: address space of the process that runs it")

    @field_validator("options")
    @classmethod
    def _at_least_two(cls, value: str) -> str:
        if len(options_of(value)) < 2:
            raise ValueError(f"a range of letters such as A-D, or words such as yes|no|maybe; got '{value}'")
        return value

    @field_validator("cues", "denials")
    @classmethod
    def _of_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for cue in value:
            if not cue.replace("{}", "").strip() or cue.count("{}") > 1:
                raise ValueError(f"words of the task's language, with at most one {{}} for the option; got '{cue}'")
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> ScoreSpec:
        for name in type(self).model_fields.keys() - {"kind"} - _SETTINGS[self.kind]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{self.kind} has no {name} (it has: {', '.join(sorted(_SETTINGS[self.kind])) or 'none'})"
                )
        return self

    def identity(self) -> dict[str, int]:
        """What belongs to a task's key beside the settings: the version of how answers of this kind are read."""
        return {"scoring": _READINGS[self.kind]} if self.kind in _READINGS else {}


@dataclass(frozen=True)
class Score:
    """value in [0, 1]; answer: what was taken for the answer, None where there is none (its value is 0)."""

    value: float
    answer: str | None


def score(spec: ScoreSpec, text: str, wanted: str, entry: Mapping[str, Any] | None = None) -> Score:
    """Score the model's `text`.

    wanted: the reference answer; entry: the generator's item or the code problem's fields, for kinds that read one
    """
    text = text[-MOST_CHARACTERS:]
    if spec.kind in _SKIPS_REASONING:
        text = without_thinking(text)
    if spec.kind in ("generator", "code", "evalplus"):
        assert entry is not None
        return _generator(spec, text, entry) if spec.kind == "generator" else _code(spec, text, entry)
    match spec.kind:
        case "exact":
            return _exact(spec, text, wanted)
        case "number":
            return _number(spec, text, wanted)
        case "math":
            return _math(text, wanted)
        case "choice":
            return _choice(spec, text, wanted)
    return _similarity(text, wanted)


def final_answer(text: str, marker: str | None) -> str:
    """What is compared: the text, or what follows the last marker; white space folded, commas in numbers dropped."""
    if marker is not None:
        _, found, text = text.rpartition(marker)
        if not found:
            return ""
    answer = " ".join(text.split())
    bare = answer.replace(",", "")
    return bare if bare.lstrip("-+$").replace(".", "", 1).isdigit() else answer


def _exact(spec: ScoreSpec, text: str, wanted: str) -> Score:
    got, right = final_answer(text, spec.marker), final_answer(wanted, spec.marker)
    if spec.marker is not None and not right:  # a reference may be the bare answer
        right = final_answer(wanted, None)
    same = got.casefold() == right.casefold() if spec.ignore_case else got == right
    return Score(float(same and bool(got)), got or None)


def _number(spec: ScoreSpec, text: str, wanted: str) -> Score:
    """Raises ValueError where the reference itself holds no number: nothing could be right."""
    right = _wanted_number(spec, wanted)
    if right is None:
        raise ValueError(no_number(wanted))
    got = number_of(text, spec.marker)
    return Score(float(got == right), None if got is None else written(got))


def _wanted_number(spec: ScoreSpec, wanted: str) -> Fraction | None:
    """The reference's number; a reference may be the bare answer, without the marker."""
    return number_of(wanted, spec.marker if spec.marker and spec.marker in wanted else None)


def no_number(wanted: str) -> str:
    return (
        f"its reference answer '{wanted[:60]}' has no number in it; "
        "name the field that has one with reference, or score it as exact or math"
    )


def _math(text: str, wanted: str) -> Score:
    """math-verify, in a process of its own: its time limits need a main thread, and a hang must not stop training."""
    from jobs.judge import math_verdict

    if wanted.count("\\boxed") < 2:  # the last box counts: what was boxed before was taken back
        text = text[max(0, text.rfind("\\boxed")) :]
    return Score(*math_verdict(text, wanted))


def _choice(spec: ScoreSpec, text: str, wanted: str) -> Score:
    """Raises ValueError where the reference itself names no option: nothing could be right."""
    right = chosen(spec.options, wanted, spec.cues, spec.denials)
    if right is None:
        raise ValueError(no_option(spec, wanted))
    got = chosen(spec.options, text, spec.cues, spec.denials)
    return Score(float(got == right), got)


def no_option(spec: ScoreSpec, wanted: str) -> str:
    return f"its reference answer '{wanted[:60]}' is none of {spec.options}; give score the options, e.g. options: A-E"


def unusable_reference(spec: ScoreSpec, wanted: str) -> str | None:
    """Why no answer could ever be right by this reference; None where one could."""
    if spec.kind == "choice" and chosen(spec.options, wanted, spec.cues, spec.denials) is None:
        return no_option(spec, wanted)
    if spec.kind == "number" and _wanted_number(spec, wanted) is None:
        return no_number(wanted)
    return None


def _generator(spec: ScoreSpec, text: str, entry: Mapping[str, Any]) -> Score:
    """reasoning-gym's own scorer, in a process of its own: some evaluate the answer. Right is its full score."""
    from jobs.judge import generator_verdict

    answer = text.strip()
    if not answer:
        return Score(0.0, None)
    value, _ = generator_verdict(entry["generator"], answer, entry)
    return Score(min(1.0, max(0.0, value)) if spec.partial else float(value >= 1.0), answer)


def _similarity(text: str, wanted: str) -> Score:
    """Jaro-Winkler of the lower-cased, stripped texts (prefix weight 0.1): the paper's second figfont metric."""
    from rapidfuzz.distance import JaroWinkler

    answer = text.strip()
    if not answer:
        return Score(0.0, None)
    return Score(JaroWinkler.similarity(answer.lower(), wanted.strip().lower(), prefix_weight=0.1), answer)


def _code(spec: ScoreSpec, text: str, entry: Mapping[str, Any]) -> Score:
    from jobs.programs import program_of
    from jobs.sandbox import passes, tests_of

    program = program_of(text, entry)
    if program is None:
        return Score(0.0, None)
    runs, tests = checked(program, entry, spec.memory_mb) if spec.kind == "evalplus" else (program, tests_of(entry))
    return Score(float(passes(runs, tests, spec.timeout_s, spec.memory_mb)), program)
