"""What the clients of service and MLflow make of an environment whose proxies and certificates cannot be used."""

import pytest

from blastwatch.errors import RegistryUnreachable, SettingsError
from blastwatch.http_environment import CERTIFICATES, PROXIES
from blastwatch.model_store import check_reachable
from blastwatch.settings import load
from serving.async_client import AsyncClient
from serving.client import Client

WRONG = {
    "ALL_PROXY": "socks5://127.0.0.1:1",  # for which httpx needs a package that is not installed here
    "https_proxy": "foo://pat:s3cret@proxy",
    "HTTP_PROXY": "http://proxy:port",
    "NO_PROXY": "cells.lab:port",
    "SSL_CERT_FILE": "/nonexistent/authority.pem",
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*PROXIES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("variable", WRONG)
def test_what_cannot_be_used_is_told_by_its_variable(monkeypatch, kind, variable):
    monkeypatch.setenv(variable, WRONG[variable])
    with pytest.raises(SettingsError, match=f"Expected .* in {variable} but got: .* unset the variable") as told:
        kind("https://cells.lab")
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("variable", WRONG)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_on_the_loopback_none_of_it_is_read(monkeypatch, kind, variable, host):
    monkeypatch.setenv(variable, WRONG[variable])
    kind(f"http://{host}:3000")


def reach(url):
    check_reachable(load({"MLFLOW_TRACKING_URI": url}))


@pytest.mark.parametrize("variable", WRONG)
def test_nor_does_a_registry_end_in_a_traceback(monkeypatch, variable):
    monkeypatch.setenv(variable, WRONG[variable])
    with pytest.raises(SettingsError, match=f"Expected .* in {variable} but got: .* unset the variable"):
        reach("https://registry.lab")
    with pytest.raises(RegistryUnreachable, match="No MLflow server answers"):
        reach("http://127.0.0.1:1")
