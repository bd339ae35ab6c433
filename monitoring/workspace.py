"""The Evidently workspace: the monitor's runs, browsed with `evidently ui --workspace PATH`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from blastwatch import DISCLAIMER
from blastwatch.errors import BlastwatchError
from monitoring.directions import DIRECTIONS
from monitoring.report_page import SCORE_OVER_THRESHOLD, THRESHOLD
from monitoring.scores import EMBEDDING_SCORE, LABEL, PROBABILITY

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

PROJECT = "Blastwatch drift"
SNAPSHOTS, DASHBOARD = "snapshots", "dashboard.json"  # the runs and panels inside a project, as Evidently names them
KEEP_RUNS = 200  # 0.9 MB each, and the dashboard reads every run; older ones live on as JSON reports
_COARSEST = 2 * 10**9  # nanoseconds: no filesystem dates its files by longer steps

ABOUT = (
    "Drift scores over their thresholds, of every report: from 1 upwards it is drift. Each version has thresholds of "
    "its own, and so lines of its own. What a report compared stands in it, under Reports."
)
PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("the answers", "probability of a blast, label, embedding", (PROBABILITY, LABEL, EMBEDDING_SCORE)),
    ("stain and light", "optical density, brightness", ("od_red", "od_green", "od_blue", "brightness")),
    ("shape", "size and outline of the cells", ("cell_area", "cell_height", "cell_width", "elongation")),
    (
        "sharpness",
        "detail within the cells, and what a camera adds",
        ("chroma_noise", "focus", "contrast", "dark_share"),
    ),
    ("known causes", "along the directions in which changes of stain, light and others move cells", DIRECTIONS),
)
"""Of what, in more words, and the columns."""


class WorkspaceFailed(BlastwatchError):
    """A report could not be put beside the others in Evidently's workspace."""


def open_workspace(path: Path) -> None:
    """Make the workspace and its project with a dashboard, where they are missing. Raises `WorkspaceFailed`."""
    with _refusals(path), _alone(path):
        _project(path)


def add_run(path: Path, snapshot: "Snapshot", *, name: str) -> None:
    """Add a report's run, without the data it was made of, and drop the first that were added beyond `KEEP_RUNS`.

    Several processes may add at once, while Evidently's pages read: Evidently writes a run in place and its reader
    fails on half of one, so each run is written aside and moved in whole.

    Raises:
        WorkspaceFailed: a file there cannot be read or written.
    """
    with _refusals(path), _alone(path) as aside:
        workspace, project = _project(path)
        scratch, twin = _project(aside)
        run = scratch.add_run(twin.id, snapshot, include_data=False, name=name)
        written = Path(SNAPSHOTS, f"{run.id}.json")
        runs = path / str(project.id) / SNAPSHOTS
        dated = {old: (runs / f"{old}.json").stat().st_mtime_ns for old in workspace.list_runs(project.id)}
        # After all that are there, also where the clock ran ahead before. The ids hold its time and keep no such order.
        moment = max([time.time_ns(), *(date + _COARSEST for date in dated.values())])
        os.utime(aside / str(twin.id) / written, ns=(moment, moment))
        (aside / str(twin.id) / written).replace(path / str(project.id) / written)
        for old in sorted(dated, key=dated.__getitem__)[: max(len(dated) + 1 - KEEP_RUNS, 0)]:
            workspace.delete_run(project.id, old)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what Evidently and the disk raise into our error: a damaged file is a ValueError or lacks a key."""
    from evidently.errors import EvidentlyError

    try:
        yield
    except (EvidentlyError, ValueError, TypeError, LookupError, OSError) as error:
        raise WorkspaceFailed(
            f"Evidently's workspace {path} does not take the report: {error!r}. The report itself is kept. Make room, "
            "or remove the folder: it is made anew."
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Only one process at a time; gives an empty folder on the same disk."""
    from filelock import FileLock

    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")), TemporaryDirectory(dir=path.parent) as aside:
        yield Path(aside)


def _project(path: Path) -> tuple[Any, Any]:
    """The workspace and its project, which is made aside and moved in whole; so is the dashboard of a project that an
    earlier Blastwatch made."""
    from evidently.ui.workspace import Workspace

    workspace = Workspace.create(str(path))
    found = workspace.search_project(PROJECT)
    if found and _drawn(found[0].dashboard.model().panels) == _drawn(_panels()):
        return workspace, found[0]
    with TemporaryDirectory(dir=path.parent) as aside:
        made = _make_project(Workspace.create(aside))
        if found:
            Path(aside, str(made.id), DASHBOARD).replace(path / str(found[0].id) / DASHBOARD)
        else:
            Path(aside, str(made.id), SNAPSHOTS).mkdir()
            Path(aside, str(made.id)).replace(path / str(made.id))
    workspace = Workspace.create(str(path))
    return workspace, workspace.search_project(PROJECT)[0]


def _make_project(workspace: Any) -> Any:
    project = workspace.create_project(
        PROJECT, description=f"Predictions against each version's reference cells. {DISCLAIMER}"
    )
    for panel in _panels():
        project.dashboard.add_panel(panel)
    return project


def _panels() -> list[Any]:
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import line_plot_panel, text_panel

    def line(column: str, legend: str) -> Any:
        return PanelMetric(legend=legend, metric=SCORE_OVER_THRESHOLD, metric_labels={"column": column})

    panels = [text_panel(title=DISCLAIMER, description=ABOUT)]
    for title, words, columns in PANELS:
        values = [line(name, "{{column}}, version {{version}}") for name in columns]
        values.append(line(THRESHOLD, THRESHOLD))
        title = f"Drift score of {title}, over its threshold"
        panels.append(line_plot_panel(title=title, description=words.capitalize(), values=values, size="full"))
    return panels


def _drawn(panels: list[Any]) -> list[dict[str, Any]]:
    """What panels show, without the identities that Evidently gives them."""
    return [panel.dict(exclude={"id"}) for panel in panels]
