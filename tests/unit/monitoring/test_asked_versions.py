"""Which version the monitor's commands are about: an alias counts on a signed word, as for services."""

import mlflow
import pytest
from click.testing import CliRunner

from blastwatch.errors import AliasMoved, AliasNotSet, SignatureInvalid
from monitoring.asked import asked
from monitoring.commands import drift
from monitoring.label_commands import labels
from monitoring.shadow_commands import shadow
from tests.service_packages import champion_and_another, give_alias

pytestmark = pytest.mark.usefixtures("pauses")

NAME = "blastwatch"
COMMANDS = [
    (drift, "report"),
    (drift, "patients"),
    (drift, "calibrate"),
    (labels, "report"),
    (labels, "review", "--out", "review.csv"),
    (shadow, "report"),
]


@pytest.fixture
def client(settings):
    return mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)


@pytest.fixture
def versions(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    return champion_and_another(settings, tmp_path)


def test_no_command_is_about_the_version_of_an_alias_that_was_moved_by_hand(versions, client, settings):
    assert [asked(settings, ref).entry.version for ref in (None, "champion", "2")] == ["1", "1", "2"]
    client.set_registered_model_alias(NAME, "champion", "2")
    for command, *words in COMMANDS:
        found = CliRunner().invoke(command, words)
        assert isinstance(found.exception, AliasMoved), (words, found.output)
        assert "stands on version 2 but the last signed word" in str(found.exception)
        assert "Put it back: blastwatch registry restore" in str(found.exception)
    with pytest.raises(AliasMoved):
        asked(settings, f"models:/{NAME}@champion")
    assert [asked(settings, ref).entry.version for ref in ("1", "2", "candidate")] == ["1", "2", "2"]


def test_an_alias_without_a_signed_word_is_said_and_a_number_goes_without(versions, client, settings):
    with pytest.raises(AliasNotSet):
        asked(settings, "challenger")
    client.set_registered_model_alias(NAME, "challenger", "2")
    with pytest.raises(SignatureInvalid, match=r"set without a signed word .* name it by its number: --ref NUMBER"):
        asked(settings, "challenger")
    assert asked(settings, "2").entry.version == "2"
    found = CliRunner().invoke(shadow, ["report"])
    assert isinstance(found.exception, SignatureInvalid) and str(found.exception).endswith("--challenger NUMBER")


def test_a_promotion_that_is_just_being_written_is_waited_for(versions, client, settings, pauses):
    client.set_registered_model_alias(NAME, "champion", "2")
    pauses.append(lambda: give_alias(versions, versions.entry("2")))
    assert asked(settings, None).entry.version == "2"
