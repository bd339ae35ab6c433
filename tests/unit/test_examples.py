"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("blastwatch", "monitoring", "serving", "training")


def with_examples():
    """Names of the modules whose docstrings show what a call gives."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if ">>> " in path.read_text()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found)


@pytest.mark.parametrize("module", with_examples())
def test_an_example_gives_what_it_says(module):
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted and not done.failed
