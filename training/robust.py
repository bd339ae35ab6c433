"""Group distributionally robust optimisation: the groups that the network does worst on weigh most.

The online algorithm of Sagawa et al. 2020 (arXiv:1911.08731, algorithm 1), whose groups are here the subjects within
each label: q_g grows by exp(step x mean loss of g), and the loss of each cell is multiplied by q_g x groups.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.distributed import World


class GroupWeights:
    """What each group weighs; `values` (groups,), float64, sums to 1."""

    def __init__(self, groups: NDArray[np.int64], *, step: float) -> None:
        self.count, self.step = int(groups.max()) + 1, step
        self.values = torch.full((self.count,), 1.0 / self.count, dtype=torch.float64)

    def of(self, groups: Tensor) -> Tensor:
        """Factor of each cell's loss, of mean 1 over the groups; float32, shape of `groups`."""
        return (self.values[groups] * self.count).float()

    def learn(self, groups: Tensor, losses: Tensor, world: World) -> None:
        """Shift weight to the groups of a batch with high losses. Groups without a cell in the batch keep theirs.

        Args:
            groups, losses: of this process's share of the batch, shape (n,); the losses may lie on a GPU, which is
                waited for only where weights are learnt.
        """
        if self.step == 0:
            return
        sums = torch.zeros(2, self.count, dtype=torch.float64)
        sums[0].index_add_(0, groups, losses.cpu().double())
        sums[1].index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))
        total, cells = world.sum(sums)
        grown = self.values * torch.exp(self.step * total / cells.clamp(min=1))
        self.values = grown / grown.sum()
