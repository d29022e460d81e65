"""Which network interface a process group is to meet over, and what it speaks there."""

from __future__ import annotations

import os
from typing import Any

LOOPBACK = "127.0.0.1"


def meet_at(address: str) -> None:
    """Let gloo use the interface that has this address, unless GLOO_SOCKET_IFNAME says another. On loopback NCCL, too.

    By itself gloo asks what this host's name stands for. Where that is a loopback address (Debian's 127.0.1.1) or
    nothing at all, it tells the other hosts to connect to themselves. NCCL never takes loopback by itself.

    address: of this host, as the others know it: the one that Ray uses, or LOOPBACK for a group on one host
    """
    if (name := interface_of(address)) is None:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if address == LOOPBACK:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def backend_here() -> dict[str, Any]:
    """backend and device_id for torch's init_process_group: NCCL on this process' current GPU, else gloo.

    Told its card, NCCL need not guess it from the rank, which is wrong where nodes have unequally many.
    """
    import torch

    if not torch.cuda.is_available():
        return {"backend": "gloo"}
    return {"backend": "nccl", "device_id": torch.device("cuda", torch.cuda.current_device())}


def interface_of(address: str) -> str | None:
    """The name of the interface with this IPv4 or IPv6 address; None: no interface here has it."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(a.address.split("%")[0] == address for a in found):
            return name
    return None
