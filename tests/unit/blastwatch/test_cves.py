"""Holes of the libraries by the number of their CVE, without a running service; the others are in `tests/cves.py`."""

import ast
import contextlib
import dataclasses
import io
import tarfile
from pathlib import Path

import mlflow
import pytest

from blastwatch import promotion
from blastwatch.entry import Entry
from blastwatch.errors import AliasMoved, PackageError
from blastwatch.registry import Registry
from tests.packages import make_package

ROOT = Path(__file__).parents[3]


@pytest.fixture
def registry(lenient_settings, new_run, tmp_path):
    """With one champion, whose package is kept on this machine."""
    found = Registry(lenient_settings)
    found.register(make_package(tmp_path / "package", run_id=new_run()))
    promotion.promote(found, "1", reason="", cells=None)
    found.fetch("1")
    return found


def test_cve_2025_11201_a_source_that_leads_elsewhere_is_neither_fetched_nor_served(registry, tmp_path):
    """Somebody who may write to MLflow, but not sign, names a folder of this machine as the source of a version."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id_rsa").write_text("secret")
    settings = registry.settings
    client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    tags = client.get_model_version("blastwatch", "1").tags  # with the signature of an honest version
    source = f"{settings.artifacts.as_uri()}/../../secret"
    planted = str(client.create_model_version("blastwatch", source=source, tags=tags).version)
    client.set_registered_model_alias("blastwatch", "champion", planted)
    with pytest.raises(AliasMoved, match="behind the registry's back"):
        registry.proven("champion")
    before = sorted(settings.packages.rglob("*"))
    with pytest.raises(PackageError):
        registry.fetch(planted, fresh=True)
    assert sorted(settings.packages.rglob("*")) == before
    assert not [path for path in settings.home.rglob("*") if path.name == "id_rsa"]


def test_cve_2025_11201_a_digest_that_leads_elsewhere_makes_no_folder(settings, tmp_path):
    """The digest of a version is a tag, and names the folder of its local copy."""
    outside = tmp_path / "outside"
    known = Entry(version="1", digest="", run_id="", created="", synthetic=True, registered_by="tester")
    for digest in ("../../outside/x", str(outside / "x"), "..", "", "A" * 64, "a" * 63, "a" * 64 + "\n"):
        with pytest.raises(PackageError, match="Expected the SHA-256 of version 1's package"):
            Registry(settings).fetch_entry(dataclasses.replace(known, digest=digest), fresh=True)
    assert not outside.exists() and not settings.packages.exists()


def archive(members):
    """A tar archive of (name, kind, link or bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def test_cve_2026_27905_an_archive_with_links_writes_nothing_outside(tmp_path):
    """BentoML unpacks bentos and models that are pulled; the pinned release must be one that looks where links lead."""
    from bentoml._internal.utils.filesystem import safe_extract_tarfile

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    link, file = tarfile.SYMTYPE, tarfile.REGTYPE
    for number, members in enumerate(
        (
            [("away", link, str(outside)), ("away/new", file, b"x")],
            [("away", link, "../outside"), ("away/new", file, b"x")],
            [("here", link, "."), ("here/up", link, "../../outside"), ("here/up/new", file, b"x")],
            [("a", link, "b"), ("b", link, str(outside)), ("a/new", file, b"x")],
            [("over", link, str(outside / "kept")), ("over", file, b"x")],
            [("over", tarfile.LNKTYPE, str(outside / "kept")), ("over", file, b"x")],
            [("../outside/new", file, b"x")],
        )
    ):
        # Some it refuses by an error, most with a word in its log.
        with archive(members) as tar, contextlib.suppress(OSError):
            safe_extract_tarfile(tar, str(tmp_path / f"into{number}"))
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_cve_2026_27905_nothing_here_unpacks_an_archive():
    """A package is a folder whose every file has a digest; no code of the house opens what could hold a link."""
    paths = [
        path for name in ("blastwatch", "serving", "monitoring", "training") for path in (ROOT / name).rglob("*.py")
    ]
    for path in paths:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
        assert not names & {"tarfile", "zipfile", "unpack_archive"}, path
    assert len(paths) > 100
