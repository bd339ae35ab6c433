"""Which version serves, and how it reaches the workers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blastwatch.errors import AliasNotSet, FlipsTooOften, PackageError
from serving.live import HANDOVER_VARIABLE, find, hand_over, open_live, take_over

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
