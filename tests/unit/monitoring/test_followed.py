"""Which version an alias stands on for who only looks: by a trusted word, and as before where there is none."""

from types import SimpleNamespace

import mlflow
import pytest

from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    PackageError,
    PolicyError,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
)
from blastwatch.registry import Registry
from monitoring.followed import Followed
from tests.packages import make_package
from tests.service_packages import give_alias

pytestmark = pytest.mark.usefixtures("pauses")


class Said:
    """Stands for the registry: says of the alias what it is told to say."""

    def __init__(self):
        self.by_word = self.by_alias = None

    def proven(self, _alias):
        return self._say(self.by_word)

    def entry(self, _alias):
        return self._say(self.by_alias)

    def _say(self, what):
        if isinstance(what, Exception):
            raise what
        return SimpleNamespace(version=what[0], word=what[1])


@pytest.fixture
def registry():
    return Said()


@pytest.fixture
def followed(registry):
    return Followed(registry, "champion", lambda entry: entry.version)


def test_a_promotion_that_is_just_being_written_is_none_behind_the_registrys_back(registry, followed, pauses):
    registry.by_word = ("1", 4)
    followed.look()
    registry.by_word = AliasMoved("between the two writes")
    pauses.append(lambda: setattr(registry, "by_word", ("2", 5)))
    assert (followed.look(), followed.problem) == ("2", "")


@pytest.mark.parametrize(
    "error",
    [
        AliasMoved("by hand"),
        SignatureInvalid("by nobody"),
        RegistryUnreachable("away"),
        PackageError("damaged"),
        AliasNotSet("taken away by hand"),
        PolicyError("half written"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_was_proven_stays_until_another_version_is(registry, followed, error):
    registry.by_word, registry.by_alias = ("1", 4), ("2", 0)
    assert (followed.look(), followed.problem) == ("1", "")
    registry.by_word = error
    assert followed.look() == followed.look() == "1"
    assert followed.problem.endswith(f"{error} Version 1 is watched as before.")
    registry.by_word = ("2", 5)
    assert (followed.look(), followed.problem) == ("2", "")


def test_what_cannot_be_taken_leaves_the_one_before(registry):
    def take(entry):
        if entry.version == "2":
            raise PackageError("a file was changed")
        return entry.version

    followed = Followed(registry, "champion", take)
    registry.by_word = ("2", 1)
    with pytest.raises(PackageError):
        followed.look()
    registry.by_word = ("1", 2)
    assert followed.look() == "1"
    registry.by_word = ("2", 3)
    assert (followed.look(), followed.problem) == ("1", "a file was changed Version 1 is watched as before.")


def test_without_the_trusted_keys_the_alias_is_followed_and_that_is_said(registry, followed):
    registry.by_word = SignatureInvalid("The key is not among the trusted ones.")
    for version in ("1", "2"):
        registry.by_alias = (version, 0)
        assert followed.look() == version
        assert (
            followed.problem.startswith("The key is not") and f"Version {version} is watched, unp" in followed.problem
        )
    registry.by_alias = RegistryUnreachable("away")
    assert (followed.look(), followed.problem) == ("2", "away Version 2 is watched as before.")


def test_a_policy_that_cannot_be_read_is_no_other_kind_of_error_at_a_start(registry, followed):
    """A look that ends with it would end the whole look of the monitor, where only a challenger is asked for."""
    registry.by_word = PolicyError("half written")
    with pytest.raises(RegistryError, match="not known: half written"):
        followed.look()


def test_nothing_known_is_an_error_and_a_withdrawal_forgets(registry):
    followed = Followed(registry, "challenger", lambda entry: entry.version, withdrawn=True)
    registry.by_word = RegistryUnreachable("away")
    with pytest.raises(RegistryUnreachable):
        followed.look()
    registry.by_word = ("1", 1)
    assert followed.look() == "1"
    registry.by_word = AliasNotSet("nobody")
    with pytest.raises(AliasNotSet):
        followed.look()
    registry.by_word = RegistryUnreachable("away")
    with pytest.raises(RegistryUnreachable):
        followed.look()


def test_an_alias_moved_by_hand_or_put_back_with_its_old_word_moves_nothing(settings, tmp_path):
    client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    registry, entries = Registry(settings), []
    for seed in (1, 2):
        run = client.create_run(experiment).info.run_id
        entries.append(registry.register(make_package(tmp_path / str(seed), run_id=run, seed=seed)))
    followed = Followed(registry, "champion", lambda entry: entry.version)
    give_alias(registry, entries[0])
    old = client.get_registered_model("blastwatch").tags["blastwatch.alias.champion"]
    assert (followed.look(), followed.problem) == ("1", "")
    client.set_registered_model_alias("blastwatch", "champion", "2")
    assert followed.look() == "1" and "blastwatch registry restore" in followed.problem
    started = Followed(registry, "champion", lambda entry: entry.version)  # since then
    assert started.look() == "1" and started.problem.endswith("Version 1 is watched, by that word.")
    give_alias(registry, entries[0])
    assert (started.look(), started.problem) == ("1", "")
    client.delete_registered_model_alias("blastwatch", "champion")
    started = Followed(registry, "champion", lambda entry: entry.version)
    assert followed.look() == started.look() == "1" and started.problem.endswith("is watched, by that word.")
    with pytest.raises(AliasNotSet):
        Followed(registry, "champion", lambda entry: entry.version, withdrawn=True).look()
    with pytest.raises(AliasNotSet):
        Followed(registry, "challenger", lambda entry: entry.version).look()
    client.set_registered_model_alias("blastwatch", "champion", "1")
    give_alias(registry, entries[1])
    assert (followed.look(), followed.problem) == ("2", "")
    client.set_registered_model_tag("blastwatch", "blastwatch.alias.champion", old)
    client.set_registered_model_alias("blastwatch", "champion", "1")
    assert registry.proven("champion").version == "1"  # to who knows no newer word
    assert followed.look() == "2" and "an old word was put back" in followed.problem
