"""Which version serves, and how it reaches the workers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from blastwatch.engines import open_engine
from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    FlipsTooOften,
    GoldenMismatch,
    PackageError,
    RegistryUnreachable,
    SignatureInvalid,
)
from blastwatch.golden import read_golden
from blastwatch.registry import Registry
from serving import live
from serving.follower import Pursued
from serving.live import (
    HANDOVER_VARIABLE,
    Served,
    find,
    hand_over,
    open_first,
    open_live,
    read_handover,
    settle,
    source_of,
    take_over,
)
from serving.live_folder import LiveFolder

ROOT = Path(__file__).parents[3]


def test_without_a_champion_the_message_names_the_command(settings):
    with pytest.raises(AliasNotSet, match="blastwatch registry promote"):
        find(settings, {})


def test_a_handover_needs_no_registry(settings, served, tmp_path):
    path = hand_over(served, tmp_path / "live" / "live.json")
    got = find(settings, {HANDOVER_VARIABLE: str(path)})
    assert (got.entry, got.alias, got.package.digest) == (served.entry, "champion", served.package.digest)


def test_a_handover_travels_with_its_package(served, tmp_path):
    import shutil

    shutil.copytree(served.package.folder, tmp_path / "a" / "package")
    hand_over(served, tmp_path / "a" / "live.json", package=tmp_path / "a" / "package")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert take_over(tmp_path / "b" / "live.json").package.digest == served.package.digest


def test_a_handover_of_another_package_is_refused(served, tmp_path):
    path = hand_over(served, tmp_path / "live.json")
    value = json.loads(path.read_text())
    value["entry"]["digest"] = "0" * 64
    path.write_text(json.dumps(value))
    with pytest.raises(PackageError, match="Expected package 0000"):
        take_over(path)
    path.write_text("{")
    with pytest.raises(PackageError, match="cannot be read"):
        take_over(path)


BOTH_WAYS = pytest.mark.parametrize("follow_seconds", [1.0, 0.0], ids=["follows", "stays"])


@BOTH_WAYS
@pytest.mark.parametrize(("error", "reason"), [
    (RegistryUnreachable("away"), "unreachable"), (AliasNotSet("deleted"), "alias-not-set"),
    (SignatureInvalid("nobody"), "signature"),
])  # fmt: skip
def test_a_start_falls_back_to_the_last_verified_copy(settings, served, monkeypatch, follow_seconds, error, reason):
    settings, folder = replace(settings, follow_seconds=follow_seconds), LiveFolder(settings.home)
    monkeypatch.setattr(live, "find", lambda *_: served)
    before = settle(settings, {})
    assert folder.read_status("champion").refused is None
    monkeypatch.setattr(live, "find", lambda *_: (_ for _ in ()).throw(error))
    assert settle(settings, {}) == before
    assert folder.read_status("champion").refused.reason == reason
    if follow_seconds == 0:
        assert take_over(Path(before[1][HANDOVER_VARIABLE])).entry.version == "7"


def test_a_start_over_a_database_that_is_away_falls_back_too(settings, served, free_port):
    """MLflow's store in PostgreSQL: no server of MLflow is there to be asked whether it answers."""
    folder = LiveFolder(settings.home)
    away = replace(settings, tracking_uri=f"postgresql+psycopg://pat@127.0.0.1:{free_port()}/mlflow")
    hand_over(replace(served, source=source_of(away)), folder.wanted("champion"))
    assert "pat" not in folder.wanted("champion").read_text()
    assert settle(away, {})[0].entry == served.entry
    assert folder.read_status("champion").refused.reason == "unreachable"
    Pursued("champion", Registry(away), folder).look()
    assert folder.read_status("champion").refused.reason == "unreachable"


def raising(error):
    return lambda *_: (_ for _ in ()).throw(error)


OTHER_SOURCE = pytest.mark.parametrize(
    "change", [{"model_name": "blood-b"}, {"tracking_uri": "https://pat:s3cret@mlflow.lab"}], ids=["model", "registry"]
)


@BOTH_WAYS
@OTHER_SOURCE
@pytest.mark.parametrize("error", [RegistryUnreachable("away"), AliasNotSet("nothing was promoted")])
def test_a_start_falls_back_to_no_other_model(settings, served, monkeypatch, follow_seconds, change, error):
    """As after BLASTWATCH_MODEL_NAME was changed over the same home."""
    folder, other = LiveFolder(settings.home), replace(settings, follow_seconds=follow_seconds, **change)
    monkeypatch.setattr(live, "find", raising(error))
    for path in (folder.wanted("champion"), folder.good("champion")):
        hand_over(served, path)
    with pytest.raises(type(error)):
        settle(other, {})
    assert read_handover(folder.wanted("champion"))[0] == served.entry, "a start in vain takes nothing away"
    mine = replace(served, entry=replace(served.entry, version="3"), source=source_of(other))
    hand_over(mine, folder.good("champion"))
    assert settle(other, {})[0].entry.version == "3"
    assert read_handover(folder.wanted("champion"))[0].version == "3", "what the workers load"


@BOTH_WAYS
@OTHER_SOURCE
def test_the_words_of_two_models_have_no_order(settings, served, monkeypatch, follow_seconds, change):
    folder, other = LiveFolder(settings.home), replace(settings, follow_seconds=follow_seconds, **change)
    hand_over(replace(served, entry=replace(served.entry, word=12)), folder.wanted("champion"))
    named = replace(served, entry=replace(served.entry, version="3", word=2), source=source_of(other))
    monkeypatch.setattr(live, "find", lambda *_: named)
    assert settle(other, {})[0].entry.version == "3"
    assert folder.read_status("champion").refused is None


@pytest.mark.parametrize("error", [RegistryUnreachable("away"), AliasNotSet("deleted")])
def test_a_file_that_names_no_model_counts_while_the_registry_is_away(settings, served, monkeypatch, error):
    """As an earlier version of the service wrote it."""
    path = hand_over(served, LiveFolder(settings.home).wanted("champion"))
    value = json.loads(path.read_text())
    del value["source"]
    path.write_text(json.dumps(value))
    monkeypatch.setattr(live, "find", raising(error))
    if isinstance(error, AliasNotSet):
        with pytest.raises(AliasNotSet):
            settle(settings, {})
    else:
        assert settle(settings, {})[0].entry == served.entry
        assert open_first(settings, {})[0].served.entry == served.entry


def test_what_is_found_names_its_model(settings, served, monkeypatch):
    monkeypatch.setattr(live, "Registry", lambda _: SimpleNamespace(proven=lambda _: served.entry))
    monkeypatch.setattr(live, "fetch", lambda *_: served.package)
    away = replace(settings, model_name="blood-b", tracking_uri="https://pat:s3cret@mlflow.lab")
    expected = {"model": "blood-b", "registry": "https://mlflow.lab"}
    assert find(away, {}) == Served(entry=served.entry, package=served.package, alias="champion", source=expected)


@BOTH_WAYS
def test_a_start_without_any_copy_says_what_the_registry_said(settings, follow_seconds):
    with pytest.raises(AliasNotSet, match="blastwatch registry promote"):
        settle(replace(settings, follow_seconds=follow_seconds), {})


@BOTH_WAYS
def test_a_start_waits_for_a_promotion_that_is_just_being_written(settings, served, monkeypatch, follow_seconds):
    says = [AliasMoved("between the two writes")] * 2

    def find(*_):
        if says:
            raise says.pop()
        return served

    monkeypatch.setattr(live, "find", find)
    monkeypatch.setattr(live.time, "sleep", lambda _: None)
    assert settle(replace(settings, follow_seconds=follow_seconds), {})[0].entry.version == "7"
    assert LiveFolder(settings.home).read_status("champion").refused is None


@BOTH_WAYS
@pytest.mark.parametrize(("word", "serves"), [(9, "8"), (13, "7")], ids=["an old word put back", "a rollback"])
def test_a_start_believes_no_word_older_than_the_last_one(settings, served, monkeypatch, word, serves, follow_seconds):
    settings = replace(settings, follow_seconds=follow_seconds)
    folder = LiveFolder(settings.home)
    hand_over(replace(served, entry=replace(served.entry, version="8", word=12)), folder.wanted("champion"))
    named = replace(served, entry=replace(served.entry, version="7", word=word))
    monkeypatch.setattr(live, "find", lambda *_: named)
    found, variables = settle(settings, {})
    assert (found.entry.version, read_handover(folder.wanted("champion"))[0].version) == (serves, serves)
    assert set(variables) == (set() if follow_seconds else {HANDOVER_VARIABLE})
    refusal = folder.read_status("champion").refused
    if serves == "7":
        assert refusal is None
    else:
        assert refusal.reason == "alias-moved" and "an old word was put back" in refusal.message


class Abreast:
    """An engine that computes two batches at a time, and then tells `apart` more of a normal cell."""

    name, abreast, on_cores = "openvino-f32", 2, True

    def __init__(self, engine, apart):
        self.infer, self.apart, self.beside = engine.infer, apart, []

    def rest(self):
        pass

    def infer_beside(self, crops):
        self.beside.append(crops)
        outputs = self.infer(crops)
        return replace(outputs, logits=outputs.logits + np.float32([self.apart, 0]))


@pytest.mark.parametrize("apart", [0.0, 5.0])
def test_golden_cells_are_asked_in_batches_beside_each_other_too(settings, served, monkeypatch, apart):
    engine = Abreast(open_engine(served.package, "openvino-f32"), apart)
    monkeypatch.setattr(live, "open_engine", lambda *_, **__: engine)
    if apart:
        with pytest.raises(GoldenMismatch, match="for golden cell"):
            open_live(served, settings)
    else:
        assert open_live(served, settings).engine is engine
    golden, _ = read_golden(served.package)
    assert any(np.array_equal(crops, golden) for crops in engine.beside)


def test_an_engine_that_flips_too_often_does_not_serve(settings, served):
    info = served.package.info
    flipping = replace(info.precision["openvino-int8"], flip_rate=0.2)
    package = replace(served.package, info=replace(info, precision={**info.precision, "openvino-int8": flipping}))
    fast = replace(settings, engine="openvino-int8")
    with pytest.raises(FlipsTooOften, match=r"share of 0\.01 of the cells but got 0\.2 \(openvino-int8 on 8 cells\)"):
        open_live(replace(served, package=package), fast)
    assert open_live(replace(served, package=package), settings).engine.name == "openvino-f32"
    overridden = replace(served.entry, overridden=["parity"])
    assert open_live(replace(served, package=package, entry=overridden), fast).engine.name == "openvino-int8"
    unknown = replace(served.package, info=replace(info, precision={}))
    with pytest.raises(FlipsTooOften, match="was not compared with float32"):
        open_live(replace(served, package=unknown), fast)


def test_the_engine_is_opened_and_named(settings, served):
    assert open_live(served, settings).engine.name == "openvino-f32"


def test_a_signal_reaches_a_process_whose_first_engine_is_gone(settings, served):
    """OpenVINO unmaps the signal stack of the thread that opened an engine; that must not be the main thread's."""
    script = f"""
import os, signal, sys, threading
from pathlib import Path
from blastwatch.package import open_package
from blastwatch.entry import Entry
from blastwatch.settings import load
from serving.live import Served, open_live

package = open_package(Path({str(served.package.folder)!r}))
entry = Entry(version="1", digest=package.digest, run_id="", created="", synthetic=True, registered_by="")
settings = load({{"BLASTWATCH_HOME": {str(settings.home)!r}, "BLASTWATCH_ENGINE": "openvino-f32"}})
box = [open_live(Served(entry=entry, package=package, alias="champion"), settings)]
other = threading.Thread(target=box.clear)
other.start()
other.join()
signal.signal(signal.SIGUSR1, lambda *_: print("alive", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
