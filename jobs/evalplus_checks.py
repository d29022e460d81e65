"""EvalPlus' own problems, judged by its own checker (the extra `evalplus`), inside our sandbox.

A row is one of the files that EvalPlus releases (HumanEvalPlus.jsonl, MbppPlus.jsonl): inputs and a solution that says
what is expected. The data sets of the hub hold the same as `test`, which score kind `code` runs without the package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")

# Runs in the sandbox, after ANSWER; expected results are the solution's, on the machine and at the time of the check.
_CHECK = """
import os
os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = "{memory}"  # it sets its limits again, and may not raise ours
from evalplus.eval import untrusted_check
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.gen.util import trusted_exec
inf, nan = float("inf"), float("nan")
for inputs in ({base}, {plus}):
    expected, seconds = trusted_exec(
        {solution!r}, inputs, {name!r}, record_time=True,
        output_not_none={dataset!r} == "mbpp" and {name!r} in MBPP_OUTPUT_NOT_NONE_TASKS,
    )
    verdict, _ = untrusted_check(
        {dataset!r}, ANSWER, inputs, {name!r}, expected, {atol!r}, seconds, fast_check=True
    )
    assert verdict == "pass"
"""


def unusable_row(row: Mapping[str, Any]) -> str | None:
    """Why a row cannot be judged here; None where it can."""
    missing = [name for name in FIELDS if name not in row]
    if missing or str(row["task_id"]).partition("/")[0] not in ("HumanEval", "Mbpp"):
        return (
            f"score evalplus reads rows of EvalPlus' released files; {', '.join(missing) or 'a known task_id'} is not "
            "in this one (the hub's data sets have `test` instead: score code)"
        )
    return None


def not_installed() -> str | None:
    """What to install; None where all is there that reading and checking rows imports."""
    if all(importlib.util.find_spec(name) for name in ("evalplus", "wget", "tempdir", "appdirs")):
        return None
    return (
        "score evalplus needs the package; pip install 'objective-continuum[evalplus]', or take the presets "
        "humaneval-plus and mbpp-plus, whose tests run without it"
    )


def checked(program: str, row: Mapping[str, Any], memory_mb: int) -> tuple[str, str]:
    """What the sandbox runs for an answer: the answer as text, and its check, which forks a process for it in there."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs

    mbpp = str(row["task_id"]).startswith("Mbpp/")
    base, plus = row["base_input"], row["plus_input"]
    if mbpp:  # JSON has no tuples, sets or complex numbers
        base, plus = (mbpp_deserialize_inputs(row["task_id"], inputs) for inputs in (base, plus))
    check = _CHECK.format(
        memory=memory_mb << 20, base=repr(base), plus=repr(plus), solution=row["prompt"] + row["canonical_solution"],
        name=row["entry_point"], dataset="mbpp" if mbpp else "humaneval", atol=row["atol"],
    )  # fmt: skip
    return f"ANSWER = {program!r}", check
