"""Several processes that train one network, as torchrun starts them. Each takes its share of every batch.

One process and several give the same weights within rounding: the batch, its order and its augmentation are drawn from
the seed and the step alone, and normalisations over the batch (`share_statistics`) are computed over all shares.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from blastwatch.errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """rank: of this process, from 0; size: processes that train together; device: of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes what all have in common: checkpoints, the tracked run, the weights."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, outside of autograd, on the CPU."""
        if self.size == 1:
            return values.cpu()
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def told_by_first(self, value: Value) -> Value:
        """What the first process has; the others' own value is dropped."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return cast(Value, box[0])

    def together(self, network: nn.Module) -> nn.Module:
        """The network as all processes train it: gradients are averaged over them."""
        trains = any(parameter.requires_grad for parameter in network.parameters())
        if self.size == 1 or not trains:
            return network
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)


@contextmanager
def world_of_torchrun() -> Iterator[World]:
    """This process's place among those that torchrun started; alone where it started none.

    GPUs talk through NCCL, CPUs through gloo.

    Raises:
        UsageError: where there are fewer GPUs than processes on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if gpus and local >= gpus:
        raise UsageError(
            f"Expected at most {gpus} processes on this machine, one a GPU, but this is number {local + 1}."
        )
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if gpus:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(torch.distributed.get_rank(), size, device)
    finally:
        torch.distributed.destroy_process_group()


def share_statistics(network: nn.Module, world: World) -> nn.Module:
    """Let batch normalisations see the batch of all processes. torch's own does so on GPUs alone."""
    if world.size == 1:
        return network
    if world.device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(network))  # type: ignore[no-untyped-call]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm2d
    return network


class _Summed(torch.autograd.Function):
    """The sum over all processes; what one of them changes, all feel, so gradients are summed as well."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    return cast(Tensor, _Summed.apply(values))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) over the batch of all processes, for gloo.

    Takes and gives (n, channels, height, width). Statistics are float32 in every precision. All processes must have
    as many cells.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as the class above calls it)
        if not self.training:
            return super().forward(input)
        cells = input.double() if input.dtype == torch.float64 else input.float()
        size = torch.distributed.get_world_size()
        axes = (0, 2, 3)
        # The mean of all means, then the mean of all squares around it: equal counts make both exact.
        mean = _summed(cells.mean(axes)) / size
        centred = cells - mean[None, :, None, None]
        variance = _summed((centred * centred).mean(axes)) / size
        self._remember(mean.detach(), variance.detach(), cells.numel() // cells.shape[1] * size)
        scaled = centred * torch.rsqrt(variance + self.eps)[None, :, None, None]
        out: Tensor = scaled * self.weight[None, :, None, None] + self.bias[None, :, None, None]
        return out.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards these, the variance unbiased, as `nn.BatchNorm2d` does."""
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is None or running_var is None or batches is None:
            raise ValueError("Expected a batch normalisation that keeps running statistics")
        batches.add_(1)
        momentum = 1 / float(batches) if self.momentum is None else self.momentum
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / max(1, count - 1))).to(running_var.dtype), momentum)
