"""Which version serves, and how it reaches the workers."""

import json

import pytest

from blastwatch.errors import AliasNotSet, PackageError
from serving.live import HANDOVER_VARIABLE, find, hand_over, open_live, take_over


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


def test_the_engine_is_opened_and_named(settings, served):
    assert open_live(served, settings).engine.name == "openvino-f32"
