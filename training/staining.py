"""Give files of cells another stain (`monitoring.stain`): for the demonstration and the tests of drift."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from blastwatch.console import progress
from blastwatch.errors import DataError, ImageRejected
from blastwatch.images import decode
from blastwatch.manifest import write_json
from monitoring.stain import restain, stain_map
from training.sources import MARKER, any_synthetic, image_files


@dataclass(frozen=True, kw_only=True)
class Restained:
    """How many images were written, and the names of those that could not be."""

    written: int
    refused: list[str]


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
