"""The interface that workers on several hosts meet over."""

import os
from pathlib import Path

import psutil
import pytest

from cluster.connect import short_folder
from jobs.network import interface_of, meet_at


def test_every_address_of_this_machine_has_its_interface() -> None:
    addresses = {found.address.split("%")[0]: name for name, all_ in psutil.net_if_addrs().items() for found in all_}
    assert interface_of("127.0.0.1") == addresses["127.0.0.1"]
    assert {interface_of(address) for address in addresses} <= set(psutil.net_if_addrs())


def test_what_the_user_says_stays_and_an_unknown_address_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    meet_at("203.0.113.7")  # of a documentation range: nobody's
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "ib0")
    meet_at("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "ib0"


def test_a_long_temporary_directory_is_not_rays(tmp_path: Path) -> None:
    """Schedulers set one, and a socket's path has at most 107 characters."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert short_folder({"TMPDIR": "/tmp"}) == "/tmp"
    assert short_folder({}) == "/tmp"
    assert short_folder({"TMPDIR": str(long)}) == "/tmp"
    assert short_folder({"RAY_TMPDIR": "/var/tmp", "TMPDIR": str(long)}) == "/var/tmp"
