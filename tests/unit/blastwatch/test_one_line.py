"""What somebody else wrote, in a line for a person."""

import pytest

from blastwatch.one_line import breaking, one_line, turning


@pytest.mark.parametrize("text", ["fine", "größer als 血 🙂", 'so "it" is\\n', ""])
def test_a_text_stays_as_it_is(text):
    assert one_line(text) == text and not breaking(text) and not turning(text)


@pytest.mark.parametrize(("text", "line"), [
    ("a\nb", r"a\nb"), ("a\r\tb", r"a\r\tb"), ("a\x1b[1Ab", r"a\x1b[1Ab"), ("a\u2028b", r"a\u2028b"),
    ("a\u202eb", r"a\u202eb"), ("a\udcfcb", r"a\udcfcb"), ("a\x85b", r"a\x85b"),
])  # fmt: skip
def test_what_would_look_like_another_line_is_escaped(text, line):
    assert one_line(text) == line
    assert breaking(text) or turning(text)
