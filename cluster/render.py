"""Values -> files. What is written depends on the values alone, so that two renderings can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster import kuberay, launcher
from cluster.places import Aws, Gcp, Kubernetes, Local
from cluster.strict import ValuesError, read
from cluster.values import TARGETS, Target, Values

HEADER = "# Rendered by `sweeper cluster render`. Change the values and render again, not this file.\n"


class _Dumper(yaml.SafeDumper):
    """YAML for people: no anchors, text of several lines as it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def load_values(path: Path) -> Values:
    """Raises ValuesError with every problem found."""
    return read(path, Values)


def targets(values: Values, only: Target | None, source: str) -> tuple[Target, ...]:
    """What the values have a place for. Raises ValuesError where `only` has none, or nothing has."""
    names = {"kuberay": "kubernetes"}
    if only is not None and values.place(only) is None:
        raise ValuesError(source, [f"--only {only} needs the key '{names.get(only, only)}'"])
    found = tuple(target for target in TARGETS if values.place(target) is not None and only in (None, target))
    if not found:
        raise ValuesError(source, ["nothing to render: name kubernetes, aws, gcp or local"])
    return found


def render(values: Values, wanted: tuple[Target, ...], sweep: str | None) -> dict[str, str]:
    """Relative path -> text of the file. sweep: the text of the sweep file of kubernetes.job, where there is one."""
    files: dict[str, str] = {}
    for target in wanted:
        place = values.place(target)
        if isinstance(place, Kubernetes):
            files["kuberay/base.yaml"] = _yaml(kuberay.base(values, place))
            files["kuberay/raycluster.yaml"] = _yaml(kuberay.ray_cluster(values, place))
            if place.job is not None and sweep is not None:
                files["kuberay/rayjob.yaml"] = _yaml(kuberay.ray_job(values, place, place.job, sweep))
        elif isinstance(place, Aws):
            files["launcher/aws.yaml"] = _yaml([launcher.aws(values, place)])
        elif isinstance(place, Gcp):
            files["launcher/gcp.yaml"] = _yaml([launcher.gcp(values, place)])
        elif isinstance(place, Local):
            files["launcher/local.yaml"] = _yaml([launcher.local(values, place)])
    return files


def write(files: dict[str, str], folder: Path) -> list[Path]:
    paths = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _yaml(documents: list[dict[str, Any]]) -> str:
    return HEADER + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
