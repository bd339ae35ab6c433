"""Which packages are opened: those of this format, those of the two before, and nothing that was changed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from blastwatch.errors import PackageError
from blastwatch.ood import read_ood
from blastwatch.package import (
    FORMAT,
    MODEL,
    OOD,
    REPORT,
    REQUIRED,
    TRAINED,
    ModelInfo,
    Precision,
    open_package,
    seal,
)
from tests.packages import make_package


def remade(folder, *, format_, without=()):
    """The package as if it had been sealed with another format."""
    model = json.loads((folder / MODEL).read_text()) | {"format": format_}
    (folder / MODEL).write_text(json.dumps(model))
    seal(folder)
    sealed = json.loads((folder / "digests.json").read_text())
    from blastwatch.digests import combined_digest

    for name in without:
        (folder / name).unlink()
        del sealed["files"][name]
    sealed["digest"] = combined_digest(sealed["files"])
    (folder / "digests.json").write_text(json.dumps(sealed))
    return folder


def test_a_package_is_opened_with_its_format(tmp_path):
    package = open_package(make_package(tmp_path / "package"))
    assert package.info.format == FORMAT == 6
    assert (package.folder / REPORT).is_file()


@pytest.mark.parametrize(("format_", "without"), [(2, [REPORT, OOD, TRAINED]), (3, [OOD, TRAINED]), (4, [TRAINED])])
def test_a_package_of_a_format_before_lacks_what_came_later_and_is_opened(tmp_path, format_, without):
    package = open_package(remade(make_package(tmp_path / "package"), format_=format_, without=without))
    assert package.info.format == format_
    assert (read_ood(package) is None) == (format_ < 4)
    assert len(package.reference().cells) == len(package.reference().answered) == 1


def test_what_corrects_an_engine_travels_and_a_format_before_has_none(tmp_path):
    info = open_package(make_package(tmp_path / "package")).info
    rows = {"torch-bf16": Precision(cells=9, flip_rate=0.1, largest_difference=0.2, scale=1.01, shift=(0.5, -0.25))}
    again = ModelInfo.from_json(replace(info, precision=rows).to_json())
    assert again.precision == rows and not again.precision["torch-bf16"].is_plain
    older = json.loads(again.to_json()) | {"format": 5}
    older["precision"]["torch-bf16"] = {"cells": 9, "flip_rate": 0.1, "largest_difference": 0.2}
    found = ModelInfo.from_json(json.dumps(older)).precision["torch-bf16"]
    logits = np.array([[1.5, -2.0]], np.float32)
    assert found.is_plain and (found.corrected(logits) == logits).all()
    np.testing.assert_allclose(rows["torch-bf16"].corrected(logits), [[2.015, -2.27]], rtol=1e-6)


@pytest.mark.parametrize(("old", "new", "said"), [
    ('"flip_rate": 0.1', '"flip_rate": NaN', "expected finite numbers but got NaN"),
    ('"largest_difference": 0.2', '"largest_difference": NaN', "expected finite numbers but got NaN"),
    ('"largest_difference": 0.2', '"largest_difference": -Infinity', "but got -Infinity"),
    ('"largest_difference": 0.2', '"largest_difference": 1e999', "but got 1e999"),
    ('"temperature": 1.0', '"temperature": NaN', "but got NaN"),
    ('"temperature": 1.0', '"temperature": 0', "expected a temperature above 0 but got 0"),
    ('"flip_rate": 0.1', '"flip_rate": null', "expected flip_rate from 0 to 1 but got None"),
    ('"flip_rate": 0.1', '"flip_rate": "0.1"', "expected flip_rate from 0 to 1 but got '0.1'"),
    ('"flip_rate": 0.1', '"flip_rate": -0.1', "expected flip_rate from 0 to 1 but got -0.1"),
    ('"largest_difference": 0.2', '"largest_difference": true', "expected largest_difference from 0 to 1 but got True"),
])  # fmt: skip
def test_figures_of_an_engine_that_no_limit_could_hold_are_refused(tmp_path, old, new, said):
    rows = {"torch-bf16": Precision(cells=9, flip_rate=0.1, largest_difference=0.2)}
    text = replace(open_package(make_package(tmp_path / "package")).info, precision=rows).to_json()
    assert text.count(old) == 1 and ModelInfo.from_json(text).precision == rows
    with pytest.raises(PackageError, match="model.json cannot be read") as caught:
        ModelInfo.from_json(text.replace(old, new))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_package_of_this_format_is_refused_without_any_file(tmp_path, name):
    folder = remade(make_package(tmp_path / "package"), format_=FORMAT, without=[name])
    with pytest.raises(PackageError, match=f"{name} (is )?not in digests.json"):
        open_package(folder)


@pytest.mark.parametrize("format_", [1, 7, None, "3"])
def test_other_formats_are_refused(tmp_path, format_):
    refused = f"of format 2 or 3 or 4 or 5 or 6 but got {format_!r}. Package the model again"
    with pytest.raises(PackageError, match=refused):
        open_package(remade(make_package(tmp_path / "package"), format_=format_))


def test_an_older_package_may_not_lack_what_its_format_has(tmp_path):
    folder = remade(make_package(tmp_path / "package"), format_=3, without=[REPORT, OOD, TRAINED])
    with pytest.raises(PackageError, match=f"{REPORT} not in digests.json"):
        open_package(folder)


def test_a_package_without_a_report_is_not_sealed(tmp_path):
    folder = make_package(tmp_path / "package")
    (folder / REPORT).unlink()
    with pytest.raises(PackageError, match=f"{REPORT} missing"):
        seal(folder)
