"""One servable package for all tests of this folder."""

import pytest

from blastwatch.entry import Entry
from blastwatch.package import open_package
from serving.live import Served
from tests.service_packages import make_servable, write_cell


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("serving") / "package"))


@pytest.fixture(scope="session")
def served(package):
    entry = Entry(
        version="7", digest=package.digest, run_id="run", created="2026-01-01T00:00:00+00:00", synthetic=True,
        registered_by="tester", aliases=["champion"], metrics={"weighted_f1": 0.9},
    )  # fmt: skip
    source = {"model": "blastwatch", "registry": "the registry under home"}  # of the default settings
    return Served(entry=entry, package=package, alias="champion", source=source)


@pytest.fixture
def cell(tmp_path):
    return write_cell(tmp_path / "cell.bmp")
