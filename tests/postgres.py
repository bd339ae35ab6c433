"""A real PostgreSQL server on the loopback address, its data in a folder of its own, ended by whoever started it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


class Postgres:
    """A running server. `url` names its database `postgres`; `database(name)` makes another."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._control = binary("pg_ctl")
        self.url = f"postgresql://tester@127.0.0.1:{port}/postgres"

    def call(self, *words: str, check: bool = True) -> None:
        """Run a program of PostgreSQL as a user other than root, which it refuses to run as."""
        root = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.getuid() == 0 else ()
        subprocess.run((*root, *words), check=check, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off -c max_connections=200"
        log = str(self.folder / "log")
        self.call(self._control, "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start")

    def stop(self, mode: str = "fast", *, check: bool = True) -> None:
        self.call(self._control, "-D", str(self.folder / "data"), "-m", mode, "-w", "stop", check=check)

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        self.call(binary("createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", name)
        return self.url.replace("/postgres", f"/{name}")

    def run(self, name: str, *statements: str) -> None:
        """Run statements in a database, each by itself, also while `only_reads`."""
        url = self.url.replace("/postgres", f"/{name}")
        with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def only_reads(self, *, on: bool) -> None:
        """As a standby does: transactions from now on, also of open connections, may not write."""
        setting = "on" if on else "off"
        self.run("postgres", f"ALTER SYSTEM SET default_transaction_read_only = {setting}", "SELECT pg_reload_conf()")


@contextmanager
def running(port: int) -> Iterator[Postgres]:
    initdb = binary("initdb")
    # A server's user must reach its folder, and pytest keeps the ones it gives private.
    folder = Path(tempfile.mkdtemp(prefix="blastwatch-postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    server = Postgres(folder, port)
    try:
        server.call(initdb, "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            server.stop(check=False)
    finally:
        shutil.rmtree(folder)


def binary(name: str) -> str:
    """A program of PostgreSQL, on the path or where Debian keeps it."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"{name} is missing: it comes with the Debian package postgresql")
    return found
