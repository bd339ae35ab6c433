"""What a person asks for in a way that cannot be answered is said before anything is read."""

import json

import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError
from monitoring.commands import drift
from monitoring.label_commands import labels

REVERSED = ["--since", "2026-11-29T08:00", "--until", "2026-11-29T07:00"]


@pytest.fixture
def run(settings, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    return lambda command, *words: CliRunner().invoke(command, [str(word) for word in words])


@pytest.mark.parametrize(
    "call", [(drift, "report"), (labels, "report"), (labels, "review", "--out", "review.csv")], ids=str
)
def test_a_span_that_ends_before_it_begins(run, call):
    found = run(*call, *REVERSED)
    assert found.exit_code == 2 and "Expected --until after --since but got" in found.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [("id;label\n1;all\n", "its first line is 'id;label'"), ("", "it is empty"), ("import os\n", "'import os'")],
)
def test_a_file_of_labels_in_another_form(run, tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    found = run(labels, "add", tmp_path / "labels.csv")
    assert isinstance(found.exception, DataError) and said in str(found.exception)


def test_one_look_where_no_version_serves_yet(run):
    found = run(drift, "watch", "--once", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["reason"].startswith("Nothing to watch yet: There is no")
