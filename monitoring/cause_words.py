"""What is said of a probable cause to whoever looks at cells: what changed and which way, and what to check first."""

from collections.abc import Mapping
from dataclasses import dataclass

from monitoring.statistics import TABLE

TITLES: dict[str, str] = {statistic.name: statistic.title for statistic in TABLE} | {
    "toward_stain": "signs of another stain",
    "toward_white_balance": "signs of another white balance",
    "toward_defocus": "signs of blur",
    "toward_darker": "signs of more or less light",
    "toward_uneven": "signs of uneven light",
    "toward_jpeg": "signs of compression",
    "toward_pixel_size": "signs of another pixel size",
    "toward_noise": "signs of camera noise",
    "toward_field": "signs of another kind of image",
    "probability": "probability of a blast",
    "predicted_label": "share called a blast",
    "embedding": "look of the cells to the network",
}
"""Short title of every drift column, in plain words."""


def titled(name: str) -> str:
    """A column by its title, with its name beside it where that is another; by its name alone without a title."""
    title = TITLES.get(name, name)
    return name if title == name else f"{title} ({name})"


@dataclass(frozen=True, kw_only=True)
class Words:
    """changed: what happened. rises, falls: what that looks like where a statistic, or its difference to a second one,
    `by` is larger or smaller; "" where the cause has one direction. check: what to look at first. images: for a
    headline, where the images changed and not the patients."""

    changed: str
    check: str
    images: str = ""
    by: tuple[str, ...] = ()
    rises: str = ""
    falls: str = ""


# A density that is larger in red than in blue lets less red through: the image is bluer.
_REDS_LESS_BLUES = ("od_red", "od_blue")

WORDS: dict[str, Words] = {
    "stain": Words(
        changed="The stain is another one: cells are {}",
        check="the batch of the stain, the pH of the buffer, the time of staining",
        images="cells come in another stain",
        by=_REDS_LESS_BLUES,
        rises="bluer",
        falls="redder",
    ),
    "white balance": Words(
        changed="The white balance is another one: images are {}",
        check="the camera's white balance, the white reference, the lamp and its filter",
        images="images come in another white balance",
        by=_REDS_LESS_BLUES,
        rises="bluer",
        falls="redder",
    ),
    "focus": Words(
        changed="Images are blurred",
        check="the focus, the objective (oil, dirt), the cover slip",
        images="images come blurred",
    ),
    "illumination": Words(
        changed="The light is another one: images are {}",
        check="the lamp, the exposure, the white reference",
        images="images come in another light",
        by=("brightness",),
        rises="lighter",
        falls="darker",
    ),
    "compression": Words(
        changed="Images are compressed more",
        check="how images are saved and sent (JPEG and its quality)",
        images="images come more compressed",
    ),
    "pixel size": Words(
        changed="The pixel size is another one: cells are {} in the image",
        check="the objective, the camera and its binning, and whatever resizes images",
        images="images come in another pixel size",
        by=("cell_area",),
        rises="larger",
        falls="smaller",
    ),
    "noise": Words(
        changed="Images are noisier",
        check="the camera's gain and exposure, the lamp",
        images="images come with more noise",
    ),
    "disease mix": Words(
        changed="Patients of another mix of disease came; the images may be as before",
        check="whether others send cells now, or of other patients (ward, age, stage of the disease)",
    ),
    "another kind of image": Words(
        changed="Images are of another kind than segmented single cells",
        check="what the callers send, and how cells are cut out",
        images="images of another kind come",
    ),
}
"""By the word of a cause (`monitoring.signatures.CAUSES`)."""

NOT_KNOWN = Words(
    changed="No known change of the images explains it",
    check="the example cells, and what changed lately: stain, microscope, camera, callers, patients",
)


def in_words(cause: str, moved: Mapping[str, float]) -> dict[str, str | None]:
    """What the page leads with.

    Args:
        cause: a word of `CAUSES`, or any other for a cause that is not known.
        moved: how far statistics moved, by name; one that is lacking leaves the direction unsaid.

    Returns:
        changed, check: sentences without their full stop; images: for a headline, None where it is not the images.
    """
    words = WORDS.get(cause, NOT_KNOWN)
    changed = words.changed
    if words.by:
        known = set(words.by) <= set(moved)
        first, *second = (moved[name] if known else 0.0 for name in words.by)
        distance = first - sum(second)
        way = words.rises if distance > 0 else words.falls
        changed = changed.format(way) if distance else changed.partition(":")[0]
    return {"changed": changed, "check": words.check, "images": words.images or None}
