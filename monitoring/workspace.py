"""The Evidently workspace: the monitor's runs, browsed with `evidently ui --workspace PATH`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch import DISCLAIMER
from monitoring.scores import EMBEDDING_SCORE, LABEL, METHODS, PROBABILITY

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

PROJECT = "Blastwatch drift"
KEEP_RUNS = 200  # 0.9 MB each, and the dashboard reads every run; older ones live on as JSON reports

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Answers", "Probability of a blast, and the share of each label", (PROBABILITY, LABEL)),
    ("Stain and light", "Optical density, brightness", ("od_red", "od_green", "od_blue", "brightness")),
    ("Shape", "Size and outline of the cells", ("cell_area", "cell_height", "cell_width", "elongation")),
    ("Sharpness", "Detail within the cells", ("focus", "contrast", "dark_share")),
)


def open_workspace(path: Path) -> None:
    """Make the workspace and its project with a dashboard, where they are missing."""
    _project(path)


def add_run(path: Path, snapshot: "Snapshot", *, name: str) -> None:
    """Add a report's run, without the data it was made of, and drop the oldest beyond `KEEP_RUNS`."""
    workspace, project = _project(path)
    workspace.add_run(project.id, snapshot, include_data=False, name=name)
    # The ids are UUIDs of version 7, which sort by the time they were made.
    for old in sorted(workspace.list_runs(project.id), key=str)[:-KEEP_RUNS]:
        workspace.delete_run(project.id, old)


def _project(path: Path) -> tuple[Any, Any]:
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import line_plot_panel
    from evidently.ui.workspace import Workspace

    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Workspace.create(str(path))
    found = workspace.search_project(PROJECT)
    if found:
        return workspace, found[0]
    project = workspace.create_project(
        PROJECT, description=f"Predictions against each version's reference cells. {DISCLAIMER}"
    )
    for title, subtitle, columns in _PANELS:
        values = [
            PanelMetric(legend=name, metric="ValueDrift", metric_labels={"column": name})
            for name in columns
            if name in METHODS
        ]
        project.dashboard.add_panel(line_plot_panel(title=title, description=subtitle, values=values, size="half"))
    embedding = [PanelMetric(legend=EMBEDDING_SCORE, metric="EmbeddingsDrift")]
    project.dashboard.add_panel(
        line_plot_panel(title="Embedding", description="Maximum mean discrepancy", values=embedding, size="full")
    )
    return workspace, project
