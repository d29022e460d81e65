"""What an examination finds, and what it means for a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One check at one place.

    level:  ok; warning: a sweep runs, but worse than it could; error: it would break, or not be recorded as asked
    check:  its name, one of docs/doctor.md
    what:   what was seen
    where:  'client', 'driver', 'cluster', or a node's name
    remedy: what to do about it; empty where nothing has to be done
    """

    level: Level
    check: str
    what: str
    where: str
    remedy: str = ""


def exit_status(findings: Sequence[Finding]) -> int:
    """1 where there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    count = Counter(finding.level for finding in findings)
    if count["error"]:
        return (
            f"not healthy, a sweep would break: {_many(count['error'], 'error')}, {_many(count['warning'], 'warning')}"
        )
    return f"healthy: {_many(len(findings), 'check')}, {_many(count['warning'], 'warning')}"


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """For people: a line a check under the place where it was made, the remedy below, the verdict last."""
    width = max((len(finding.check) for finding in findings), default=0)
    for place in dict.fromkeys(finding.where for finding in findings):
        yield place
        for finding in findings:
            if finding.where == place:
                level = finding.level if finding.level == "ok" else finding.level.upper()
                yield f"  {level:7}  {finding.check:{width}}  {finding.what}"
                if finding.remedy:
                    yield f"  {'':7}  {'remedy:':>{width}}  {finding.remedy}"
    yield verdict(findings)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def size(value: float) -> str:
    """Bytes for people."""
    return f"{value / (1 << 30):.1f} GiB" if value >= 1 << 30 else f"{value / (1 << 20):.0f} MiB"
