"""The secret of the keys' hash: lost, replaced and restored while the list stays as it is."""

import pytest
from click.testing import CliRunner

from serving.guard import Keyring
from serving.key_commands import keys
from serving.keys import KeyFolder, KeysUnreadable
from serving.problems import Problem


@pytest.fixture
def folder(tmp_path):
    return KeyFolder(tmp_path / "keys")


def said(ring, key):
    """The name of the key, or of the problem."""
    try:
        return ring.find(key).name
    except Problem as problem:
        return problem.kind.name


def test_no_key_is_made_where_the_secret_of_others_is_gone(folder, monkeypatch):
    """A new secret would shut out whoever has a key, without a word."""
    key = folder.add("lab")
    folder.add("gone")
    folder.revoke("gone")
    secret = folder.secret_file.read_bytes()
    folder.secret_file.unlink()
    with pytest.raises(KeysUnreadable, match=r"hash\.key, is gone, .* none of the 1 good keys is known\. Restore"):
        folder.add("more")
    monkeypatch.setenv("BLASTWATCH_API_KEYS", str(folder.folder))
    asked = CliRunner().invoke(keys, ["add", "more"], standalone_mode=False)
    assert isinstance(asked.exception, KeysUnreadable) and "bw_" not in asked.stdout
    assert not folder.secret_file.exists() and [row.name for row in folder.read()] == ["lab", "gone"]
    folder.secret_file.write_bytes(secret)
    ring = Keyring(folder.folder, keyless=False)
    assert said(ring, folder.add("more")) == "more" and said(ring, key) == "lab"


def test_where_no_key_is_good_a_new_secret_harms_nobody(folder):
    folder.add("gone")
    folder.revoke("gone")
    folder.secret_file.unlink()
    key = folder.add("lab")
    assert said(Keyring(folder.folder, keyless=False), key) == "lab"


def test_a_secret_that_is_restored_counts_from_the_next_request_on(folder, caplog):
    key = folder.add("lab")
    secret = folder.secret_file.read_bytes()
    folder.secret_file.write_bytes(b"x" * 32)
    ring = Keyring(folder.folder, keyless=False)
    assert said(ring, key) == "key-refused"
    folder.secret_file.write_bytes(secret)
    assert said(ring, key) == "lab"
    folder.secret_file.unlink()
    assert [said(ring, key) for _ in range(3)] == ["keys-unavailable"] * 3
    assert caplog.text.count("Every request is refused") == 1
    folder.secret_file.write_bytes(secret)
    assert said(ring, key) == "lab"


def test_a_secret_without_a_list_shuts_no_service_that_needs_no_key(folder):
    """As it lies there for a moment while the first key is made."""
    ring = Keyring(folder.folder, keyless=True)
    folder.folder.mkdir()
    folder.secret_file.write_bytes(b"x" * 32)
    assert ring.find("") is None
    key = folder.add("lab")
    assert said(ring, "") == "key-missing" and said(ring, key) == "lab"
