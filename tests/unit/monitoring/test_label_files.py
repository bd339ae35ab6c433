"""Files of labels as laboratories have them: what a spreadsheet writes is read, a wrong line is named."""

import codecs

import pytest

from blastwatch.errors import DataError
from monitoring.label_files import Given, lines_of, read_labels

ROWS = [Given("0af3", "hem", 2), Given("0af4", "all", 3)]


@pytest.fixture
def read(tmp_path):
    def call(content, *, skip_empty=False):
        (tmp_path / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_labels(tmp_path / "labels.csv", skip_empty=skip_empty))

    return call


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_parted_as_the_first_line_parts_them(read, delimiter):
    lines = (("note", "id", "label"), ('"one, two; three"', "0af3", "hem"), ("", "0af4", "all"))
    assert read("".join(f"{delimiter.join(line)}\r\n" for line in lines)) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        "id;label\n0af3;hem\n0af4;all\n".encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + "id;label\n0af3;hem\n0af4;all\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "id;label\n0af3;hem\n0af4;all\n".encode("utf-16-be"),
    ],
    ids=["utf-8 with a mark", "utf-16, little", "utf-16, big"],
)
def test_every_encoding_of_a_spreadsheet_is_read(read, content):
    assert read(content) == ROWS


def test_a_label_counts_in_capitals_and_with_spaces_around(read):
    assert read(" id ,label\n0AF3 , HEM\n0af4,All \n") == ROWS


def test_rows_that_were_emptied_are_passed_over(read):
    assert read("id;label;note\n0af3;hem;\n0af4;all;\n;;\n;;\n\n") == ROWS


@pytest.mark.parametrize(
    "content", ["id;label\n0af3;hem\n0af4;größer\n".encode("cp1252"), "id,label".encode("utf-16")[:-1]]
)
def test_another_encoding_is_refused_with_a_way_on(read, content):
    with pytest.raises(DataError, match=r"line \d of .*labels\.csv is neither\. Save it as CSV UTF-8\."):
        read(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("id|label\n0af3|hem\n", "its first line is 'id|label'"),
        ("0af3,hem\n", "its first line is '0af3,hem'"),
        ("\nid,label\n", "its first line is ''"),
        ("", "it is empty"),
    ],
)
def test_a_first_line_without_the_columns_is_repeated(read, content, found):
    with pytest.raises(DataError) as error:
        read(content)
    assert "id and label, parted by commas, semicolons or tabs, in the first line" in str(error.value)
    assert str(error.value).endswith(f"but {found}.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0af4,blast", r"Expected the label hem or all in line 3 of .* but got 'blast'\."),
        ("0af4,", "Expected an id and a label in line 3 of .*--skip-empty"),
        ("0af4", "Expected an id and a label in line 3 of "),
        (",all", "Expected an id and a label in line 3 of "),
        ("0af4,al\0l", "Expected the label hem or all in line 3 of "),
    ],
)
def test_a_wrong_line_is_named(read, line, words):
    with pytest.raises(DataError, match=words):
        read(f"id,label\n0af3,hem\n{line}\n")


def test_a_field_without_end_is_said(read):
    with pytest.raises(DataError, match=r"cannot be read: field larger than .*Save it as CSV UTF-8"):
        read('id,label\n0af3,"' + "x" * 200_000)


def test_lines_without_a_label_are_passed_over_where_that_is_asked(read):
    assert read("id,label\n0af3,hem\n0af4,all\n0af5,\n", skip_empty=True) == ROWS


def test_the_lines_of_ids_are_named_and_of_many_the_first_ten():
    given = [Given(f"{number:04x}", "hem", number) for number in range(2, 30)]
    ids = [row.id for row in given]
    assert lines_of(given, ids[:1]) == "line 2"
    assert lines_of(given, ids[:3]) == "lines 2, 3 and 4"
    assert lines_of(given, ids[:10]) == "lines 2, 3, 4, 5, 6, 7, 8, 9, 10 and 11"
    assert lines_of(given, ids[:12]) == "lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"
