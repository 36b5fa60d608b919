"""The processes that train together, as torchrun starts them: one a GPU, or several on the CPU."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .signals import StoppedError


class Ranks:
    """One process alone."""

    rank, size = 0, 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, as a step calls it: its gradients are means over all ranks."""
        return model

    def no_sync(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Around a backward whose gradients a later one's are added to."""
        return contextlib.nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in every one of them."""
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """Those of all ranks, in every one of them: [ranks, ...]."""
        return values.unsqueeze(0)

    def follow_first(self, model: nn.Module) -> None:
        """Gives every rank the first one's buffers."""

    def agreed(self, wish: int) -> int:
        """The greatest wish of all ranks."""
        return wish


class Group(Ranks):
    """As many as torchrun started."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # beside the gradients, so that a wish need not wait for a GPU
        self.wishes = dist.new_group(backend="gloo")
        self.last: tuple[dist.Work, Tensor] | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model)

    def no_sync(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        return wrapped.no_sync()

    def total(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gathered(self, values: Tensor) -> Tensor:
        every = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(every, values)
        return torch.stack(every)

    def follow_first(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def agreed(self, wish: int) -> int:
        """Of the wishes at the call before, for which nobody has to wait."""
        before, greatest = self.last, 0
        if before:
            before[0].wait()
            greatest = int(before[1])
        wishes = torch.tensor([wish])
        self.last = dist.all_reduce(wishes, dist.ReduceOp.MAX, self.wishes, async_op=True), wishes
        return greatest

    def leave(self) -> None:
        """When all have come to the end: nothing is on its way to a process that is no more."""
        if self.last:
            self.last[0].wait()
        dist.barrier(self.wishes)
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The one of this process, where several share out a machine's GPUs."""
    if device.type == "cuda" and dist.is_torchelastic_launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """All processes of torchrun's, or this one alone; torchrun ends all where one ends early."""
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # a watchdog that asks the device may not do so while a graph is recorded
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    group = Group()
    try:
        yield group
    except StoppedError:  # by a signal, all at the same step
        group.leave()
        raise
    group.leave()
