"""Whether an address has a certificate to verify, and whether it is free."""

import socket

import pytest

from blastwatch.addresses import bound, check_free, encrypted, shown
from blastwatch.errors import BlastwatchError


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000", "HTTP://registry:5000/prefix"])
def test_a_plain_address_has_nothing_to_verify(address):
    assert not encrypted(address)


@pytest.mark.parametrize("address", ["https://registry.lab", "HTTPS://registry.lab", "registry.lab:5000", ""])
def test_every_other_address_is_verified(address):
    assert encrypted(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_said_with_its_setting(host):
    with bound("127.0.0.1", 0, "BLASTWATCH_PORT") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BlastwatchError, match=rf"Port {port} of .*Stop what uses it or set BLASTWATCH_PORT"):
            check_free(host, port, "BLASTWATCH_PORT")
    check_free(host, port, "BLASTWATCH_PORT")  # also right after the other has gone


def test_an_address_that_is_not_here_is_said():
    with pytest.raises(BlastwatchError, match="cannot be bound"):
        check_free("192.0.2.1", 3000, "BLASTWATCH_PORT")
    with pytest.raises(BlastwatchError, match="Port 3000 of no-such-host.invalid cannot be bound"):
        check_free("no-such-host.invalid", 3000, "BLASTWATCH_PORT")


def test_a_connection_that_was_closed_keeps_no_port():
    with bound("127.0.0.1", 0, "BLASTWATCH_PORT") as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller, listening.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
            assert caller.recv(1) == b""
    check_free("127.0.0.1", port, "BLASTWATCH_PORT")


@pytest.mark.parametrize(("address", "seen"), [
    ("http://pat:s3cret@127.0.0.1:15000/mlflow", "http://127.0.0.1:15000/mlflow"),
    ("https://token@registry.lab", "https://registry.lab"),
    ("http://pat:a/b@c@registry.lab:5000/x", "http://registry.lab:5000/x"),  # what should have been encoded
    ("postgresql+psycopg://pat:s3/cret@db.lab/mlflow", "postgresql+psycopg://db.lab/mlflow"),
    ("postgresql://db.lab/mlflow?user=pat&password=s3cret&sslmode=require",
     "postgresql://db.lab/mlflow?user=pat&password=***&sslmode=require"),
    ("postgres//pat:s3cret@db.lab", "postgres//db.lab"),
    ("both http://a:b@c/d and (http://e:f@g)", "both http://c/d and (http://g)"),
])  # fmt: skip
def test_an_address_is_shown_without_its_account(address, seen):
    assert shown(address) == seen


@pytest.mark.parametrize("address", [
    "http://127.0.0.1:5000", "http://registry.lab:5000/models/x@champion", "http://registry.lab/x@y",
    "sqlite:////home/pat@lab/mlflow.db", "sqlite:///pat@lab/mlflow.db", "models:/blastwatch@champion", "",
])  # fmt: skip
def test_an_address_without_an_account_is_shown_as_it_is(address):
    assert shown(address) == address
