"""Are a node's packages those that are needed, and the driver's? Pure."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cluster.facts import Software
from cluster.finding import Finding, Level

# the ranges of pyproject.toml, which does not travel with a job; a test holds them equal
NEEDED = {
    "ray": ">=2.60,<2.61",
    "torch": ">=2.10,<3",
    "transformers": ">=5.20,<6",
    "deepspeed": ">=0.19.8,<0.20",
    "mlflow": ">=3.17,<4",
}
DRIVER_ONLY = ("mlflow",)
EXACT = ("ray",)  # its processes speak to each other
REMEDY = "install the versions of constraints.txt on every node (or use one image for all), then restart Ray there"


def software(where: str, here: Software, driver: Software) -> Iterator[Finding]:
    """Against what is needed, and against the driver's. A patch apart is a warning, a minor version an error."""
    wrong: dict[Level, list[str]] = {"error": [], "warning": []}
    if here.python != driver.python:
        minor = here.python.split(".")[:2] != driver.python.split(".")[:2]
        wrong["error" if minor else "warning"].append(f"Python {here.python}, the driver has {driver.python}")
    for name in NEEDED:
        problem = _problem(name, here.versions.get(name), driver.versions.get(name), where == "driver")
        if problem is not None:
            wrong[problem[0]].append(problem[1])
    for level, texts in wrong.items():
        if texts:
            yield Finding(level, "versions", "; ".join(texts), where, REMEDY)
    if not any(wrong.values()):
        found = ", ".join(f"{name} {here.versions[name]}" for name in NEEDED if here.versions[name])
        yield Finding("ok", "versions", f"Python {here.python}, {found}", where)
    if here.sources != driver.sources:
        missing = "this package cannot be imported"
        other = f"another version of this package (sources {here.sources}, the driver's {driver.sources})"
        yield Finding(
            "error", "package", missing if here.sources is None else other, where,
            "install the driver's version on the node, or submit over the Jobs API, where it travels with the sweep",
        )  # fmt: skip


def _problem(name: str, here: str | None, driver: str | None, is_driver: bool) -> tuple[Level, str] | None:
    """What is wrong with the version of a package, if anything."""
    worst: Level = "warning" if name in DRIVER_ONLY and not is_driver else "error"
    if here is None:
        return None if worst == "warning" else ("error", f"{name} is not installed, {NEEDED[name]} is needed")
    # without +cpu or +cu128: what a build is for is no other version
    mine = Version(Version(here).public)
    if mine not in SpecifierSet(NEEDED[name], prereleases=True):
        return worst, f"{name} {here}, {NEEDED[name]} is needed"
    theirs = mine if driver is None else Version(Version(driver).public)
    if mine == theirs:
        return None
    patch = mine.release[:2] == theirs.release[:2] and name not in EXACT
    return "warning" if patch else worst, f"{name} {here}, the driver has {driver}"
