"""Tables as people send them: separators, fields too many, numbers for names, and what an import left beside them."""

import csv

import pandas as pd
import pytest

from blastwatch.errors import DataError
from tests.unit.training.test_import import draw
from training.importing import import_cells
from training.tables import list_table


@pytest.fixture
def table(tmp_path):
    """Writes a table beside two images, and gives its path."""
    draw(tmp_path / "a/1.png", 1)
    draw(tmp_path / "a/2.png", 2)

    def written(text, name="cells.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label,subject\na/1.png,all,A,x\na/2.png,hem,B,y\n", r"Expected 3 fields, .* in line 2 of .* but got 4"),
        ("path,label,subject\na/1.png,all,A\n\na/2.png,hem,B,\n", r"in line 4 of .*cells\.csv but got 4\. Put a field"),
        ("path;label;subject\na/1.png;all;A\n", r"Expected commas .* has semicolons\. Save it with commas"),
        ("path\tlabel\tsubject\na/1.png\tall\tA\n", "has tabs"),
    ],
)
def test_a_table_whose_values_would_be_moved_is_refused(table, text, told):
    with pytest.raises(DataError, match=told):
        list_table(table(text), name="x")


def test_quotes_blank_lines_and_short_rows_are_read(table):
    listing = list_table(table('path,label,subject,note\n\n"a/1.png",all,A,"b, c"\na/2.png,hem,B\n'), name="x")
    assert [(found.path, found.subject) for found in listing.candidates] == [("a/1.png", "A"), ("a/2.png", "B")]


@pytest.mark.parametrize("first", ["\n", "\r\n\n"])
def test_columns_behind_an_empty_first_line(table, first):
    listing = list_table(table(f"{first}path,label,subject\na/1.png,all,A\n"), name="x")
    assert [(found.path, found.subject) for found in listing.candidates] == [("a/1.png", "A")]
    with pytest.raises(DataError, match=r"Expected 3 fields, .* but got 4"):
        list_table(table(f"{first}path,label,subject\na/1.png,all,A,x\n"), name="x")


def test_a_field_of_any_length(table):
    before = csv.field_size_limit()
    listing = list_table(table(f"path,label,subject,outline\na/1.png,all,A,{'x' * (before + 1)}\n"), name="x")
    assert [found.path for found in listing.candidates] == ["a/1.png"]
    assert csv.field_size_limit() == before


def test_backslashes_are_told(table):
    (refused,) = list_table(table("path,label,subject\na\\1.png,all,A\n"), name="x").refused
    assert refused.reason == "missing" and refused.message.endswith("Write folders apart by / and not by \\.")


def test_equal_rows_are_no_refused_images(table):
    """Else a table that names every image twice would break the contract's share of refused images."""
    listing = list_table(table("path,label,subject\na/1.png,all,A\na/1.png,all,A\n./a/1.png,all,A\n"), name="x")
    assert (len(listing.candidates), listing.refused, listing.skipped) == (1, [], {"equal rows": 2})


def test_one_spelling_of_a_subject(table):
    listing = list_table(table("path,label,subject\na/1.png,all,Mu\u0308ller\na/2.png,hem,M\u00fcller\n"), name="x")
    assert {found.subject for found in listing.candidates} == {"M\u00fcller"}


def test_whole_numbers_that_parquet_holds_as_floats(table, tmp_path):
    path = table("", "cells.parquet")
    rows = pd.DataFrame({"path": ["a/1.png", "a/2.png"], "label": ["all", "hem"], "subject": [11.0, None]})
    rows.to_parquet(path)
    listing = list_table(path, name="x")
    assert [found.subject for found in listing.candidates] == ["11"]
    assert [refused.reason for refused in listing.refused] == ["subject"]
    rows.assign(subject=[11.0, 2.0**53]).to_parquet(path)
    with pytest.raises(DataError, match="whose last digits are lost"):
        list_table(path, name="x")


def test_an_import_into_the_folder_of_the_table_is_no_second_table(table, tmp_path):
    table("path,label,subject\na/1.png,all,A\n")
    for _ in range(2):
        assert import_cells(tmp_path, tmp_path, kind="table").facts["images"] == 1
    (tmp_path / "import.json").unlink()
    with pytest.raises(DataError, match=r"found cells\.csv, manifest\.parquet, refused\.csv"):
        list_table(tmp_path, name="x")
