"""What the optimizer is given: groups of weights with their rates and decay, and the schedule of the rate; and the
average of the weights that it comes to."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from blastwatch.errors import UsageError
from blastwatch.network import head_of

STEM = "stem"


def block_of(name: str) -> str:
    """The block of a network that a weight belongs to, by its name: `layer3`, `features.4`, `fc`. Of networks beside
    each other (`blastwatch.stage_pooling`) those of one depth are one block: `beside.0.4` is of `features.4`."""
    first, _, rest = name.partition(".")
    if first == "beside":
        first, rest = "features", rest.partition(".")[2]
    if first == "features":
        # DenseNet nests its stem's layers by name and its blocks as `denseblock1`; the others count them.
        return f"{first}.{rest.partition('.')[0]}"
    return STEM if first in ("conv1", "bn1") else first


def blocks_of(network: nn.Module) -> list[str]:
    """The blocks before the last layer, the one that reads the image first."""
    head = head_of(network)
    return list(
        dict.fromkeys(block_of(name) for name, _ in network.named_parameters() if not name.startswith(f"{head}."))
    )


def first_blocks(network: nn.Module, count: int) -> list[str]:
    """The first `count` blocks, those that read the image.

    Raises:
        UsageError: where that would be all of them.
    """
    blocks = blocks_of(network)
    if count >= len(blocks):
        raise UsageError(
            f"Expected train.frozen to be fewer than the {len(blocks)} blocks of the network but got {count}: "
            "something must learn beside the last layer."
        )
    return blocks[:count]


def hold(network: nn.Module, blocks: Collection[str]) -> None:
    """Keep blocks as they are: their weights do not learn, and their batch normalisation uses what it knows."""
    for name, parameter in network.named_parameters():
        if block_of(name) in blocks:
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        if block_of(name) in blocks:
            module.eval()


def parameter_groups(
    network: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: the head at the full rate, each block before it at `layer_decay` times that of the next.

    Layer-wise rates as in Howard & Ruder 2018 (arXiv:1801.06146). Biases and the weights of normalisations (one
    dimension) do not decay (He et al. 2019, arXiv:1812.01187).

    Returns:
        Each group with `params`, `lr`, `weight_decay` and `head` (whether it is the last layer).
    """
    head = head_of(network)
    blocks = blocks_of(network)
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        is_head = name.startswith(f"{head}.")
        depth = 0 if is_head else len(blocks) - blocks.index(block_of(name))
        plain = parameter.ndim > 1
        group = groups.setdefault(
            (head if is_head else block_of(name), plain),
            {
                "params": [],
                "lr": learning_rate * layer_decay**depth,
                "weight_decay": weight_decay if plain else 0.0,
                "head": is_head,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def schedule(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear to 1 over the warm-up, then half a cosine down to 0."""
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor


def probing(factor: Callable[[int], float], *, probe_steps: int) -> tuple[Callable[[int], float], ...]:
    """Factors with a linear probe before: (of the head, of the rest).

    For `probe_steps` the head alone learns at the full rate, then all follow `factor` (Kumar et al. 2022,
    arXiv:2202.10054: a fresh head distorts pretrained features when everything learns from the start).
    """

    def head(step: int) -> float:
        return 1.0 if step < probe_steps else factor(step - probe_steps)

    def rest(step: int) -> float:
        return 0.0 if step < probe_steps else factor(step - probe_steps)

    return head, rest


class Average(AveragedModel):
    """A moving average of a network's weights and running statistics over the steps: what is validated and kept.

    At a constant decay of 0.99 more than half of the first weights, which know nothing, would be left after 60 steps,
    which is all that a training of few cells has. So the average begins short (`decay_after`).
    """

    def __init__(self, network: nn.Module, most: float) -> None:
        """`most` is the decay a step, from 0 to 1, that it grows to."""
        super().__init__(network, multi_avg_fn=self._move, use_buffers=True)
        self.most = most

    @torch.no_grad()
    def _move(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _number: Tensor | int) -> None:
        # The number is handed over on the device, and reading it there would wait for all that was begun.
        share = 1 - decay_after(int(self.n_averaged), self.most)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), share)
            return
        for ours, theirs in zip(averaged, current, strict=True):  # how many batches a normalisation has seen
            ours.copy_(theirs)


def decay_after(steps: int, most: float) -> float:
    """Decay of the average after so many steps: at first it reaches back over a ninth of them, as with `num_updates` of
    TensorFlow's ExponentialMovingAverage.

    >>> [round(decay_after(steps, 0.99), 3) for steps in (1, 10, 90, 890, 5000)]
    [0.182, 0.55, 0.91, 0.99, 0.99]
    """
    return min(most, (1 + steps) / (10 + steps))
