"""Give a cell another stain, in optical density: for the demonstration and the tests of drift.

Light that passes stained tissue falls off exponentially, so stains add up in optical density (Beer and Lambert). A
pixel's density is taken apart into a blue-violet stain (azure, as hematoxylin), a red one (eosin) and what is left;
each is scaled and given the colour it has in another laboratory, and the pixel is put together again. All of this is
one linear map of three densities.

Source of the basis: Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution (2001);
the taking apart and putting together as in Macenko et al., A method for normalizing histology slides (2009).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.console import progress
from blastwatch.errors import DataError, ImageRejected, UsageError
from blastwatch.images import Pixels, decode
from blastwatch.manifest import write_json
from training.sources import MARKER, any_synthetic, image_files

# Optical density of each stain in R, G, B; the third row is what neither of them explains.
BASIS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

# The same stains in a laboratory that buffers more alkaline and stains shorter: bluer, and paler in green.
OTHER = np.array([[0.72, 0.62, 0.31], [0.12, 0.97, 0.20], [0.27, 0.57, 0.78]])
OTHER_AMOUNT = np.array([0.90, 0.70, 0.75])

MAX_STRENGTH = 2.0


@dataclass(frozen=True, kw_only=True)
class Restained:
    """How many images were written, and the names of those that could not be."""

    written: int
    refused: list[str]


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


def restain_files(sources: list[Path], out: Path, *, strength: float) -> Restained:
    """Restain image files, or all images below folders, into `out` as BMP, under the same relative paths.

    Copies of synthetic cells are marked as synthetic.

    Raises:
        DataError: where there is no image, two would get one name, one would be overwritten, or none could be read.
    """
    wanted = _targets(sources)
    own = [path for name, path in wanted.items() if (out / name).resolve() == path.resolve()]
    if own:
        raise DataError(
            f"Expected another folder than that of the images: {own[0]} would be overwritten. Change --out."
        )
    stain_map(strength)  # a strength that cannot be used is refused before anything is written
    written, refused = 0, []
    for name, path in progress(sorted(wanted.items()), total=len(wanted), what="Restaining"):
        try:
            image = decode(path.read_bytes())
        except (ImageRejected, OSError) as error:
            refused.append(f"{path}: {error}")
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(restain(image, strength=strength)).save(target, format="BMP")
        written += 1
    if any_synthetic(wanted.values()) and written:
        write_json(out / MARKER, {"synthetic": True, "restained": strength})
    if not written:
        raise DataError(f"None of the {len(wanted)} images could be read; the first: {refused[0]}")
    return Restained(written=written, refused=refused)


def _targets(sources: list[Path]) -> dict[str, Path]:
    """Path below the output folder -> image file."""
    wanted: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise DataError(f"Expected an image or a folder of images but {source} is missing.")
        names = [source.name] if source.is_file() else list(image_files(source))
        for name in names:
            target = str(Path(name).with_suffix(".bmp"))
            if target in wanted:
                raise DataError(f"Two images would be written as {target}; give their folders one at a time.")
            wanted[target] = source if source.is_file() else source / name
    if not wanted:
        raise DataError(f"Expected images but found none in {', '.join(map(str, sources))}.")
    return wanted
