"""The sections of `params.yaml` that shape a data set before it is split: `import`, `audit` and `contract`."""

from dataclasses import dataclass, field

from blastwatch.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ImportParameters:
    """Section `import`. kind: layout of data/source: cnmc, folder or table. subject_pattern: with kind: folder, a
    regular expression with a group `subject` that finds the patient in an image's path; empty for none."""

    kind: str = "cnmc"
    subject_pattern: str = ""

    def __post_init__(self) -> None:
        if "'" in self.subject_pattern:
            raise UsageError(
                "Expected import.subject_pattern without a single quote, since dvc.yaml hands it to the shell between "
                f"two, but got {self.subject_pattern!r}. Write a dot for it, which stands for any character."
            )


@dataclass(frozen=True, kw_only=True)
class AuditParameters:
    """Section `audit`. links: lists of subjects that are known to be one patient each, beyond what images show."""

    links: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for link in self.links:
            if not (_are_texts(link) and len(link) >= 2):
                raise UsageError(
                    'Expected audit.links to be lists of at least two subjects as text, such as [["12", "H12"]], but '
                    f"got {link!r}."
                )


@dataclass(frozen=True, kw_only=True)
class ContractParameters:
    """Section `contract`: what a data set must be before a split is made of it, see `training.contract`.

    two_cells: pairs of paths of the manifest; a person looked at the two images and judged that they show two cells.
    """

    least_patients: int = 4
    least_cells: int = 40
    most_refused: float = 0.05
    most_odd: float = 0.05
    least_side: int = 64
    most_side: int = 4096
    two_cells: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for pair in self.two_cells:
            if not (_are_texts(pair) and len(pair) == 2):
                raise UsageError(
                    'Expected contract.two_cells to be pairs of paths, such as [["all/A/1.png", "hem/B/2.png"]], but '
                    f"got {pair!r}."
                )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
