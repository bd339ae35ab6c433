"""Which packages are opened: those of this format, those of the two before, and nothing that was changed."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save

from blastwatch.errors import PackageError
from blastwatch.ood import read_ood
from blastwatch.package import (
    DRIFT,
    FORMAT,
    METRICS,
    MODEL,
    OOD,
    PREDICTIONS,
    PROJECTION,
    REFERENCE,
    REPORT,
    REQUIRED,
    SEEN,
    TRAINED,
    ModelInfo,
    Precision,
    open_package,
    seal,
)
from blastwatch.seen import read_seen
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
    assert package.info.format == FORMAT == 7
    assert (package.folder / REPORT).is_file()


@pytest.mark.parametrize(("format_", "without"), [
    (2, [REPORT, OOD, TRAINED, SEEN]), (3, [OOD, TRAINED, SEEN]), (4, [TRAINED, SEEN]), (5, [SEEN]), (6, [SEEN]),
])  # fmt: skip
def test_a_package_of_a_format_before_lacks_what_came_later_and_is_opened(tmp_path, format_, without):
    package = open_package(remade(make_package(tmp_path / "package"), format_=format_, without=without))
    assert package.info.format == format_
    assert (read_ood(package) is None) == (format_ < 4) and read_seen(package) is None
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


@pytest.mark.parametrize("format_", [1, 8, None, "3"])
def test_other_formats_are_refused(tmp_path, format_):
    refused = f"of format 2 or 3 or 4 or 5 or 6 or 7 but got {format_!r}. Package the model again"
    with pytest.raises(PackageError, match=refused):
        open_package(remade(make_package(tmp_path / "package"), format_=format_))


def test_an_older_package_may_not_lack_what_its_format_has(tmp_path):
    folder = remade(make_package(tmp_path / "package"), format_=3, without=[REPORT, OOD, TRAINED, SEEN])
    with pytest.raises(PackageError, match=f"{REPORT} not in digests.json"):
        open_package(folder)


def test_a_package_without_a_report_is_not_sealed(tmp_path):
    folder = make_package(tmp_path / "package")
    (folder / REPORT).unlink()
    with pytest.raises(PackageError, match=f"{REPORT} missing"):
        seal(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"5", b"null", b'"text"'])
def test_a_file_of_the_evidence_that_is_no_object_is_named(tmp_path, text):
    package = open_package(make_package(tmp_path / "package"))
    readers = {
        METRICS: package.metrics, "evidence/audit.json": lambda: package.evidence("audit"), DRIFT: package.drift,
    }  # fmt: skip
    for name, read in readers.items():
        (package.folder / name).write_bytes(text)
        with pytest.raises(PackageError, match=rf"{name}.* Package the model again\."):
            read()


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (None, "an object as `cells` in evidence/metrics.json but got None"),
        ([], r"an object as `cells` .* but got \[\]"),
        ({"auroc": 0.9}, "a number as `value` of auroc in evidence/metrics.json but got 0.9"),
        ({"auroc": {}}, "a number as `value` of auroc"),
        ({"auroc": {"value": "0.9"}}, "a number as `value` of auroc"),
        ({"auroc": {"value": 10**400}}, "a number as `value` of auroc"),
    ],
)
def test_a_figure_that_would_be_told_with_the_version_is_a_number(tmp_path, cells, said):
    package = open_package(make_package(tmp_path / "package"))
    (package.folder / METRICS).write_text(json.dumps(package.metrics() | {"cells": cells}))
    with pytest.raises(PackageError, match=said):
        package.headline  # noqa: B018 - it is read when asked for


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows.drop(columns="group"), "has no group; expected the columns"),
        (lambda rows: rows.drop(columns="probability"), "has no probability; expected the columns"),
        (lambda rows: rows.assign(group=None), "Expected text as group in .* but got (None|nan)"),
        (lambda rows: rows.assign(group=7), "Expected text as group in .* but got 7"),
        (lambda rows: rows.assign(group=[["7"]] * len(rows)), "Expected text as group in .* but got array"),
        (None, "cannot be read: .*Parquet"),
    ],
)
def test_a_table_that_lacks_a_column_or_holds_something_else_in_it_is_named(tmp_path, spoil, said):
    package = open_package(make_package(tmp_path / "package"))
    for name, read in (
        (PREDICTIONS, package.predictions),
        (REFERENCE, package.reference),
        (TRAINED, package.reference),
    ):
        path = package.folder / name
        whole = path.read_bytes()
        if spoil is None:
            path.write_bytes(b"junk")
        else:
            spoil(pd.read_parquet(package.folder / (REFERENCE if name == TRAINED else name))).to_parquet(path)
        with pytest.raises(PackageError, match=said) as raised:
            read()
        assert name in str(raised.value)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"mean": np.zeros(4)}, "projection.safetensors of the package cannot be read: KeyError"),
        (
            {"mean": np.zeros(4), "components": np.zeros((2, 3))},
            r"in projection.safetensors but got \(4,\) and \(2, 3\)",
        ),
        ({"mean": np.zeros(()), "components": np.zeros(3)}, r"but got \(\) and \(3,\)"),
        (None, "projection.safetensors of the package cannot be read: SafetensorError"),
    ],
)
def test_a_projection_that_is_none_is_named(tmp_path, tensors, said):
    package = open_package(make_package(tmp_path / "package"))
    (package.folder / PROJECTION).write_bytes(save(tensors) if tensors else b"junk")
    with pytest.raises(PackageError, match=said):
        read_ood(package)


def test_a_score_whose_limit_is_no_number_is_named(tmp_path):
    package = open_package(make_package(tmp_path / "package"))
    (package.folder / OOD).write_bytes(save(load_file(package.folder / OOD) | {"limit": np.zeros((2, 2, 2))}))
    with pytest.raises(PackageError, match=r"ood.safetensors of the package cannot be read"):
        read_ood(package)
