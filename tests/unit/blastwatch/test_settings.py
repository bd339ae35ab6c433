import getpass
import os
import re
from pathlib import Path

import pytest

from blastwatch.errors import SettingsError
from blastwatch.settings import NO_SETTINGS, TABLE, load, markdown_table

ROOT = Path(__file__).parents[3]


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
        ("BLASTWATCH_HOST", "cells.lab"),
        ("BLASTWATCH_HOST", "127.0.0.1:3000"),
        ("BLASTWATCH_HOST", ""),
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


PATHS = [
    setting.variable
    for setting in TABLE
    if setting.variable.endswith(("_HOME", "_POLICY", "_KEY", "_KEYS", "_SALT", "_LOG")) and setting.name != "api_key"
]


@pytest.mark.parametrize("variable", PATHS)
def test_a_path_below_the_home_of_nobody_is_refused(variable):
    assert len(PATHS) == 7
    with pytest.raises(SettingsError, match=f"^{variable}='~nosuch/x' cannot be used: ~nosuch is nobody's home here"):
        load({variable: "~nosuch/x"})


def test_an_empty_home_is_not_the_folder_that_happens_to_be_the_current_one():
    with pytest.raises(SettingsError, match="^BLASTWATCH_HOME='' cannot be used: a path is needed"):
        load({"BLASTWATCH_HOME": ""})
    others = dict.fromkeys(set(PATHS) - {"BLASTWATCH_HOME"}, "")
    assert load(others) == load({})


@pytest.mark.parametrize("variable", PATHS)
def test_a_path_is_expanded_and_whole(variable, tmp_path, monkeypatch):
    name = next(setting.name for setting in TABLE if setting.variable == variable)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert str(getattr(load({variable: "~/a/b"}), name)) == f"{tmp_path}/me/a/b"
    assert str(getattr(load({variable: "a/b"}), name)) == f"{tmp_path}/a/b"


@pytest.mark.parametrize("word", ["-", "off"])
def test_words_for_the_audit_log_are_no_paths(word):
    assert load({"BLASTWATCH_AUDIT_LOG": word}).audit_log == word


def test_names_and_variables_are_unique():
    assert len({s.name for s in TABLE}) == len({s.variable for s in TABLE}) == len(TABLE)


def test_the_documented_table_is_the_real_one():
    text = (ROOT / "docs" / "settings.md").read_text()
    assert markdown_table() in text, "docs/settings.md is out of date"


@pytest.mark.parametrize(("variable", "value", "said"), [
    ("BLASTWATCH_PORT", "http", "a whole number is needed"),
    ("BLASTWATCH_WORKERS", "2.5", "a whole number is needed"),
    ("BLASTWATCH_THREADS", "many", "a whole number is needed"),
    ("BLASTWATCH_ANSWER_CACHE", "all", "a whole number is needed"),
    ("BLASTWATCH_DRIFT_INTERVAL", "often", "a number is needed"),
    ("BLASTWATCH_KEEP_SHARE", "half", "a number is needed"),
    ("BLASTWATCH_RATE_LIMIT", "none", "a number is needed"),
])  # fmt: skip
def test_what_is_no_number_is_said_in_words(variable, value, said):
    with pytest.raises(SettingsError, match=f"^{variable}='{value}' cannot be used: {said}\\.") as error:
        load({variable: value})
    assert "literal" not in str(error.value) and "convert" not in str(error.value)


@pytest.mark.parametrize(("value", "bound"), [
    ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("[::1]", "::1"), ("0:0::1", "::1"),
])  # fmt: skip
def test_an_address_is_the_one_that_can_be_bound(value, bound):
    assert load({"BLASTWATCH_HOST": value}).host == bound


@pytest.mark.parametrize(("variable", "most", "said"), [
    ("BLASTWATCH_RETENTION_DAYS", 36_500, "with their labels; 0: never"),
    ("BLASTWATCH_IMAGE_DAYS", 36_500, "0: with their predictions"),
    ("BLASTWATCH_PERFORMANCE_DAYS", 36_500, "days in a window"),
    ("BLASTWATCH_DRIFT_PATIENT_MINUTES", 52_560_000, "minutes after a patient's first cell"),
])  # fmt: skip
def test_a_span_beyond_all_dates_is_refused(variable, most, said):
    """It ended the monitor at each look, with a traceback."""
    load({variable: str(most)})
    with pytest.raises(SettingsError, match=f"cannot be used: at most {most} is possible\\. .*{said}"):
        load({variable: str(most + 1)})


def test_a_wrong_value_comes_with_what_it_sets():
    with pytest.raises(SettingsError, match=r"is needed\. What it sets: which pictures of answered cells are stored: "):
        load({"BLASTWATCH_KEEP_IMAGES": "always"})


def test_an_address_that_cannot_be_used_is_shown_without_its_account():
    with pytest.raises(SettingsError, match="BLASTWATCH_TRACES='ftp://spans.lab' cannot be used"):
        load({"BLASTWATCH_TRACES": "ftp://pat:s3cret@spans.lab"})


@pytest.mark.parametrize(("names", "said"), [
    (["BLASTWATCH_PROT"], "but got BLASTWATCH_PROT (is BLASTWATCH_PORT meant?). Rename or unset it."),
    (["BLASTWATCH_XYZZY"], "but got BLASTWATCH_XYZZY. Rename"),
    (["BLASTWATCH_XYZZY", "BLASTWATCH_DRIFT_WINDOWS"], "(is BLASTWATCH_DRIFT_WINDOW meant?), BLASTWATCH_XYZZY. Rename"),
])  # fmt: skip
def test_a_name_that_is_no_setting_is_said_and_its_value_is_not(names, said):
    with pytest.raises(SettingsError, match=re.escape(said)) as error:
        load(dict.fromkeys(names, "s3cret"))
    assert "s3cret" not in str(error.value)


def test_what_is_set_for_others_is_no_mistake():
    load(dict.fromkeys(NO_SETTINGS, "1") | {"BLASTWATCH": "1", "blastwatch_port": "1"})


@pytest.mark.parametrize("variable", ["BLASTWATCH_ACTOR", "MLFLOW_TRACKING_USERNAME"])
@pytest.mark.parametrize("name", ["tom " + "x" * 252, "f\udcfcr", "tom\x1b[31m"])
def test_a_name_that_no_entry_of_the_history_can_hold_is_refused(variable, name):
    with pytest.raises(SettingsError, match="Expected a name of at most 255 printable characters") as error:
        load({variable: name})
    assert str(error.value).encode() and len(str(error.value)) < 300


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found"), OSError("No username set")])
def test_a_user_without_a_name_goes_by_the_number(monkeypatch, error):
    def nobody():
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert load({}).actor == f"uid {os.getuid()}"
    assert load({"BLASTWATCH_ACTOR": "tom"}).actor == "tom"


def test_every_variable_of_the_sources_is_a_setting_or_named_as_none():
    """What one of our processes tells another must not stop the other's start."""
    folders = [ROOT / name for name in ("blastwatch", "monitoring", "serving", "training", "deploy")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", "")]
    texts = [path.read_text() for path in paths if path.is_file()]
    named = {name for text in texts for name in re.findall(r"\bBLASTWATCH_[A-Z_]*[A-Z]", text)}
    assert named - {setting.variable for setting in TABLE} == {*NO_SETTINGS}
