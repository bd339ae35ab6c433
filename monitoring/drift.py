"""One drift report: the predictions of a window against the reference of the version that made them, by Evidently.

Evidently computes the scores and draws the page; the thresholds are this version's own, calibrated on its patients
(`monitoring.calibration`). Importing Evidently takes seconds, so it is imported where it is used.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from blastwatch.decision import label
from blastwatch.errors import BlastwatchError, DataError
from blastwatch.package import DriftReference, Package
from blastwatch.rounding import against
from monitoring.calibration import basis, thresholds_for
from monitoring.directions import DIRECTIONS, with_directions
from monitoring.report_page import arranged
from monitoring.scores import EMBEDDING_SCORE, LABEL, numeric_of
from monitoring.signatures import name_causes
from monitoring.store import EMBEDDING
from monitoring.windows import ENOUGH, told

if TYPE_CHECKING:
    from evidently import Dataset
    from evidently.core.report import Snapshot

MOST_COMPARED = 2000
"""Cells of a window that Evidently is given. The kernel of the embeddings' distance grows with the square of the cells
(57 GiB for a day of one a second), and beyond this what a score still varies by is which patients came."""

LOCK, UNFINISHED = "reports.lock", "report.half"
"""In the folder of the reports: held by whoever writes one, and what is written of it until it is whole."""

KEEP_PAGES = 50  # HTML reports of 4.5 MB each; the small JSON ones are kept for good

_NAME = re.compile(r"drift-\d{8}T\d{6}\.\d{6}Z-v\w+\.(json|html)", re.ASCII)
"""Of a file of a report. Others, a copy that somebody keeps beside them, are none."""


class TooFewPredictions(DataError):
    """The window holds too few predictions for a verdict, or those of too few patients."""


class DriftReportFailed(BlastwatchError):
    """Evidently could not make the report."""


@dataclass(frozen=True)
class DriftReport:
    """document: what `blastwatch drift report --json` prints; snapshot: Evidently's run, for its workspace."""

    document: dict[str, Any]
    snapshot: "Snapshot"

    @property
    def drifted(self) -> bool:
        return bool(self.document["drifted"])


def compare(
    package: Package,
    current: pd.DataFrame,
    *,
    version: str,
    folder: Path,
    minimum: int = 30,
    timestamp: datetime | None = None,
    on_request: bool = False,
    repeated: int = 0,
    keyed: bool = True,
) -> DriftReport:
    """Compare predictions with the package's reference and write the report as HTML and JSON.

    Args:
        current: from `monitoring.windows`, predictions of this package only, in order of time. Of more than
            `MOST_COMPARED` so many are compared, evenly spaced over the window.
        version: number of the package's version in the registry.
        folder: takes `drift-TIME-vVERSION.html` and `.json`; made where it is missing. Names sort in the order in which
            the reports were made: after a clock that ran ahead the next ones are named as if it went on from there.
        minimum: predictions below which no verdict is given.
        timestamp: when the report is made, with a time zone; None takes now.
        on_request: by a person, who chose the version or the window: no part of what the monitor saw over time.
        repeated, keyed: of `monitoring.windows.Window`.

    Raises:
        TooFewPredictions: fewer than `minimum`, or than the smallest window that was calibrated; or the patients whose
            keys they carry are, by their effective number, fewer than `monitoring.windows.ENOUGH`.
        DataError: predictions of another model among them, or values that are not finite.
        DriftReportFailed: Evidently refused.
    """
    calibration = package.drift()
    smallest = max(minimum, min(window["cells"] for window in calibration["windows"]))
    if len(current) < smallest:
        besides = f", and {repeated} that repeat an image: each image of a patient counts once" if repeated else ""
        if not on_request:
            raise TooFewPredictions(f"{len(current)} of the {smallest} cells that a verdict takes are here{besides}.")
        raise TooFewPredictions(
            f"Expected at least {smallest} predictions of version {version} for a verdict on drift but got "
            f"{len(current)}{besides}. Wait for more, or widen the window (--since, BLASTWATCH_DRIFT_WINDOW)."
        )
    window = told(current, repeated, keyed=keyed)
    _check_enough(window, version)
    strangers = sorted(set(current["model_digest"]) - {package.digest})
    if strangers:
        raise DataError(
            f"Expected predictions of package {package.digest} only but got some of {', '.join(strangers)}: "
            "each version is compared with its own reference."
        )
    moment = (timestamp or datetime.now(UTC)).astimezone(UTC)
    compared = _spread(current)
    thresholds = thresholds_for(calibration, len(compared))
    reference = package.reference()
    if set(DIRECTIONS) & set(thresholds):
        signatures = calibration["signatures"]
        compared = with_directions(compared, signatures)
        reference = DriftReference(with_directions(reference.cells, signatures))
    names = numeric_of(reference.cells)
    snapshot = _run(_columns_of(compared, names), _known(reference, names), thresholds, moment)
    columns = _verdicts(snapshot, thresholds)
    drifted = any(column["drifted"] for column in columns)
    document = {
        "version": version,
        "digest": package.digest,
        "window": window,
        "basis": basis(calibration),
        "compared": len(compared),
        "on_request": on_request,
        "drifted": drifted,
        "columns": columns,
        "causes": name_causes(calibration.get("signatures"), current) if drifted else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with _refusals():
        snapshot = arranged(snapshot, document, digest=package.digest, synthetic=package.info.synthetic)
        return DriftReport(_put(folder, moment, document, snapshot), snapshot)


def _check_enough(window: dict[str, Any], version: str) -> None:
    """Refuse a verdict on a window that one patient's cells outweigh."""
    if window["effective_patients"] is None or window["effective_patients"] >= ENOUGH:
        return
    effective, needed = against(window["effective_patients"], ENOUGH)
    raise TooFewPredictions(
        f"Expected cells of at least {needed} patients for a verdict on drift but the {window['cells']} of version "
        f"{version} are of {window['patients']} (effective number {effective}): one patient's cells are alike, and "
        "thresholds are for three patients a window. Wait for cells of others, or widen the window (--since, "
        "BLASTWATCH_DRIFT_WINDOW)."
    )


def _put(folder: Path, moment: datetime, document: dict[str, Any], snapshot: "Snapshot") -> dict[str, Any]:
    """Write a report's files, each whole or not at all, the page first; returns the document with the page's path.

    One report at a time, of several processes too, from its name to its last file: no two get one name, and none comes
    under a name before that of one that is there, which a monitor has read and looks for nothing before.
    """
    from filelock import FileLock

    with FileLock(folder / LOCK, mode=0o664):  # whoever may write to the folder may hold it
        stem = f"drift-{_turn(folder, moment):%Y%m%dT%H%M%S.%fZ}-v{document['version']}"
        page = folder / f"{stem}.html"
        document = document | {"report": str(page)}
        half = folder / UNFINISHED  # the next report writes over what a kill leaves of it
        snapshot.save_html(str(half))
        half.replace(page)
        half.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        half.replace(page.with_suffix(".json"))
    return document


def names_of(folder: Path, ending: str = "") -> list[str]:
    """Names of the reports in a folder that end so (`.json`; `.html`: Evidently's pages), in the order in which
    they were made."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(name for name in names if name.endswith(ending) and _NAME.fullmatch(name))


def prune(folder: Path) -> None:
    """Remove all but the pages that were made last."""
    for name in names_of(folder, ".html")[:-KEEP_PAGES]:
        (folder / name).unlink(missing_ok=True)


def _turn(folder: Path, moment: datetime) -> datetime:
    """The moment that a report is named by: its own, or right after the latest that another one is named by."""
    latest = next(filter(None, map(_named_by, reversed(names_of(folder)))), None)
    return moment if latest is None or latest < moment else latest + timedelta(microseconds=1)


def _named_by(name: str) -> datetime | None:
    try:
        return datetime.strptime(name.partition("-v")[0], "drift-%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:  # no date, as of a 32nd
        return None


def _spread(current: pd.DataFrame) -> pd.DataFrame:
    """All of a window, or as many of its cells as are compared: every patient keeps their share of it."""
    count = min(len(current), MOST_COMPARED)
    return current.iloc[np.linspace(0, len(current) - 1, count).round().astype(np.intp)]


def _columns_of(frame: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """What is compared, of reference and predictions alike."""
    wanted = _finite(frame[[*names, *EMBEDDING]])
    # An object column: Evidently is slow to learn pandas' own string type.
    wanted[LABEL] = pd.Series([label(value) for value in wanted["probability"]], dtype=object)
    return wanted


def _known(reference: DriftReference, names: tuple[str, ...]) -> pd.DataFrame:
    """The reference's columns: those of the answers are empty in a row of a cell that the model learned from, and
    Evidently leaves an empty value out."""
    cells = reference.cells
    unanswered = cells.loc[cells["probability"].isna(), [name for name in names if name != "probability"]]
    return pd.concat([_columns_of(reference.answered, names), _finite(unanswered)], ignore_index=True)


def _finite(frame: pd.DataFrame) -> pd.DataFrame:
    wanted = frame.astype(np.float64).reset_index(drop=True)
    finite = np.isfinite(wanted.to_numpy()).all(axis=0)
    if not finite.all():
        raise DataError(f"Expected finite values for drift but {', '.join(wanted.columns[~finite])} has others.")
    return wanted


def _run(current: pd.DataFrame, reference: pd.DataFrame, thresholds: dict[str, float], moment: datetime) -> "Snapshot":
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.metrics.embeddings import EmbeddingsDrift, MMDDriftMethod

    import monitoring.embedding_plane  # noqa: F401  (gives `EmbeddingsDrift` its calculation)

    metrics: list[Any] = []
    for name, threshold in thresholds.items():
        if name == EMBEDDING_SCORE:
            method = MMDDriftMethod(threshold=threshold)
            metrics.append(EmbeddingsDrift(embeddings_name=EMBEDDING_SCORE, drift_method=method))
        else:
            method_name = "jensenshannon" if name == LABEL else "wasserstein"
            metrics.append(ValueDrift(column=name, method=method_name, threshold=threshold))
    definition = DataDefinition(
        numerical_columns=[name for name in current.columns if name != LABEL],
        categorical_columns=[LABEL],
        embeddings={EMBEDDING_SCORE: list(EMBEDDING)},
    )

    def dataset(frame: pd.DataFrame) -> "Dataset":
        return Dataset.from_pandas(frame, data_definition=definition)

    # Evidently draws histograms of columns without spread with divisions by zero; the scores stay right.
    with _refusals(), np.errstate(all="ignore"):
        return Report(metrics, include_tests=True).run(dataset(current), dataset(reference), timestamp=moment)


def _verdicts(snapshot: "Snapshot", thresholds: dict[str, float]) -> list[dict[str, Any]]:
    """Name, score, threshold and verdict of each column, out of Evidently's own dictionary."""
    scores = {
        metric["config"].get("column", EMBEDDING_SCORE): float(metric["value"]) for metric in snapshot.dict()["metrics"]
    }
    return [
        {"name": name, "score": scores[name], "threshold": limit, "drifted": scores[name] >= limit}
        for name, limit in thresholds.items()
    ]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what Evidently raises into our error. Two of its errors are no `Exception`, so they name themselves here."""
    from evidently.core.report import ReferenceMetricNotFound
    from evidently.errors import EvidentlyError
    from evidently.legacy.base_metric import ColumnNotFound

    try:
        yield
    except (EvidentlyError, ReferenceMetricNotFound, ColumnNotFound, ValueError, TypeError, KeyError, OSError) as error:
        raise DriftReportFailed(f"Evidently could not make the drift report: {error!r}.") from error
