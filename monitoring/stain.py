"""Another laboratory's stain for a cell, in optical density.

Light that passes stained tissue falls off exponentially, so stains add up in optical density (Beer and Lambert). A
pixel's density is taken apart into a blue-violet stain (azure, as hematoxylin), a red one (eosin) and what is left;
each is scaled and given the colour it has in another laboratory, and the pixel is put together again. All of this is
one linear map of three densities.

Source of the basis: Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution (2001);
the taking apart and putting together as in Macenko et al., A method for normalizing histology slides (2009).
"""

import numpy as np
from numpy.typing import NDArray

from blastwatch.errors import UsageError
from blastwatch.images import Pixels

# Optical density of each stain in R, G, B; the third row is what neither of them explains.
BASIS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

# The same stains in a laboratory that buffers more alkaline and stains shorter: bluer, and paler in green.
OTHER = np.array([[0.72, 0.62, 0.31], [0.12, 0.97, 0.20], [0.27, 0.57, 0.78]])
OTHER_AMOUNT = np.array([0.90, 0.70, 0.75])

MAX_STRENGTH = 2.0


def stain_map(strength: float) -> NDArray[np.float64]:
    """The linear map of densities, (3, 3), to be multiplied from the right; the identity at strength 0.

    Raises:
        UsageError: where the strength does not lie between -`MAX_STRENGTH` and `MAX_STRENGTH`.
    """
    if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
        raise UsageError(f"Expected a strength from {-MAX_STRENGTH} to {MAX_STRENGTH} but got {strength}.")
    colours = BASIS + strength * (OTHER - BASIS)
    amounts = np.exp(strength * np.log(OTHER_AMOUNT))
    return np.asarray(np.linalg.inv(BASIS) @ (amounts[:, None] * colours))


def restain(image: Pixels, *, strength: float) -> Pixels:
    """The same cell in another stain.

    Args:
        image: uint8, shape (height, width, 3); black pixels are background and stay black.
        strength: 0 changes nothing, 1 is another laboratory, values between and beyond are gradual; a negative one
            goes the other way.

    Returns:
        uint8 of the same shape; a pixel of the cell never becomes black.
    """
    cell = image.max(axis=2) > 0
    density = -np.log((image[cell].astype(np.float64) + 1) / 256)
    light = 256 * np.exp(-density @ stain_map(strength)) - 1
    stained = np.zeros_like(image)
    # At least 1 where the cell was not black, so that strength 0 gives the image back and the outline stays.
    stained[cell] = np.clip(np.rint(light), 0, 255)
    stained[cell & (stained.max(axis=2) == 0)] = 1
    return stained
