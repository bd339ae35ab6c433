"""What the text of a setting may be: each function reads one and raises `ValueError` saying what is needed."""

import ipaddress
from collections.abc import Callable
from pathlib import Path


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number is needed") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number is needed") from None


def port(text: str) -> int:
    value = whole(text)
    if not 0 < value < 65536:
        raise ValueError("a port lies between 1 and 65535")
    return value


def address(text: str) -> str:
    """As BentoML binds it, which resolves no name."""
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("an IP address is needed, or localhost, since no other name is looked up") from None


def count(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise ValueError("at least 1 is needed")
    return value


def count_or_none(text: str) -> int:
    value = whole(text)
    if value < 0:
        raise ValueError("0 or more is needed")
    return value


def positive(text: str) -> float:
    value = number(text)
    if not 0 < value < float("inf"):
        raise ValueError("a positive number is needed")
    return value


def not_negative(text: str) -> float:
    value = number(text)
    if not 0 <= value < float("inf"):
        raise ValueError("0 or a positive number is needed")
    return value


def at_most(most: int, parse: Callable[[str], float]) -> Callable[[str], float]:
    def parse_within(text: str) -> float:
        if (value := parse(text)) > most:
            raise ValueError(f"at most {most} is possible")
        return value

    return parse_within


def fraction(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1 is needed")
    return value


def api_key(text: str) -> str:
    if not text.isascii() or any(character <= " " for character in text):
        raise ValueError("the text that `blastwatch keys add` printed is needed, without spaces")
    return text


def span_target(text: str) -> str:
    if text not in ("", "console") and not text.startswith(("http://", "https://")):
        raise ValueError("console, or an address that begins with http:// or https://, is needed")
    return text


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1 is needed")
    return text == "1"


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)} is needed")
        return text

    return parse


def path(text: str) -> Path:
    if not text:
        raise ValueError("a path is needed; without the variable it is the default")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{Path(text).parts[0]} is nobody's home here; write the path out") from None


def optional_path(text: str) -> Path | None:
    return path(text) if text else None


def path_or_word(*words: str) -> Callable[[str], str]:
    """A path, but for these words, which are kept as they are; so is nothing."""

    def parse(text: str) -> str:
        return text if text in ("", *words) else str(path(text))

    return parse
