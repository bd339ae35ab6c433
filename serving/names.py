"""File names as text. A name in a file system is bytes, of which any program may have made any."""


def text_of(name: str) -> str:
    """A name that UTF-8 can hold, as JSON and Parquet need it: each byte that is none stands as \\xNN.

    >>> text_of("caf\\udce9.bmp")
    'caf\\\\xe9.bmp'
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def line_of(text: str) -> str:
    """Text with file names in it as one line that a terminal shows and does not obey.

    >>> line_of("a\\nb\\x1b[31m.bmp")
    'a\\\\nb\\\\x1b[31m.bmp'
    """
    known = text_of(text)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in known)
