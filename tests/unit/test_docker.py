"""docker/ as text: what can be held without an engine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_reaped(name: str) -> None:
    service = SERVICES[name]
    assert service["init"]
    assert {"mem_limit", "cpus"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if name.startswith("ray"):
        assert "shm_size" in service


def test_no_secret_is_in_an_environment() -> None:
    names = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert not [name for name in names if re.search("PASS|TOKEN|SECRET|KEY", name)]
    assert set(COMPOSE["secrets"]) == {name for service in SERVICES.values() for name in service.get("secrets", [])}


def test_the_example_of_settings_names_every_variable_with_its_default() -> None:
    read = re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.yaml").read_text())
    read += re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.gpu.yaml").read_text())
    example = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert set(example.items()) == set(read)


def test_the_gpu_file_overrides_services_that_exist() -> None:
    assert set(GPU["services"]) <= set(SERVICES)


def test_the_image_is_pinned_and_its_user_is_not_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert "-c constraints.txt -r requirements.txt" in text
    assert re.findall("^USER (.*)$", text, re.MULTILINE) == ["sweeper"]
    assert re.findall("^FROM \\S+ AS (.*)$", text, re.MULTILINE) == ["built", "gpu", "cpu"]


def compose_commands(target: str) -> list[list[str]]:
    """What a target of the Makefile asks of compose, as make itself says it; nothing is run."""
    said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line.split("docker/compose.yaml ")[1].split() for line in said.splitlines() if "docker compose -f" in line]


def test_the_targets_start_and_stop_the_cluster_as_its_test_does() -> None:
    tree = ast.parse((ROOT / "tests" / "integration" / "test_compose.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "made"]
    run = [[a.value for a in call.args if isinstance(a, ast.Constant)] for call in calls]
    assert compose_commands("cluster-up") == [["build", "ray-head"], next(words for words in run if words[0] == "up")]
    (forget,) = compose_commands("cluster-clean")
    assert next(words for words in run if words[0] == "down")[: len(forget)] == forget
    assert compose_commands("cluster-down") == [forget[:1]]  # the volumes stay


def test_the_quickstart_target_names_a_service_and_a_spec_that_are_there() -> None:
    submit, fetch = compose_commands("cluster-quickstart")
    assert submit == ["run", "--rm", "submit"]
    assert submit[-1] in SERVICES
    assert fetch[1].split(":")[0] in SERVICES
    assert (ROOT / "examples" / "quickstart.yaml").is_file()
