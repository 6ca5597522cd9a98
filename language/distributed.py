"""Several processes under `torchrun` that train one model as a single one would.

Each process holds some rows of the global batch; sums, gradients and checkpoints are those of the
whole batch, so a run may go on with another number of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")


class Ranks:
    """The processes of a run and what they exchange; one process exchanges nothing.

    Every method but the properties is collective: all processes call it, in the same order.
    Numbers travel over gloo, on the CPU.
    """

    def __init__(self) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if ready else 0
        """Number of this process, from 0."""
        self.world = dist.get_world_size() if ready else 1
        """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, added up in float64."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return self.sum([float(flag)])[0] > 0

    def stack(self, tensor: Tensor) -> Tensor:
        """Return every process's tensor, all of one shape, as `[world, ...]` on the CPU."""
        own = tensor.detach().cpu()
        if self.world == 1:
            return own[None]
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows `[B, ...]` of the whole batch, of which each has `rank::world`."""
        if self.world == 1:
            return rows.detach().cpu()
        most = int(self.stack(torch.tensor(len(rows))).max())
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        total = int(self.sum([float(len(rows))])[0])
        # Row i of the batch is row i // world of process i % world.
        return self.stack(padded).transpose(0, 1).flatten(0, 1)[:total]

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return this process's rows of the whole batch's, `gather_rows` taken back."""
        return rows[self.rank :: self.world]

    def collect(self, tensor: Tensor) -> Tensor:
        """Return a tensor that may be split, whole and on the CPU; nothing but in the first."""
        found = whole(tensor).detach()
        return found.cpu() if self.is_main else found.new_empty(0)

    def from_main(self, function: Callable[[], Result]) -> Result:
        """Return in all processes what the function returns in the first, the only one to call it.

        An exception there is raised everywhere, so that nobody waits for a process that is gone.
        """
        if self.world == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        result: Result = answer[0]
        return result


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; gives this process's device.

    That is `cuda:<local rank>` for "cuda". Outside of torchrun nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def parallelize(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    kind: Literal["ddp", "fsdp"],
    device: torch.device,
    world: int,
) -> nn.Module:
    """Return the module whose forward pass all processes call; itself for a single process.

    With `ddp` every process holds the whole model and gradients are averaged. With `fsdp` (FSDP2)
    parameters, gradients and optimiser state are split over the processes; each block's are
    brought together while it runs, those of the rest for the whole update.

    Args:
        module: What is trained, on its device, the same weights in every process.
        blocks: Its parts that are brought together one by one.
        kind: `ddp` or `fsdp`.
        device: Where it is.
        world: Number of processes.
    """
    if world == 1:
        return module
    if kind == "ddp":
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be split over the processes. Collective then."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be split over the processes. Collective then."""
    if isinstance(target, DTensor):
        value = value.to(target.device)
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)
