import mlflow.telemetry.utils

from blastwatch.cli import QUIET


def test_mlflow_reports_to_nobody_even_where_the_user_wrote_do_not_track_in_another_way(monkeypatch):
    """MLflow takes `DO_NOT_TRACK=1` for leave to report."""
    for name, value in (QUIET | {"DO_NOT_TRACK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mlflow.telemetry.utils, "_IS_IN_CI_ENV_OR_TESTING", False)
    assert mlflow.telemetry.utils.is_telemetry_disabled()
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    assert not mlflow.telemetry.utils.is_telemetry_disabled()
    monkeypatch.setenv("DO_NOT_TRACK", QUIET["DO_NOT_TRACK"])
    assert mlflow.telemetry.utils.is_telemetry_disabled()
