"""What the log of the monitor says of a report, of patients, and of windows that were looked at afterwards."""

from collections.abc import Sequence
from typing import Any

from monitoring.patient_report import dated
from monitoring.windows import words


def sentence(document: dict[str, Any]) -> str:
    """What a line of the log says of a report (`monitoring.drift.compare`)."""
    drifted = [column["name"] for column in document["columns"] if column["drifted"]]
    window, version = document["window"], document["version"]
    verdict = f"drift in {', '.join(drifted)}; probable cause: {_causes(document)}" if drifted else "no drift"
    said = (f"Version {version}, {words(window)}: {verdict}.", window["caution"], document["report"])
    return " ".join(filter(None, said))


def past_drift(documents: Sequence[dict[str, Any]]) -> str:
    """What a line of the log says of the reports on what came while no monitor looked, oldest first, where any of them
    found drift."""
    drifted = [document for document in documents if document["drifted"]]
    worst = max(drifted, key=lambda document: max(one["score"] / one["threshold"] for one in document["columns"]))
    since, until = drifted[0]["window"]["since"], drifted[-1]["window"]["until"]
    return (
        f"Version {worst['version']}: drift in {len(drifted)} of {len(documents)} windows that came while no monitor "
        f"looked, from {since} until {until}. The worst of them: {sentence(worst)}"
    )


def patient_sentence(patients: dict[str, Any]) -> list[str]:
    """What a line of the log says of `monitoring.patient_report`: nothing where no alarm stands, or nobody was looked
    at, as without a version to watch."""
    if not patients:
        return []
    moved = [f"{column['name']} since {dated(column)}" for column in patients["columns"] if column["drifted"]]
    if not moved:
        return []
    images = next((cause["images"] for cause in patients["causes"][:1] if cause.get("images")), "")
    what = images[:1].upper() + images[1:] or "Other patients"
    return [f"{what}: {', '.join(moved)}; probable cause: {_causes(patients)}."]


def _causes(found: dict[str, Any]) -> str:
    return ", ".join(cause["cause"] for cause in found["causes"])
