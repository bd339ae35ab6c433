"""Which patients stand behind a version, from its evidence: without them no figure says what it claims.

`evidence/split.json` names the groups of each side, `evidence/audit.json` the subjects of each group.
"""

from dataclasses import dataclass

from blastwatch.errors import PackageError
from blastwatch.manifest import SIDES
from blastwatch.package import Package

TRAINED_SIDES = ("train", "validation")
"""Sides that shaped the network's weights. Calibration patients moved its temperature and thresholds alone, which turn
no label at a probability of one half."""


@dataclass(frozen=True)
class Patients:
    """groups: by side; members: the subjects of each of these groups, as the audit ties them."""

    groups: dict[str, frozenset[str]]
    members: dict[str, frozenset[str]]

    def subjects(self, *sides: str) -> frozenset[str]:
        """Every subject that stands on one of the sides."""
        names = (name for side in sides for name in self.groups[side])
        return frozenset().union(*(self.members[name] for name in names))


def read_patients(package: Package) -> Patients:
    """The patients of every side.

    Raises:
        PackageError: where the evidence does not name them.
    """
    named = package.evidence("split").get("groups")
    if not isinstance(named, dict) or set(named) != set(SIDES) or not all(map(_are_names, named.values())):
        raise PackageError(
            f"Expected evidence/split.json to name the groups of {', '.join(SIDES)} but it does not. "
            "Package the model again."
        )
    groups = {side: frozenset(names) for side, names in named.items()}
    known = package.evidence("audit").get("groups")
    if not isinstance(known, list) or not all(map(_are_names, known)):
        raise PackageError(
            "Expected evidence/audit.json to list groups, each a list of the names of its subjects, but it does not. "
            "Audit and split the cells anew, then package the model again."
        )
    tied = {group[0]: frozenset(group) for group in known}
    unknown = sorted(frozenset().union(*groups.values()) - tied.keys())
    if unknown:
        raise PackageError(
            f"Expected evidence/audit.json to name the subjects of every group but {', '.join(unknown[:5])} is not "
            "there. Audit and split the cells anew, then package the model again."
        )
    return Patients(groups=groups, members=tied)


def _are_names(found: object) -> bool:
    """Whether it is a list of one name or more."""
    return isinstance(found, list) and bool(found) and all(isinstance(name, str) for name in found)
