"""Errors of databases in our words: what says that nothing is taken now, and what says that this is not taken."""

import pytest
import sqlalchemy as sa

from blastwatch.database import create, parse, translated
from blastwatch.errors import DataError, RegistryUnreachable, SettingsError


def refused_by(path, statement):
    """What a statement is told by a SQLite file."""
    engine = create(f"sqlite:///{path}", "URL", unavailable=RegistryUnreachable)
    told = translated("The database", unavailable=RegistryUnreachable, refused=DataError)
    with pytest.raises((RegistryUnreachable, DataError)) as caught, told, engine.connect() as opened:
        opened.execute(sa.text(statement))
    engine.dispose()
    return caught.value


def test_a_file_that_is_damaged_or_no_database_takes_nothing_now(tmp_path):
    other, broken = tmp_path / "other.db", tmp_path / "broken.db"
    other.write_bytes(b"this is no database" * 500)
    assert "is not a database" in str(refused_by(other, "SELECT 1"))
    engine = create(f"sqlite:///{broken}", "URL", unavailable=RegistryUnreachable, pragmas=())
    with engine.begin() as opened:
        opened.execute(sa.text("CREATE TABLE one (word TEXT)"))
        opened.execute(sa.text("INSERT INTO one VALUES (:word)"), [{"word": "x" * 300}] * 500)
    engine.dispose()
    content = broken.read_bytes()
    broken.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    for path, statement in ((other, "SELECT 1"), (broken, "SELECT * FROM one")):
        assert isinstance(refused_by(path, statement), RegistryUnreachable)


def test_a_value_that_a_sound_file_does_not_take_is_refused(tmp_path):
    path = tmp_path / "sound.db"
    engine = create(f"sqlite:///{path}", "URL", unavailable=RegistryUnreachable)
    with engine.begin() as opened:
        opened.execute(sa.text("CREATE TABLE one (word TEXT NOT NULL)"))
    engine.dispose()
    assert isinstance(refused_by(path, "INSERT INTO one VALUES (NULL)"), DataError)


@pytest.mark.parametrize("url", ["postgres//pat:s3cret@db.lab", "postgresql://pat:s3cret@db.lab:port/x"])
def test_a_mistyped_address_is_shown_without_its_password(url):
    with pytest.raises(SettingsError, match=r"Expected BLASTWATCH_HISTORY_URL as .* but got .*db\.lab") as said:
        create(url, "BLASTWATCH_HISTORY_URL", unavailable=RegistryUnreachable)
    assert "s3cret" not in str(said.value)


@pytest.mark.parametrize(
    "password",
    [
        "p@s3cret", "p@s3/cret", "p@s3:cret", "p@@s3cret", "p@s3cret?x", "p@s3?cret@x", "p@s3cret?", "p@s3cret?a=b",
        "p@s3cret?a=b&c", "p@s3cret?user=x", "s3?cret@x", "p@s3#cret", "p@s3cret?x#",
    ],
)  # fmt: skip
def test_a_password_that_ends_the_account_too_early_is_said_and_not_shown(password):
    """A driver would say that there is no host of the name that it took the rest of the password for."""
    with pytest.raises(SettingsError, match="BLASTWATCH_HISTORY_URL .*write @ as %40") as said:
        create(f"postgresql://pat:{password}@db.lab:5432/x", "BLASTWATCH_HISTORY_URL", unavailable=RegistryUnreachable)
    assert not any(part in str(said.value) for part in ("s3", "cret"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db.lab:5432/x?user=pat&password=p@s3cret", "postgresql://db.lab?password=p@s3cret",
        "postgresql://db.lab/x?application_name=p@s3cret", "postgresql://db.lab/x?p@s3cret",
        "postgresql://db.lab/x?superuser=p@s3cret",
    ],
)  # fmt: skip
def test_an_at_sign_in_parameters_is_said_where_it_cuts_something(url):
    with pytest.raises(SettingsError, match="write @ as %40") as said:
        parse(url, "URL")
    assert "s3cret" not in str(said.value)


@pytest.mark.parametrize("query", ["user=pat@lab&password=p@ss", "sslmode=require&PASSWORD=p@ss", "user=pat%40lab"])
def test_an_account_among_the_parameters_is_taken(query):
    assert parse(f"postgresql://db.lab/x?{query}", "URL").host == "db.lab"
    assert parse("postgresql://pat@db.lab/x?password=p@ss", "URL").query == {"password": "p@ss"}


@pytest.mark.parametrize("password", ["p?s", "p#s", "p/s?", "?x=y"])
def test_other_signs_in_a_password_are_taken_as_they_are(password):
    found = parse(f"postgresql://pat:{password}@db.lab/x?sslmode=require", "URL")
    assert (found.password, found.host, found.database) == (password, "db.lab", "x")


@pytest.mark.parametrize("account", ["pat:p%40s3cret", "pat@lab:s3cret", "pat"])
def test_an_account_that_ends_where_it_should_is_taken(account):
    found = parse(f"postgresql://{account}@db.lab/x", "URL")
    assert (found.host, found.database) == ("db.lab", "x")
    assert parse("sqlite:////home/pat@lab/x.db", "URL").database == "/home/pat@lab/x.db"


@pytest.mark.parametrize(("asked", "milliseconds"), [("", 5000), ("?tcp_user_timeout=90000", "90000")])
def test_a_database_that_vanished_is_given_up_within_seconds(asked, milliseconds):
    """By itself the kernel tries for a quarter of an hour, and nothing that is to be stored lies on disk meanwhile."""
    engine = create(f"postgresql://pat@db.lab/x{asked}", "URL", unavailable=RegistryUnreachable)
    given = {}

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect, _record, _words, parameters):
        given.update(parameters)
        raise RegistryUnreachable("no such machine")

    with pytest.raises(RegistryUnreachable), engine.connect():
        pass
    assert (given["connect_timeout"], given["tcp_user_timeout"], given["keepalives_idle"]) == (5, milliseconds, 30)
