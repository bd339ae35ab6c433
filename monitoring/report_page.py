"""Evidently's page of a drift report, with a head that says what it is about, and the columns that moved most first.

Evidently draws the columns in the order of its metrics and without a word on whose they are. Its run is taken as the
model that it is stored as, and read again: the workspace and the HTML page show the same.
"""

from typing import TYPE_CHECKING, Any

from blastwatch import DISCLAIMER
from blastwatch.rounding import against, fixed
from monitoring.cause_words import titled
from monitoring.scores import EMBEDDING_SCORE
from monitoring.windows import words

if TYPE_CHECKING:
    from evidently.core.report import Snapshot
    from evidently.legacy.model.widget import BaseWidgetInfo

SCORE_OVER_THRESHOLD = "BlastwatchScoreOverThreshold"
"""Metric of a run, beside Evidently's own, with the parameters `column` and `version`: what the dashboard draws."""

THRESHOLD = "threshold"
"""The `column` of that metric whose value is always 1."""


def arranged(snapshot: "Snapshot", document: dict[str, Any], *, digest: str, synthetic: bool) -> "Snapshot":
    """The run with a head, the widgets of the columns farthest beyond their thresholds first, and each column's score
    over its threshold among its results.

    Args:
        snapshot: of the columns in the document.
        document: of `monitoring.drift.compare`.
        digest: of the version's package; synthetic: whether it was trained on synthetic cells.
    """
    from evidently.core.report import Snapshot

    model = snapshot.to_snapshot_model()
    drawn = {column_of(result): result.get_widgets() for result in model.metric_results.values()}
    columns = by_distance(document["columns"])
    model.widgets = [*_head(document, columns, digest=digest, synthetic=synthetic)]
    for column in columns:
        model.widgets += drawn[column["name"]]
    model.metric_results = model.metric_results | _ratios(columns, document["version"])
    return Snapshot.load_model(model)


def column_of(result: Any) -> str:
    """The column that a result of Evidently's is of; one that names none is of the embedding."""
    return str(result.metric_value_location.metric.params.get("column", EMBEDDING_SCORE))


def by_distance(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns of a report with their `ratio`, the score over the threshold, the largest first."""
    rows = [column | {"ratio": column["score"] / column["threshold"]} for column in columns]
    return sorted(rows, key=lambda row: -row["ratio"])


def _head(
    document: dict[str, Any], columns: list[dict[str, Any]], *, digest: str, synthetic: bool
) -> list["BaseWidgetInfo"]:
    from evidently.legacy.renderers.html_widgets import CounterData, counter, table_data

    window = document["window"]
    basis = document.get("basis")
    moved = [titled(column["name"]) for column in columns if column["drifted"]]
    facts = [
        ("version", document["version"] + (", trained on synthetic cells" if synthetic else "")),
        ("package", digest),
        ("window", f"{words(window, document['compared'])}, {window['since']} to {window['until']}"),
        *([("caution", window["caution"])] if window["caution"] else []),
        *([("thresholds", basis["said"])] if basis else []),
        *([("caution", basis["caution"])] if basis and basis["caution"] else []),
        (f"beyond their thresholds, {len(moved)} of {len(columns)}", ", ".join(moved) or "none"),
        *(("probable cause", _cause(cause)) for cause in document["causes"]),
    ]
    rows = [
        (titled(column["name"]), "drift" if column["drifted"] else "as known", fixed(column["ratio"], 2),
         *against(column["score"], column["threshold"]))
        for column in columns
    ]  # fmt: skip
    return [
        counter(counters=[CounterData(DISCLAIMER, "Drift" if moved else "No drift")]),
        table_data(column_names=facts[0], data=facts[1:]),
        table_data(
            title="Every column, the farthest beyond its threshold first",
            column_names=["column", "verdict", "score over threshold", "score", "threshold"],
            data=rows,
        ),
    ]


def _cause(cause: dict[str, str]) -> str:
    return f"{cause['cause']}. {cause['changed']}. Check first: {cause['check']}. ({cause['evidence']})"


def _ratios(columns: list[dict[str, Any]], version: str) -> dict[str, Any]:
    from evidently.core.metric_types import MetricConfig, SingleValue

    found = {}
    values = [({"column": column["name"], "version": version}, column["ratio"]) for column in columns]
    for parameters, value in [*values, ({"column": THRESHOLD}, 1.0)]:
        identity = f"{SCORE_OVER_THRESHOLD}:{parameters['column']}"
        result = SingleValue(value=value, display_name=f"Score over threshold of {parameters['column']}")
        params = {"type": f"evidently:metric_v2:{SCORE_OVER_THRESHOLD}", **parameters}
        result.set_metric_location(MetricConfig(metric_id=identity, params=params))
        found[identity] = result
    return found
