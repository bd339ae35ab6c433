import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch import history, signing
from blastwatch.errors import HistoryBroken, UsageError
from blastwatch.history import NOTHING_BEFORE, Record, Row
from tests.keys import add_key

START = datetime(2026, 11, 17, 14, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder of trusted keys with a promoter and a trainer; and their signers."""
    folder = tmp_path_factory.mktemp("keys")
    signers = {role: add_key(folder, role, f"{role}-key") for role in signing.ROLES}
    return signing.TrustedKeys(folder), signers


def faults(rows, trusted):
    return history.faults(rows, trusted, model="blastwatch")


def chain(keys, steps):
    """Rows of a chain; a step is (action, alias, version, after)."""
    _, signers = keys
    rows: list[Row] = []
    for number, (action, alias, version, after) in enumerate(steps, start=1):
        signer = signers[history.ROLE_OF[action]]
        gates = history.report_of([{"name": "digests", "passed": True, "value": number, "limit": 0}])
        record = Record(
            model="blastwatch", number=number, time=(START + timedelta(minutes=number)).isoformat(), who="ana",
            action=action, alias=alias, version=version, before="", after=after, why="because", digest=version * 64,
            data_digest="d" * 64, split_digest="s" * 64, git_commit="c" * 40, overridden=[],
            report=history.hash_of(gates), key=signer.fingerprint,
            previous=rows[-1].hash if rows else NOTHING_BEFORE,
        )  # fmt: skip
        body = history.body_of(record)
        digest = history.hash_of(body)
        rows.append(Row(number, body, gates, digest, signer.sign(history.statement(digest))))
    return rows


STEPS = [
    ("register", "candidate", "1", "1"),
    ("promote", "champion", "1", "1"),
    ("register", "candidate", "2", "2"),
    ("challenge", "challenger", "2", "2"),
    ("promote", "champion", "2", "2"),
    ("rollback", "champion", "1", "1"),
]


def test_an_untouched_chain_has_no_faults(keys):
    assert faults(chain(keys, STEPS), keys[0]) == []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_character_of_any_column_is_found_at_its_entry(keys, data):
    rows = chain(keys, STEPS)
    place = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(["body", "gates", "hash", "signature"]))
    text = getattr(rows[place], column)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda character: character != text[at]))
    rows[place] = dataclasses.replace(rows[place], **{column: text[:at] + other + text[at + 1 :]})
    found = faults(rows, keys[0])
    assert found and found[0][0] == rows[place].number


def test_every_character_of_a_signature_counts(keys):
    """Also those bits of the last one that base64 ignores."""
    rows = chain(keys, STEPS[:1])
    text = rows[0].signature
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    for at in range(len(text)):
        for other in set(alphabet) - {text[at]}:
            changed = dataclasses.replace(rows[0], signature=text[:at] + other + text[at + 1 :])
            assert faults([changed], keys[0]), (at, other)


@pytest.mark.parametrize(("name", "value"), [
    ("version", "x"), ("version", None), ("version", ""), ("version", "1" * 10), ("before", "x"), ("after", 1),
    ("alias", ["champion"]), ("digest", None), ("data_digest", 5), ("number", "1"), ("number", True),
    ("overridden", "card"), ("overridden", [1]), ("why", "\ud800"), ("time", "2026-11-17"),
])  # fmt: skip
def test_an_entry_whose_fields_are_something_else_cannot_be_read(keys, name, value):
    """Whoever may write to the database wrote it, with its hash; nobody signed it."""
    body = json.dumps(json.loads(chain(keys, STEPS[:1])[0].body) | {name: value})
    row = Row(1, body, "[]", history.hash_of(body), "")
    with pytest.raises(HistoryBroken, match="Entry 1 of the history cannot be read"):
        row.record()
    assert faults([row], keys[0]) == [(1, "it cannot be read")]


def test_a_number_that_was_changed_is_found(keys):
    rows = chain(keys, STEPS)
    rows[2] = dataclasses.replace(rows[2], number=7)
    assert faults(rows, keys[0])[0][0] == 7


@pytest.mark.parametrize("gone", range(len(STEPS) - 1))
def test_a_removed_entry_is_found(keys, gone):
    rows = chain(keys, STEPS)
    del rows[gone]
    assert faults(rows, keys[0])[0][0] == gone + 2


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.integers(0, len(STEPS) - 1), min_size=2, max_size=2, unique=True))
def test_two_that_changed_places_are_found(keys, places):
    rows = chain(keys, STEPS)
    one, other = places
    rows[one], rows[other] = rows[other], rows[one]
    assert faults(rows, keys[0])


def test_a_chain_that_was_made_anew_with_an_unknown_key_is_found(keys, tmp_path):
    stranger = add_key(tmp_path, signing.PROMOTER, "stranger")
    rows = chain((None, dict.fromkeys(signing.ROLES, stranger)), STEPS)
    found = faults(rows, keys[0])
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]
    assert "not among the trusted keys" in found[0][1]


def test_a_trainer_cannot_sign_a_promotion(keys):
    trusted, signers = keys
    rows = chain((trusted, dict.fromkeys(signing.ROLES, signers[signing.TRAINER])), STEPS)
    number, text = faults(rows, trusted)[0]
    assert number == 2 and "Expected the signature of a promoter" in text


def test_aliases_follow_the_entries(keys):
    records = [row.record() for row in chain(keys, STEPS)]
    assert history.aliases(records[:4]) == {"champion": "1", "candidate": "2", "challenger": "2"}
    assert history.aliases(records[:5]) == {"champion": "2"}
    assert history.aliases(records) == {"champion": "1"}
    assert history.champions(records) == ["1"]
    numbers = {alias: word.number for alias, word in history.words(records).items()}
    assert numbers == {"candidate": 5, "champion": 6, "challenger": 5}, "the promotion took two aliases away"


def test_a_rollback_takes_away_the_champions_that_it_stepped_over(keys):
    steps = [("promote", "champion", number, number) for number in ("1", "2", "1", "3", "4")]
    assert history.champions(told(keys, [*steps, ("rollback", "champion", "3", "3")])) == ["1", "2", "1", "3"]
    assert history.champions(told(keys, [*steps, ("rollback", "champion", "1", "1")])) == ["1", "2", "1"]
    assert history.champions(told(keys, [*steps, ("rollback", "champion", "2", "2")])) == ["1", "2"]


def told(keys, steps):
    return [row.record() for row in chain(keys, steps)]


def test_what_served_at_a_time(keys):
    rows = chain(keys, STEPS)
    told = history.told(rows, START + timedelta(minutes=5, seconds=30))
    assert (told["version"], told["by"], told["data_digest"]) == ("2", "ana", "d" * 64)
    assert told["gates"] == json.loads(rows[4].gates)
    back = history.told(rows, START + timedelta(days=1))
    assert (back["version"], back["action"]) == ("1", "rollback")
    assert back["gates"] == json.loads(rows[1].gates), "a rollback stands on the evidence of the promotion"
    assert history.told(rows, START)["version"] == ""


@pytest.mark.parametrize("text", ["yesterday", "14:05", ""])
def test_a_wrong_time_is_told(text):
    with pytest.raises(UsageError, match="Expected a time such as"):
        history.parse_time(text)


def test_what_serves_in_the_future_is_not_told():
    with pytest.raises(UsageError, match="a time that has been but got '2100-01-01'"):
        history.parse_time("2100-01-01")


def test_a_time_without_offset_is_utc():
    assert history.parse_time("2026-11-17T14:05").utcoffset() == timedelta(0)


def test_an_entry_was_there_at_its_own_moment(keys):
    records = [row.record() for row in chain(keys, STEPS)]
    moment = datetime.fromisoformat(records[2].time)
    assert history.until(records, moment) == records[:3]
    assert history.until(records, moment - timedelta(microseconds=1)) == records[:2]
