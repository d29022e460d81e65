"""What a Kubernetes API server and KubeRay's operator would say of a manifest, from their published schemas.

Kubernetes' kinds: the strict JSON Schemas of Kubernetes' own OpenAPI document, as the package kubernetes-validate
ships them, so that unknown fields are errors. RayCluster and RayJob: kuberay-1.7.0.yaml beside this file, in which pod
templates and the like are Kubernetes' strict schemas again.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that the rendered manifests are held to
RAY_KINDS = ("RayCluster", "RayJob")
DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")


def problems(manifest: dict[str, Any], version: str) -> list[str]:
    """'path: what is wrong', for everything that is."""
    found = [f"{path}: is null" for path, value in leaves(manifest) if value is None]
    for path, value in leaves(manifest):
        if re.search(r"\.(requests|limits)\.", path) and not QUANTITY.fullmatch(str(value)):
            found.append(f"{path}: no quantity, {value!r}")  # the published type is any string
    if manifest["kind"] not in RAY_KINDS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{'.'.join(map(str, error.path))}: {error.message}")
        return found
    validator = _kuberay(version)[manifest["kind"]]
    return found + [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def leaves(value: Any, path: str = "$") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, f"{path}[{i}]")]
    return [(path, value)]


@cache
def _kuberay(version: str) -> dict[str, Draft202012Validator]:
    spec = importlib.util.find_spec("kubernetes_validate")
    assert spec is not None
    assert spec.submodule_search_locations
    schemas = Path(spec.submodule_search_locations[0]) / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = Resource.from_contents(json.loads((schemas / "_definitions.json").read_text()))
    text = (Path(__file__).parent / "kuberay-1.7.0.yaml").read_text()
    schema = yaml.safe_load(text.replace("$k8s", DEFINITIONS))
    Draft202012Validator.check_schema(schema)
    kuberay = Resource.from_contents(schema)
    registry = definitions @ (kuberay @ Registry())
    return {
        kind: Draft202012Validator({"$ref": f"urn:kuberay:1.7.0#/$defs/{kind}"}, registry=registry)
        for kind in RAY_KINDS
    }
