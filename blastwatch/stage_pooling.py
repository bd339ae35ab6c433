"""An EfficientNet-Lite whose last layer reads many stages: the mean and the spread of each channel over the image.

What pretrained weights know of texture and colour stands in the early stages; the last one, which a classifier usually
reads alone, knows dogs from cats. A linear layer over all stages is often better on few data of another kind (Evci et
al. 2022, arXiv:2201.03529, `Head2Toe`), and on medical images the early ones are what carries over (Raghu et al. 2019,
arXiv:1902.07208). Mean and spread of the channels are what images of one style share (Huang &
Belongie 2017, arXiv:1703.06868).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from blastwatch.efficientnet_lite import efficientnet_lite, stages_of

MIDDLE = range(
    2, 8
)  # of `features`, the stem first: all but the stem, the stage behind it, and the widening at the end
EARLY = range(6)  # the stem and five stages, to a sixteenth of the side; those behind are not even computed
EPSILON = 1e-6  # added to a variance, so that a map without any has a gradient


class Standardise(nn.Module):
    """Takes a mean off each number of a row and divides it by a spread; both are set, not learnt. Shape (n, width)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.spread


class StagePooling(nn.Module):
    """Logits (n, classes) of images (n, 3, side, side) by the stages of one network or of several beside each other.

    `features` are those of the first, with their names of `efficientnet_lite`; `beside` holds those of the others.
    `widths` are how many numbers the last layer reads of each, one network's behind another's.

    Args:
        bases: names of `blastwatch.efficientnet_lite.SCALES`.
        read: which parts of `features` are read; those behind the last of them are left out of the network.
    """

    def __init__(self, bases: Sequence[str], classes: int, read: range = MIDDLE) -> None:
        super().__init__()
        first, *others = (_features(base, classes, read.stop) for base in bases)
        self.features, self.beside, self.read = first, nn.ModuleList(others), read
        self.widths = tuple(2 * sum(_channels(base)[number] for number in read) for base in bases)
        self.standardise = Standardise(sum(self.widths))
        self.classifier = nn.Linear(sum(self.widths), classes)

    def forward(self, images: Tensor) -> Tensor:
        read = [number for maps in self.stages(images) for number in pooled(maps)]
        logits: Tensor = self.classifier(self.standardise(torch.cat(read, dim=1)))
        return logits

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """The maps that are read, of each network from the finest on, each (n, channels, height, width)."""
        for features in (self.features, *self.beside):
            maps = images
            for number, stage in enumerate(features):
                maps = stage(maps)
                if number in self.read:
                    yield maps

    def activation(self, images: Tensor) -> Tensor:
        """What each place adds to the logits, (n, classes, height, width) of the finest maps; with the bias, the mean
        over the places is the logits. The class activation map of Zhou et al. 2016 (arXiv:1512.04150), over all stages.

        A place of the finest maps takes what the nearest of each other's adds. Where the sides of the maps are no
        multiples of each other, some of those come more often than others; what their mean gains by it is taken off.
        """
        total: Tensor | None = None
        first = 0
        for maps in self.stages(images):
            mean, spread = (values[:, :, None, None] for values in pooled(maps))
            shares = torch.cat([maps, ((maps - mean).square() + EPSILON) / spread], dim=1)
            own = slice(first, first := first + shares.shape[1])
            known = [values[own, None, None] for values in (self.standardise.mean, self.standardise.spread)]
            added = torch.einsum("kc,nchw->nkhw", self.classifier.weight[:, own], (shares - known[0]) / known[1])
            finest = added if total is None else interpolate(added, size=total.shape[2:])
            finest = finest + (added.mean(dim=(2, 3), keepdim=True) - finest.mean(dim=(2, 3), keepdim=True))
            total = finest if total is None else total + finest
        assert total is not None
        return total


def _features(base: str, classes: int, count: int) -> nn.Sequential:
    """The first parts of a network, from the stem on."""
    return nn.Sequential(*list(efficientnet_lite(base, classes).get_submodule("features").children())[:count])


def _channels(base: str) -> list[int]:
    """Of the maps that the stem and each stage behind it put out."""
    stages = stages_of(base)
    return [stages[0][3], *(stage[4] for stage in stages)]


def pooled(maps: Tensor) -> list[Tensor]:
    """Mean and spread of each channel over its places, both (n, channels), of maps (n, channels, height, width)."""
    mean = maps.mean(dim=(2, 3))
    variance = (maps - mean[:, :, None, None]).square().mean(dim=(2, 3))
    return [mean, (variance + EPSILON).sqrt()]
