"""Kinds of values that are checked one by one: names, images, paths, versions, addresses."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

TOKEN_SINCE = (2, 52)  # the first Ray with token authentication


def _label(value: str) -> str:
    # DNS-1035, and short: KubeRay refuses a job's name above 47 characters and appends to a cluster's
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", value):
        raise ValueError(f"at most 40 small letters, digits and -, a letter first (it names objects), got '{value}'")
    return value


def _pinned(value: str) -> str:
    name = value.rpartition("/")[2]
    if "@sha256:" not in value and (":" not in name or name.endswith(":latest")):
        raise ValueError(f"name a version, IMAGE:TAG or IMAGE@sha256:...; another may come tomorrow, got '{value}'")
    return value


def _absolute(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or path == PurePosixPath("/") or ".." in path.parts:
        raise ValueError(f"an absolute path below /, the same on all nodes, got '{value}'")
    return str(path)


def _ray(value: str) -> str:
    found = re.fullmatch(r"(\d+)\.(\d+)\.\d+", value)
    if not found or (int(found[1]), int(found[2])) < TOKEN_SINCE:
        raise ValueError(f"a release such as 2.60.0, 2.52.0 or newer (older ones know no token), got '{value}'")
    return value


def _tracking(value: str) -> str:
    """The value itself is not in the message: it may hold a password."""
    parts = urlsplit(value)
    if parts.username or parts.password:
        raise ValueError("a login does not belong in an address; use mlflow.secret and mlflow.credentials_file")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address that all nodes reach, http://HOST:PORT or https://HOST")
    return value


def _host_port(value: str) -> str:
    """The value itself is not in the message: it may hold a password."""
    if not re.fullmatch(r"[A-Za-z0-9.-]+:\d{1,5}", value):
        raise ValueError("HOST:PORT, as all nodes reach it; its password belongs in the Secret redis.secret")
    return value


Label = Annotated[str, AfterValidator(_label)]
Image = Annotated[str, AfterValidator(_pinned)]
SharedPath = Annotated[str, AfterValidator(_absolute)]
RayVersion = Annotated[str, AfterValidator(_ray)]
HostPort = Annotated[str, AfterValidator(_host_port)]
TrackingUri = Annotated[str, AfterValidator(_tracking)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
