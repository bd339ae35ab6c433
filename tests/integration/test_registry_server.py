"""The registry for a team: MLflow's server and the history on PostgreSQL, several writers, accounts and keys."""

import os
import shutil
import warnings
from contextlib import closing

import mlflow
import pytest

from blastwatch import history, promotion
from blastwatch.errors import NotPermitted, RegistryBusy, RegistryError, SignatureInvalid
from blastwatch.ledger import Ledger
from blastwatch.processes import Processes
from blastwatch.registry import Registry
from blastwatch.settings import load
from blastwatch.verification import verify
from tests.keys import add_key, private_of
from tests.packages import make_package
from tests.policies import lenient
from tests.promoters import BACK, promote_at_once
from tests.running import post

pytestmark = [pytest.mark.system, pytest.mark.slow]

PROMOTERS = 20
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def clean(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BLASTWATCH_", "MLFLOW_"))}
    return kept | QUIET | variables


def server(commands, port, backend, artifacts, *more):
    return [
        str(commands / "mlflow"), "server",
        "--backend-store-uri", backend.replace("postgresql:", "postgresql+psycopg:"),
        "--artifacts-destination", artifacts.as_uri(), "--serve-artifacts", "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1", *more,
    ]  # fmt: skip


def start_run(uri):
    client = mlflow.MlflowClient(uri, uri)
    known = client.get_experiment_by_name("team")
    return client.create_run(known.experiment_id if known else client.create_experiment("team")).info.run_id


def refuses_sources_that_lead_elsewhere(uri):
    """CVE-2025-11201: MLflow's server takes no version whose files it was not given (see tests/unit/blastwatch)."""
    run = start_run(uri)
    for source in (
        "/etc",
        "file:///etc",
        "file://localhost/etc",
        "mlflow-artifacts:/../../etc",
        f"runs:/{run}/../../etc",
    ):
        body = {"name": "blastwatch", "source": source, "run_id": run}
        answer = post(f"{uri}/api/2.0/mlflow/model-versions/create", json=body, timeout=30)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), source


def test_twenty_promoters_at_once(postgres, free_port, tmp_path, commands):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    variables = {
        "BLASTWATCH_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": uri,
        "BLASTWATCH_HISTORY_URL": postgres.database("history"), "BLASTWATCH_POLICY": str(lenient(tmp_path)),
    }  # fmt: skip
    with Processes(clean(), tmp_path / "logs") as children:
        children.start("mlflow", server(commands, port, postgres.database("mlflow"), tmp_path / "artifacts"))
        children.wait_for("mlflow", f"{uri}/health")
        registry = Registry(load(variables))
        for seed in range(3):
            registry.register(make_package(tmp_path / f"package{seed}", run_id=start_run(uri), seed=seed))
        before = len(registry.records())
        wanted = [("1", "2", "3", BACK)[number % 4] for number in range(PROMOTERS)]
        said = promote_at_once(wanted, QUIET | variables)
        records = registry.records()
        assert [record.number for record in records] == list(range(1, len(records) + 1))
        # Every call either left an entry or was told why not.
        assert len(records) - before + len(said) == PROMOTERS
        assert len({record.who for record in records[before:]}) > 2
        assert registry.store.model().aliases == history.aliases(records)
        assert verify(registry).faults == []
        registry.ledger.close()
        refuses_sources_that_lead_elsewhere(uri)


def test_who_may_only_read_reads_the_history(postgres):
    url = postgres.database("readable")
    with (
        closing(Ledger(url, "blastwatch")) as writer,
        closing(Ledger(url.replace("tester", "reader"), "blastwatch")) as reader,
    ):
        assert writer.rows() == []
        postgres.run("readable", "CREATE ROLE reader LOGIN", "GRANT SELECT ON history TO reader")
        assert reader.rows() == []


def test_a_lock_whose_connection_died_ends_with_it_and_undoes_nothing(postgres):
    url = postgres.database("history")
    ledger, other = (Ledger(url, "blastwatch", lock_seconds=0.2) for _ in range(2))
    kill = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
    done = []
    with ledger.lock():
        with pytest.raises(RegistryBusy), other.lock():
            pass
        postgres.run("history", kill)
        done.append(True)
    with pytest.raises(ValueError, match="of the action itself"), ledger.lock():
        postgres.run("history", kill)
        raise ValueError("of the action itself")
    for each in (other, ledger, other):
        with each.lock():
            done.append(True)
    assert len(done) == 4
    ledger.close()
    other.close()


def test_a_reader_lists_a_trainer_registers_a_promoter_promotes(
    empty_store, free_port, tmp_path, monkeypatch, commands
):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\nadmin_password = a-long-password-of-a-test\n"
        f"database_uri = sqlite:///{tmp_path / 'auth.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # as docs/promotion.md advises
    )
    accounts = clean(MLFLOW_FLASK_SERVER_SECRET_KEY="of this test", MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"))
    with Processes(accounts, tmp_path / "logs") as children:
        backend = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
        children.start("mlflow", server(commands, port, backend, tmp_path / "artifacts", "--app-name", "basic-auth"))
        children.wait_for("mlflow", f"{uri}/health")
        _as(monkeypatch, "admin", "a-long-password-of-a-test")
        _make_accounts(uri)
        trusted = tmp_path / "trusted"
        add_key(trusted, "trainer", "tess")
        add_key(trusted, "promoter", "pat")

        def registry_of(name, key):
            _as(monkeypatch, name, f"password of {name}")
            return Registry(load({
                "BLASTWATCH_HOME": str(tmp_path / name), "MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": name,
                "BLASTWATCH_HISTORY_URL": f"sqlite:///{tmp_path / 'history.db'}",
                "BLASTWATCH_TRUSTED_KEYS": str(trusted), "BLASTWATCH_SIGNING_KEY": str(private_of(trusted, key)),
                "BLASTWATCH_POLICY": str(lenient(tmp_path, two_person=True)),
            }))  # fmt: skip

        tess = registry_of("tess", "tess")
        package = make_package(tmp_path / "package", run_id=start_run(uri))
        other = make_package(tmp_path / "other", run_id=start_run(uri), seed=1)
        entry = tess.register(package)
        assert (entry.registered_by, entry.aliases) == ("tess", ["candidate"])
        with pytest.raises(NotPermitted, match="tess's key is that of a trainer. Ask a promoter"):
            promotion.promote(tess, "1", reason="", cells=None)
        # With MLflow alone she gets further, but nobody believes the alias.
        mlflow.MlflowClient(uri, uri).set_registered_model_alias("blastwatch", "champion", "1")
        with pytest.raises(SignatureInvalid, match="without a signed word"):
            tess.proven("champion")

        reader = registry_of("rita", "pat")
        assert [found.version for found in reader.entries()] == ["1"]
        with pytest.raises(NotPermitted, match="does not let rita do this"):
            reader.register(other)

        pat = registry_of("pat", "pat")
        promotion.restore(pat, reason="the alias was set by hand")
        promotion.promote(pat, "1", reason="two persons saw it", cells=None).check()
        assert pat.proven("champion").promoted_by == "pat"
        assert verify(pat).faults == []

        _as(monkeypatch, "pat", "a wrong password")
        with pytest.raises(RegistryError, match="does not let pat do this"):
            pat.entries()
    shutil.rmtree(tmp_path / "artifacts")


def _as(monkeypatch, name, password):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def _make_accounts(uri):
    """rita reads, tess may change what is there, pat may manage it (MLflow's READ, EDIT and MANAGE)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's server parts, which come along
        from mlflow.server.auth.client import AuthServiceClient

    client = AuthServiceClient(uri)
    for name in ("rita", "tess", "pat"):
        client.create_user(name, f"password of {name}")
    mlflow.MlflowClient(uri, uri).create_registered_model("blastwatch")
    experiment = mlflow.MlflowClient(uri, uri).create_experiment("team")
    for name, permission in (("tess", "EDIT"), ("pat", "MANAGE")):
        client.grant_user_permission(name, "registered_model", "blastwatch", permission)
        client.grant_user_permission(name, "experiment", experiment, permission)
