"""docker/ as text: what can be held without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
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
