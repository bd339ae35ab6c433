import mlflow
import pytest

from blastwatch import history, promotion
from blastwatch.errors import (
    AliasNotSet,
    PackageError,
    PromotionRefused,
    RegistryError,
    RegistryUnreachable,
    UsageError,
    VersionNotFound,
)
from blastwatch.registry import Registry, parse_ref
from blastwatch.settings import load
from tests.packages import make_package


@pytest.fixture
def registry(settings):
    return Registry(settings)


@pytest.fixture
def new_run(settings):
    """Starts training runs in the embedded store."""
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    return lambda: client.create_run(experiment).info.run_id


@pytest.fixture
def register(registry, new_run, tmp_path):
    """Registers a package whose stored answers are right to a given share."""
    made = []

    def make(right=0.9, **kwargs):
        made.append(tmp_path / f"package{len(made)}")
        return registry.register(make_package(made[-1], run_id=new_run(), right=right, seed=len(made), **kwargs))

    return make


def served(registry):
    return registry.entry("champion").version


def test_register_makes_a_candidate_and_is_idempotent(registry, register, tmp_path):
    entry = register()
    assert (entry.version, entry.aliases, entry.synthetic) == ("1", ["candidate"], True)
    assert entry.metrics == {"weighted_f1": 0.9}
    again = registry.register(tmp_path / "package0")
    assert again.version == "1" and len(registry.entries()) == 1
    assert [record.action for record in registry.records()] == ["register"]


def test_nothing_in_the_logged_model_is_a_pickle(settings, register):
    register()
    names = [path.name for path in settings.artifacts.rglob("*") if path.is_file()]
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".joblib"))]


def test_promote_roll_back_and_history(registry, register):
    first, second = register(0.9), register(0.95)
    assert promotion.promote(registry, "1", reason="first", cells=None).promoted
    assert served(registry) == first.version
    assert promotion.promote(registry, "candidate", reason="better", cells=None).promoted
    assert served(registry) == second.version
    between = registry.records()[-1].time
    assert promotion.rollback(registry, reason="wrong stain").version == first.version
    assert served(registry) == first.version
    told = [(r.action, r.version, r.before, r.after, r.why) for r in registry.records()]
    assert told[2:] == [
        ("promote", "1", "", "1", "first"),
        ("promote", "2", "1", "2", "better"),
        ("rollback", "1", "2", "1", "wrong stain"),
    ]
    at = history.until(registry.records(), history.parse_time(between))
    assert at[-1].after == "2"
    assert registry.entry("champion").promoted_by == "tester"
    with pytest.raises(AliasNotSet, match="none to roll back to"):
        promotion.rollback(registry, reason="again")


def test_a_worse_version_is_refused_and_the_refusal_is_kept(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.87)
    result = promotion.promote(registry, "2", reason="", cells=None)
    assert not result.promoted
    gate = result.gates[-1]
    assert gate.value == pytest.approx(-0.03, abs=1e-3) and gate.limit == -0.02
    with pytest.raises(PromotionRefused, match="not worse than the champion"):
        result.check()
    assert served(registry) == "1"
    assert registry.records()[-1].action == "refuse"


def test_a_slightly_worse_version_within_the_margin_passes(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.89)
    assert promotion.promote(registry, "2", reason="", cells=None).promoted


def test_other_test_cells_need_the_cells(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.9, cells=120)
    result = promotion.promote(registry, "2", reason="", cells=None)
    assert not result.promoted and "--cells DIR" in str(result.gates[-1].value)


def test_a_split_by_image_is_refused(registry, register):
    register(leaky=True)
    result = promotion.promote(registry, "1", reason="", cells=None)
    assert [gate.name for gate in result.gates if not gate.passed] == ["split by patient"]


def test_a_file_changed_after_registration_is_refused(settings, registry, register):
    register()
    [card] = settings.artifacts.rglob("card.md")
    card.write_text("# Better than it is\n")
    with pytest.raises(PackageError, match="card.md was changed"):
        registry.fetch("1")
    result = promotion.promote(registry, "1", reason="", cells=None)
    assert [(gate.name, gate.passed) for gate in result.gates] == [("digests", False)]
    assert "card.md was changed" in promotion.verify(registry)[0]


def test_a_local_copy_that_was_changed_is_refused(settings, registry, register):
    entry = register()
    kept = registry.fetch("1").package.folder
    assert kept == settings.packages / entry.digest
    (kept / "model.json").write_text("{}")
    with pytest.raises(PackageError, match=r"model.json was changed"):
        registry.fetch("1")


def test_an_alias_moved_behind_the_back_is_reported(settings, registry, register):
    register()
    promotion.promote(registry, "1", reason="", cells=None)
    register()
    assert promotion.verify(registry) == []
    mlflow.MlflowClient(settings.tracking_uri).set_registered_model_alias("blastwatch", "champion", "2")
    assert "history says 1" in promotion.verify(registry)[0]
    with pytest.raises(RegistryError, match="behind the registry's back"):
        promotion.rollback(registry, reason="")


def test_promoting_the_champion_again_is_a_usage_error(registry, register):
    register()
    promotion.promote(registry, "1", reason="", cells=None)
    with pytest.raises(UsageError, match="already is the champion"):
        promotion.promote(registry, "1", reason="", cells=None)


def test_empty_registry_says_what_to_do(registry):
    assert registry.entries() == []
    with pytest.raises(AliasNotSet, match="blastwatch registry register"):
        registry.fetch("champion")
    with pytest.raises(VersionNotFound, match="no version 7"):
        registry.entry("7")


def test_a_run_of_another_store_is_named(registry, new_run, tmp_path):
    with pytest.raises(RegistryError, match="training run elsewhere"):
        registry.register(make_package(tmp_path / "p", run_id="elsewhere"))


def test_an_unreachable_server_is_said_quickly(tmp_path, free_port):
    uri = f"http://127.0.0.1:{free_port()}"
    registry = Registry(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    with pytest.raises(RegistryUnreachable, match="blastwatch up"):
        registry.entries()


@pytest.mark.parametrize(
    ("ref", "found"),
    [("champion", "champion"), ("3", "3"), ("models:/blastwatch@champion", "champion"), ("models:/blastwatch/3", "3")],
)
def test_refs(ref, found):
    assert parse_ref(ref, "blastwatch") == found


@pytest.mark.parametrize("ref", ["production", "models:/other@champion", "models:/blastwatch", "-1", "../3", ""])
def test_wrong_refs(ref):
    with pytest.raises(UsageError, match="Expected"):
        parse_ref(ref, "blastwatch")
