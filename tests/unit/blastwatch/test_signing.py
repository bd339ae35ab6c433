import pytest

from blastwatch import signing
from blastwatch.errors import NotPermitted, SettingsError, SignatureInvalid
from blastwatch.settings import load
from tests.keys import add_key, private_of

STATEMENT = {"purpose": "test", "value": 1}


@pytest.fixture
def team(tmp_path):
    """A folder of trusted keys: tess trains, pat promotes."""
    for role, name in ((signing.TRAINER, "tess"), (signing.PROMOTER, "pat")):
        add_key(tmp_path / "trusted", role, name)
    return tmp_path / "trusted"


def settings_of(team, name, **more):
    return load(
        {"BLASTWATCH_HOME": str(team / "home"), "BLASTWATCH_TRUSTED_KEYS": str(team)}
        | {"BLASTWATCH_SIGNING_KEY": str(private_of(team, name))} | more
    )  # fmt: skip


def test_who_signed_what_is_found(team):
    signer = signing.open_signer(settings_of(team, "tess"), signing.TRAINER)
    trusted = signing.TrustedKeys(team)
    key = trusted.check(STATEMENT, signer.sign(STATEMENT), signer.fingerprint, role=signing.TRAINER)
    assert (key.name, key.role) == ("tess", "trainer")
    with pytest.raises(SignatureInvalid, match="something was changed"):
        trusted.check(STATEMENT | {"value": 2}, signer.sign(STATEMENT), signer.fingerprint, role=signing.TRAINER)
    with pytest.raises(SignatureInvalid, match="Expected the signature of a promoter"):
        trusted.check(STATEMENT, signer.sign(STATEMENT), signer.fingerprint, role=signing.PROMOTER)
    with pytest.raises(SignatureInvalid, match="nobody"):
        trusted.check(STATEMENT, "", "", role=signing.TRAINER)


def test_a_trainer_may_not_promote_and_a_promoter_may_register(team):
    with pytest.raises(NotPermitted, match="tess's key is that of a trainer. Ask a promoter"):
        signing.open_signer(settings_of(team, "tess"), signing.PROMOTER)
    assert signing.open_signer(settings_of(team, "pat"), signing.TRAINER)


def test_an_unknown_key_is_told_what_to_do(team, tmp_path):
    signing.make_private(tmp_path / "new.pem")
    settings = settings_of(team, "pat", BLASTWATCH_SIGNING_KEY=str(tmp_path / "new.pem"))
    with pytest.raises(NotPermitted, match="registry key"):
        signing.open_signer(settings, signing.TRAINER)


def test_without_settings_a_key_is_made_once_and_said(tmp_path, capsys):
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    with pytest.raises(
        SettingsError, match=r"keys/signing\.pem but there is none: .* Name the BLASTWATCH_HOME that is"
    ):
        signing.open_signer(settings, signing.PROMOTER)
    assert not settings.keys.exists()
    first = signing.open_signer(settings, signing.TRAINER)
    assert "one key stands for everybody who acts as this user" in capsys.readouterr().err
    assert signing.open_signer(settings, signing.PROMOTER).fingerprint == first.fingerprint
    assert capsys.readouterr().err == ""
    assert (settings.keys / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in settings.keys.iterdir() if path.is_file()] == ["signing.pem"]


@pytest.mark.parametrize("ask", [
    signing.public_pem, lambda settings: signing.open_signer(settings, signing.TRAINER),
    lambda settings: signing.open_signer(settings, signing.PROMOTER),
], ids=["key", "register", "promote"])  # fmt: skip
def test_a_lost_private_half_is_no_reason_to_replace_the_public_one(tmp_path, ask):
    """What the old key signed would be signed by nobody from then on."""
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    before = signing.open_signer(settings, signing.TRAINER).fingerprint
    private, public = settings.keys / "signing.pem", settings.keys / signing.PROMOTER / "embedded.pem"
    kept = public.read_bytes()
    private.rename(tmp_path / "elsewhere.pem")
    with pytest.raises(SettingsError, match=r"private half of .*embedded\.pem in .*signing\.pem but there is none"):
        ask(settings)
    assert public.read_bytes() == kept and not private.exists()
    public.rename(public.with_name("before-embedded.pem"))
    new = signing.open_signer(settings, signing.TRAINER).fingerprint
    trusted = signing.open_trusted(settings)
    assert new != before and trusted.find(before).role == trusted.find(new).role == signing.PROMOTER


def test_the_first_key_stays_where_two_are_made_at_once(tmp_path):
    path = tmp_path / "signing.pem"
    signing.make_private(path)
    before = path.read_bytes()
    signing.make_private(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["signing.pem"]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\x00\x01"])
def test_a_file_that_is_no_key_is_named(team, tmp_path, content):
    (tmp_path / "broken.pem").write_bytes(content)
    settings = settings_of(team, "pat", BLASTWATCH_SIGNING_KEY=str(tmp_path / "broken.pem"))
    with pytest.raises(SettingsError, match=r"broken\.pem"):
        signing.open_signer(settings, signing.PROMOTER)
    with pytest.raises(SettingsError, match=r"missing\.pem"):
        signing.open_signer(settings_of(team, "missing"), signing.PROMOTER)


def test_a_key_of_another_kind_is_named(team, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = generate_private_key(SECP256R1())
    path = tmp_path / "ec.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SettingsError, match="Expected an Ed25519 key"):
        signing.open_signer(settings_of(team, "pat", BLASTWATCH_SIGNING_KEY=str(path)), signing.TRAINER)


def test_a_public_key_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """A kill while it is written must not leave a file that every later command trips over."""
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    with monkeypatch.context() as killed:
        killed.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            signing.public_pem(settings)
    signing.public_pem(settings)
    public = settings.keys / signing.PROMOTER / "embedded.pem"
    assert public.stat().st_mode & 0o777 == 0o644 and "PUBLIC KEY" in public.read_text()
    assert signing.open_signer(settings, signing.PROMOTER).fingerprint


def test_a_trusted_key_that_cannot_be_read_is_left_out_and_said_once(team, caplog):
    """As `registry key > FILE` leaves it where the command is refused: the shell has emptied the file by then."""
    signer = signing.open_signer(settings_of(team, "tess"), signing.TRAINER)
    (team / signing.PROMOTER / "pat.pem").write_text("")
    (team / signing.TRAINER / "kim.pem").mkdir()
    trusted = signing.TrustedKeys(team)
    for _ in range(2):
        assert trusted.check(STATEMENT, signer.sign(STATEMENT), signer.fingerprint, role=signing.TRAINER).name == "tess"
    said = [record.getMessage() for record in caplog.records if record.name == "blastwatch.signing"]
    assert len(said) == 2 and all(name in "".join(said) for name in ("pat.pem", "kim.pem", "registry key --out"))


def test_who_acts_over_keys_that_cannot_be_read_is_told(team):
    (team / signing.PROMOTER / "kim.pem").write_text("")
    with pytest.raises(SettingsError, match=r"Expected a public key \(Ed25519, PEM\) in .*kim\.pem.* remove it"):
        signing.open_signer(settings_of(team, "tess"), signing.TRAINER)
