"""Whether an answer is right. One scorer a kind; "no answer" is an outcome of its own, never a guess.

No torch: `plan` reads ScoreSpec. docs/scores.md says what each kind takes for an answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.strict import Strict

MOST_CHARACTERS = 50_000  # of an answer that are looked at, from its end: the final answer stands there

# kind -> the settings that it has
_SETTINGS = {
    "exact": {"marker", "ignore_case"},
    "math": set(),
    "choice": {"options"},
    "generator": {"partial"},
    "similarity": set(),
    "code": {"timeout_s", "memory_mb"},
}


class ScoreSpec(Strict):
    """How an answer to a task's prompt is scored, in [0, 1]."""

    kind: Literal["exact", "math", "choice", "generator", "similarity", "code"] = "exact"
    marker: str | None = Field(None, description="exact: what follows its last occurrence is the answer")
    ignore_case: bool = Field(False, description="exact: a = A")
    options: str = Field("A-J", description="choice: a range of letters, or words: yes|no|maybe")
    partial: bool = Field(False, description="generator: count what its scorer gives for half-right answers, too")
    timeout_s: float = Field(10.0, gt=0, description="code: of a problem's tests")
    memory_mb: int = Field(1024, gt=0, description="code: address space of the process that runs it")

    @field_validator("options")
    @classmethod
    def _at_least_two(cls, value: str) -> str:
        if len(options_of(value)) < 2:
            raise ValueError(f"a range of letters such as A-D, or words such as yes|no|maybe; got '{value}'")
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> ScoreSpec:
        for name in type(self).model_fields.keys() - {"kind"} - _SETTINGS[self.kind]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{self.kind} has no {name} (it has: {', '.join(sorted(_SETTINGS[self.kind])) or 'none'})"
                )
        return self


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
    match spec.kind:
        case "exact":
            return _exact(spec, text, wanted)
        case "math":
            return _math(text, wanted)
        case "choice":
            return _choice(spec, text, wanted)
        case "generator":
            return _generator(spec, text, entry)
        case "similarity":
            return _similarity(text, wanted)
        case "code":
            return _code(spec, text, entry)


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


def _math(text: str, wanted: str) -> Score:
    """math-verify, in a process of its own: its time limits need a main thread, and a hang must not stop training."""
    from jobs.judge import verdict

    if wanted.count("\\boxed") < 2:  # the last box counts: what was boxed before was taken back
        text = text[max(0, text.rfind("\\boxed")) :]
    right, answer = verdict(text, wanted)
    return Score(float(right), answer)


@lru_cache(maxsize=64)
def options_of(options: str) -> tuple[str, ...]:
    """'A-D' -> A, B, C, D; 'yes|no' -> yes, no."""
    if re.fullmatch(r"[A-Z]-[A-Z]", options):
        return tuple(string.ascii_uppercase[ord(options[0]) - 65 : ord(options[2]) - 64])
    return tuple(word.strip() for word in options.split("|") if word.strip())


@lru_cache(maxsize=64)
def _choice_patterns(options: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """An explicit statement of an option, and a line that is nothing but one."""
    words = options_of(options)
    letters = all(len(word) == 1 for word in words)
    # letters only as capitals: 'a' is an article; after 'answer is', before a full stop, a bracket or the end
    one = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    one = f"(?P<option>{one})" if letters else f"(?P<option>(?i:{one}))"
    dressed = rf"[\s*_`\"'($\[{{]*(?:\\(?:text|mathbf|mathrm|textbf)\s*\{{\s*)?[(\[]?{one}(?![A-Za-z0-9'’])"
    boxed = rf"\\boxed\s*\{{{dressed}"
    stated = rf"(?i:\b(?:answer|option|choice)\b\s*(?:is|are|would be|should be|must be)?)\s*[:=\-]*\s*{dressed}"
    explicit = re.compile(_either(boxed, stated))
    alone = re.compile(rf"^[\s*_`\"'($\[]*{one}(?:[)\].:,*_`\"'$]|[ \t]*$)(?P<rest>.*)$", re.MULTILINE)
    return explicit, alone


def _either(boxed: str, stated: str) -> str:
    """Both patterns in one, so that the last statement in the text wins whichever way it is made."""
    return f"(?:{boxed})|(?:{stated.replace('(?P<option>', '(?P<option2>')})"


def _choice(spec: ScoreSpec, text: str, wanted: str) -> Score:
    got, right = _chosen(spec, text), _chosen(spec, wanted)
    return Score(float(got is not None and got == right), got)


def _chosen(spec: ScoreSpec, text: str) -> str | None:
    """The option that is stated last; else the one that a line consists of or that the text begins with."""
    explicit, alone = _choice_patterns(spec.options)
    known = {word.casefold(): word for word in options_of(spec.options)}
    stated = [m.group("option") or m.group("option2") for m in explicit.finditer(text)]
    if not stated:
        lines = [(m.group("option"), m.group("rest").strip(" )].:,*_`\"'$"), m.start()) for m in alone.finditer(text)]
        first = len(text) - len(text.lstrip())
        bare = [option for option, rest, _ in lines if not rest]
        opening = [option for option, _, at in lines if at <= first]
        stated = bare or opening
    return known[stated[-1].casefold()] if stated else None


def _generator(spec: ScoreSpec, text: str, entry: Mapping[str, Any] | None) -> Score:
    """reasoning-gym's own scorer; right is what it gives its full score."""
    import reasoning_gym

    assert entry is not None
    answer = text.strip()
    if not answer:
        return Score(0.0, None)
    value = float(reasoning_gym.get_score_answer_fn(entry["generator"])(answer, dict(entry)))
    return Score(min(1.0, max(0.0, value)) if spec.partial else float(value >= 1.0), answer)


def _similarity(text: str, wanted: str) -> Score:
    """Jaro-Winkler of the lower-cased, stripped texts (prefix weight 0.1): the paper's second figfont metric."""
    from rapidfuzz.distance import JaroWinkler

    answer = text.strip()
    return Score(JaroWinkler.similarity(answer.lower(), wanted.strip().lower(), prefix_weight=0.1), answer or None)


def _code(spec: ScoreSpec, text: str, entry: Mapping[str, Any] | None) -> Score:
    from jobs.sandbox import passes, program_of

    assert entry is not None
    program = program_of(text, entry)
    if program is None:
        return Score(0.0, None)
    return Score(float(passes(program, entry, spec.timeout_s, spec.memory_mb)), program)
