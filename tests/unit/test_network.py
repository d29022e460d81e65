"""The interface that workers on several hosts meet over."""

import os

import psutil
import pytest

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
