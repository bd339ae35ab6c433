"""Changes of a camera that `train.nuisances` does not look at.

Under the causes of drift (`monitoring.shifts`) a last layer that is kept from reading them is measured in the very
changes that its directions were found in: what it bears there says little of a camera that moves cells another way. So
an evaluation asks under some others too. No training may look at these, or they would test nothing.

    gamma of 0.7        another tone curve: what lies between black and white is lighter
    half as colourful   half the distance of each channel from their mean
    more contrast       1.3 times the distance from a level of 160
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blastwatch.images import Pixels

Floats = NDArray[np.floating]
Change = Callable[[Pixels], Pixels]

GREY = 160.0  # level around which contrast is raised


def on_cell(image: Pixels, values: Floats) -> Pixels:
    """Values (height, width, 3) where the cell of an image of that shape is, at least 1 there; black elsewhere."""
    cell = image.max(axis=2, keepdims=True) > 0
    return np.where(cell, np.clip(np.rint(values), 1, 255), 0).astype(np.uint8)


def by_light(change: Callable[[Floats], Floats]) -> Change:
    """A change of the levels, which are given as floats from 0 to 255, of the cell alone."""
    return lambda image: on_cell(image, change(image.astype(np.float32)))


def grey(light: Floats) -> Floats:
    """The mean of the channels, (height, width, 1)."""
    return np.asarray(light.mean(axis=-1, keepdims=True))


UNSIMULATED: dict[str, Change] = {
    "gamma of 0.7": by_light(lambda light: 255 * (light / 255) ** np.float32(0.7)),
    "half as colourful": by_light(lambda light: grey(light) + 0.5 * (light - grey(light))),
    "more contrast": by_light(lambda light: GREY + 1.3 * (light - GREY)),
}
"""By name, each of an image as the camera took it, uint8 (height, width, 3), black where no cell is."""
