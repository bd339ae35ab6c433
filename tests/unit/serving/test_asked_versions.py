"""Which version `blastwatch bento` packs and `blastwatch score --ref` takes: none that nobody trusted stands for."""

import mlflow
import pytest
from click.testing import CliRunner

import serving.bento
from blastwatch.errors import AliasMoved, SignatureInvalid
from serving.bento import Built
from serving.commands import bento, score
from tests.service_packages import champion_and_another, write_cell

NAME = "blastwatch"


@pytest.fixture
def client(settings):
    return mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)


@pytest.fixture
def versions(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    return champion_and_another(settings, tmp_path)


@pytest.fixture
def pack(versions, tmp_path, monkeypatch):
    """Runs `blastwatch bento` without building one; gives the version that was packed and what was said."""
    packed = []

    def build(served, out):
        packed.append(served)
        return Built(tag="blastwatch:x", folder=out, dockerfile="")

    monkeypatch.setattr(serving.bento, "build_bento", build)

    def run(*words):
        packed.clear()
        result = CliRunner().invoke(bento, ["--out", str(tmp_path / "bento"), *words], standalone_mode=False)
        if result.exception:
            assert packed == []
            raise result.exception
        [served] = packed
        assert served.package.digest == served.entry.digest
        return served, result.stderr

    return run


def test_a_bento_is_of_the_version_that_serves(pack):
    served, said = pack()
    assert (served.entry.version, served.alias) == ("1", "champion")
    assert served.entry.promoted_by and "Bento blastwatch:x of version 1" in said and "never promoted" not in said


@pytest.mark.parametrize("words", [(), ("--ref", "champion"), ("--ref", "models:/blastwatch@champion")])
def test_no_bento_is_made_by_an_alias_that_was_moved_by_hand(pack, client, words):
    client.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(AliasMoved, match=r"champion.* stands on version 2 but .* 1: it was moved behind"):
        pack(*words)


def test_that_a_version_was_never_promoted_is_said(pack):
    for ref, number in (("2", "2"), ("candidate", "2"), ("1", "1")):
        served, said = pack("--ref", ref)
        assert (served.entry.version, served.alias) == (number, ref)
        assert ("Version 2 was never promoted: the gates refused it or were not asked." in said) is (number == "2")


@pytest.mark.parametrize("signed", [False, True])
def test_a_version_that_nobody_registered_is_not_asked_for(pack, client, tmp_path, signed):
    known = client.get_model_version(NAME, "2")
    tags = known.tags if signed else {"blastwatch.digest": known.tags["blastwatch.digest"]}
    client.create_model_version(NAME, source=known.source, run_id=known.run_id, tags=tags)
    said = "nobody registered package" if signed else "was not registered by anybody trusted"
    with pytest.raises(SignatureInvalid, match=said):
        pack("--ref", "3")
    write_cell(tmp_path / "a.bmp", 1)
    words = [str(tmp_path), "--out", str(tmp_path / "out.parquet"), "--ref", "3"]
    asked = CliRunner().invoke(score, words, standalone_mode=False)
    assert isinstance(asked.exception, SignatureInvalid) and said in str(asked.exception)
