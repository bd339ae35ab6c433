"""Packages that libraries import where they find them, though nothing here needs what they add."""

import sys

REPORTS_USE = "openvino_telemetry"
"""Reports to Google Analytics, as soon as OpenVINO or NNCF is imported and without having asked, that it was."""

DATA_FRAMES = ("pandas", "pyarrow")
"""What MLflow reads data sets with, and `mlflow-skinny` does without: 70 MiB where only the registry is asked."""


def leave_out(*names: str) -> None:
    """Let packages count as not installed in this process: every later import of one is an `ImportError`. What was
    imported before stays. Call it before the library that looks for them is imported."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # the stubs know no module that is None
