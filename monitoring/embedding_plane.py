"""Evidently's drift of embeddings, drawn on the version's own axes.

Evidently's own drawing of `EmbeddingsDrift` is a t-SNE of window and reference: it takes more time than all the rest
of a report, comes out differently each time, and no two reports share its axes. What Blastwatch stores of an embedding
are its principal axes already, of the training cells and the same for the life of a version, so the first two are the
plane on which one morning can be held against the next.

Evidently looks a metric's calculation up by the metric's class and keeps the one that was defined last: so its custom
metrics are made. The metric itself stays Evidently's: its pages read such runs without this module.
"""

from typing import Any

import numpy as np
import pandas as pd
from evidently.core.datasets import Dataset
from evidently.core.metric_types import SingleValue, SingleValueCalculation
from evidently.core.report import Context
from evidently.legacy.options import ColorOptions
from evidently.legacy.renderers.html_widgets import CounterData, WidgetSize, counter, plotly_figure
from evidently.metrics.embeddings import EmbeddingsDrift

DRAWN = 1000  # cells of each side


class EmbeddingPlane(SingleValueCalculation[EmbeddingsDrift]):  # type: ignore[misc]  # Evidently is untyped
    """The score is the metric's own method's, unchanged."""

    def calculate(self, context: Context, current_data: Dataset, reference_data: Dataset | None) -> SingleValue:
        if reference_data is None or self.metric.drift_method is None:
            raise ValueError("Expected a reference and a method for the drift of embeddings.")
        columns = list(context.data_definition.embeddings[self.metric.embeddings_name])
        # As Evidently does for other columns: a cell without an embedding is no part of the comparison.
        current, reference = (data.as_dataframe()[columns].dropna() for data in (current_data, reference_data))
        score, drifted, method = self.metric.drift_method(current, reference)
        verdict = f"Data drift {'detected' if drifted else 'not detected'}. Drift detection method: {method}."
        result = self.result(float(score))
        result.widget = [
            counter(counters=[CounterData(f"{verdict} Drift score: {score:.3f}", self.display_name())]),
            plotly_figure(title="", figure=plane(current, reference), size=WidgetSize.FULL),
        ]
        return result

    def display_name(self) -> str:
        return f"Drift in embeddings: {self.metric.embeddings_name}"


def plane(current: pd.DataFrame, reference: pd.DataFrame) -> Any:
    """A figure of both sides' cells on the first two axes; at most `DRAWN` of each, evenly spaced."""
    from plotly.graph_objects import Figure, Scatter

    colors, figure = ColorOptions(), Figure()
    for name, cells, color in (
        ("reference", reference, colors.get_reference_data_color()),
        ("current", current, colors.get_current_data_color()),
    ):
        chosen = cells.iloc[np.linspace(0, len(cells) - 1, min(len(cells), DRAWN)).round().astype(np.intp), :2]
        figure.add_trace(
            Scatter(
                x=chosen.iloc[:, 0].tolist(), y=chosen.iloc[:, 1].tolist(), mode="markers", name=name,
                marker={"color": color, "size": 5, "opacity": 0.6},
            )
        )  # fmt: skip
    figure.update_layout(xaxis_title="first principal axis", yaxis_title="second principal axis")
    return figure
