"""The process group of a lane, as a backend of Ray Train, and where its workers begin.

Ray's own (TorchConfig) imports torch into every driver and every lane's controller, where nothing is computed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.util import get_current_placement_group

from jobs.network import LOOPBACK, backend_here, meet_at

LEAVE_S = 30.0  # for a group whose peer may be dead already
_DOOR: list[socket.socket] = []  # in rank 0's process: bound for the group's store, until that takes it


class _LaneBackend(Backend):
    """One process group for all trials of a lane: NCCL where it has GPUs, else gloo."""

    share_cuda_visible_devices = True
    joined = False

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        self.joined = False
        # for get_context() each worker would import Ray Tune, to see that it is in none of its trials
        seats = [worker.distributed_context for worker in worker_group.get_workers()]
        address, port = worker_group.execute_single(0, _meeting_place, backend_config, seats[0])
        pending = [worker_group.execute_single_async(seat.world_rank, _join, address, port, seat) for seat in seats]
        while pending:  # who fails first, not who is first: the others wait for it
            done, pending = ray.wait(pending)
            ray.get(done)
        self.joined = True

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if not self.joined:  # who still waits for the others would not hear
            return
        with contextlib.suppress(ray.exceptions.GetTimeoutError):  # they are ended next, left or not
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_S)


@dataclass
class LaneConfig(BackendConfig):
    """Names the backend to Ray Train.

    board, lane: who is told of the workers' placement group (sweeper/board.py), and under which name
    """

    board: Any
    lane: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _LaneBackend


def serve(config: dict[str, Any]) -> None:
    """A worker's part of the lane (jobs/worker.py), imported by workers alone: it takes torch with it."""
    from jobs import worker

    worker.serve(config)


def _meeting_place(config: LaneConfig, seat: Any) -> tuple[str, int]:
    """Where rank 0, which runs this, is to be met. Whoever must give back what they hold can do so from here on."""
    gpus = ray.get_gpu_ids()
    card = f"{ray.get_runtime_context().get_node_id()} {gpus[0]}" if gpus else ""
    ray.get(config.board.up.remote(config.lane, get_current_placement_group(), card))
    address = _own_address(seat)
    _DOOR.append(socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET))
    return address, int(_DOOR[-1].getsockname()[1])


def _own_address(seat: Any) -> str:
    """Where this worker is to be reached by its group: on loopback, unless the group is on several nodes."""
    return LOOPBACK if seat.local_world_size == seat.world_size else str(ray.util.get_node_ip_address())


def _join(address: str, port: int, seat: Any) -> None:
    """In each worker, before it serves; seat: its ranks. The group's store has no lock, so it has one address alone."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it alone: each such worker would train on the first GPU
    import torch.distributed as dist

    meet_at(_own_address(seat))
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(seat.world_rank),
        WORLD_SIZE=str(seat.world_size),
        LOCAL_RANK=str(seat.local_rank),
        LOCAL_WORLD_SIZE=str(seat.local_world_size),
        NODE_RANK=str(seat.node_rank),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for execution.deterministic; read once a process
    set_device()
    rank, size, timeout = seat.world_rank, seat.world_size, timedelta(minutes=30)
    door = _DOOR.pop().detach() if rank == 0 else None  # else it would listen on every interface
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, size, is_master=rank == 0, timeout=timeout, master_listen_fd=door
    )
    dist.init_process_group(timeout=timeout, store=store, rank=rank, world_size=size, **backend_here())


def set_device() -> None:
    """Make this thread compute on the GPU that the worker was given; without one, nothing."""
    import torch

    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
