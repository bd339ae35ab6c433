"""Why the estimate of how well a version answers is not to be relied on now.

It takes for granted that the version's probabilities still hold on the cells that come. Labels may refute that
(`monitoring.performance`). Where cells or patients are others than those that the version knows, nothing says that they
still hold, and an estimate may even rise while the truth falls (docs/labels.md has figures); so it is in doubt until
the check on labels goes by cells since then alone, and by enough of them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from monitoring.performance import UNTRUSTED

LABELS, DRIFT, PATIENTS = REASONS = ("labels", "drift", "patients")
"""Labels refute it; the latest window drifted; the patients, one after another, are others."""


def doubts(
    labelled: Mapping[str, Any], *, drifted: bool, since: Mapping[str, Any] | None, patients: Mapping[str, Any] | None
) -> list[dict[str, str | None]]:
    """The reasons that hold, in the order of `REASONS`, each with since when, None where that is not known.

    Args:
        labelled: `now.labelled` of `monitoring.performance_report.report`: since and check of labelled cells.
        drifted: whether the verdict that stands on the latest window is drift; since: of `monitoring.timeline.since`.
        patients: of `monitoring.patient_report`; None where nobody was looked at.
    """
    found: list[dict[str, str | None]] = []
    if labelled["check"]["state"] == UNTRUSTED:
        found.append({"reason": LABELS, "since": labelled["since"]})
    changed: dict[str, str | None] = {}
    if drifted:
        changed[DRIFT] = since["at"] if since else None
    if patients and patients["drifted"]:
        changed[PATIENTS] = min(column["since"] for column in patients["columns"] if column["drifted"])
    found += [{"reason": reason, "since": at} for reason, at in changed.items() if not _spoken(labelled, at)]
    return found


def _spoken(labelled: Mapping[str, Any], since: str | None) -> bool:
    """Whether the check on labels speaks of the cells since then: all of its cells are, and enough for a verdict."""
    if since is None or labelled["since"] is None or labelled["check"]["lacks"] is not None:
        return False
    return datetime.fromisoformat(labelled["since"]) >= datetime.fromisoformat(since)
