import pytest

from blastwatch.errors import SettingsError
from blastwatch.settings import TABLE, load, markdown_table


def test_defaults_are_embedded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load({})
    assert settings.home == tmp_path / ".blastwatch"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/.blastwatch/mlflow.db"
    assert settings.embedded_registry and settings.actor


def test_a_server_and_a_database_replace_the_embedded_ones():
    settings = load({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "BLASTWATCH_PREDICTIONS_URL": "postgresql://x/y"})
    assert not settings.embedded_registry
    assert settings.predictions_url == "postgresql://x/y"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BLASTWATCH_PORT", "99999"),
        ("BLASTWATCH_PORT", "http"),
        ("BLASTWATCH_ENGINE", "tensorrt"),
        ("BLASTWATCH_WORKERS", "0"),
        ("BLASTWATCH_SHADOW_SHARE", "2"),
        ("BLASTWATCH_FOLLOW_SECONDS", "-1"),
        ("BLASTWATCH_DRIFT_INTERVAL", "inf"),
        ("BLASTWATCH_THREADS", "many"),
    ],
)
def test_a_wrong_value_is_named(variable, value):
    with pytest.raises(SettingsError, match=f"{variable}='{value}'"):
        load({variable: value})


def test_names_and_variables_are_unique():
    assert len({s.name for s in TABLE}) == len({s.variable for s in TABLE}) == len(TABLE)


def test_the_documented_table_is_the_real_one():
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
    assert markdown_table() in text, "docs/settings.md is out of date"
