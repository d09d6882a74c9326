"""Several processes that train one network, started by `torchrun`: gloo on CPUs, nccl on GPUs.

Under torchrun a training joins its processes by itself; started plainly it is a run of one process.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the `world` processes of a run; the one of rank 0 writes."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what the run leaves on disk."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, on each of them; exact for integers."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def agreed(self, wish: int) -> int:
        """The largest wish of any process; hosts meet (gloo), GPUs do not wait."""
        if self.world == 1:
            return wish
        wishes = torch.tensor(wish)
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        return int(wishes)

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.agreed(0)

    def parallel(self, module: nn.Module, unused_weights: bool = False) -> nn.Module:
        """`module` with gradients averaged over the processes in every backward pass; itself where there is one.

        `unused_weights` allows a pass that leaves some weights out, as the draws of a supernet do, and costs a search
        for them in every pass.
        """
        if self.world == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=unused_weights)


def best_device() -> torch.device:
    """This process's GPU (the first, or under torchrun its own), or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def join() -> Ranks:
    """This process among those that torchrun started with it, or a run of its own.

    Raises ValueError where this machine has GPUs, but fewer than processes.
    """
    if not dist.is_initialized():
        if not _started_by_torchrun():
            return Ranks()
        gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if 0 < gpus < processes:
            raise ValueError(f"{processes} processes and {gpus} GPUs on this machine; use --nproc-per-node {gpus}")
        if gpus:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The two backends share a group: what lies on a CPU, such as a wish to stop, goes by gloo.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size())


def _started_by_torchrun() -> bool:
    """Whether torchrun started this very process: a child of such a process inherits its environment, not its place."""
    named = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return named and multiprocessing.parent_process() is None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
