"""The manifest's files: what was changed since, cut off or made by an earlier program."""

import errno
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from blastwatch.errors import DataError
from blastwatch.manifest import AUDIT, IMPORT, MANIFEST, SPLIT, STATISTICS, read_cells, read_split
from training.audit import read_audit, read_statistics
from training.data_card import data_card, write_data_page


@pytest.fixture
def data(cohort, tmp_path):
    """A copy of the cohort's cells, audit and split, whose images stay where they are."""
    for name in ("cells", "audit", "split"):
        shutil.copytree(cohort / name, tmp_path / name)
    edit(tmp_path / "cells" / IMPORT, root=str(read_cells(cohort / "cells").root))
    return tmp_path


def edit(path, **changes):
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


@pytest.mark.parametrize(("column", "value"), [("source", "elsewhere"), ("width", 451), ("file_sha256", "0" * 64)])
def test_every_column_of_the_manifest_is_sealed(data, column, value):
    rows = pd.read_parquet(data / "cells" / MANIFEST)
    rows.loc[3, column] = value
    rows.to_parquet(data / "cells" / MANIFEST)
    with pytest.raises(DataError, match="was changed after its import"):
        read_cells(data / "cells")
    edit(data / "cells" / IMPORT, rows_digest=None)  # of an earlier program, which sealed less
    assert len(read_cells(data / "cells").rows) == len(rows)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (f"cells/{IMPORT}", lambda data: read_cells(data / "cells")),
        (f"cells/{MANIFEST}", lambda data: read_cells(data / "cells")),
        (f"audit/{AUDIT}", lambda data: read_audit(data / "audit", read_cells(data / "cells"))),
        (f"audit/{STATISTICS}", lambda data: read_statistics(data / "audit")),
        (f"split/{SPLIT}", lambda data: read_split(data / "cells", data / "split")),
    ],
)
def test_a_file_that_was_cut_off_is_named_with_the_command_that_makes_it(data, name, read):
    whole = (data / name).read_bytes()
    read(data)
    (data / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{name} is damaged or cut off: .*Make it anew: blastwatch data "):
        read(data)
    (data / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing\. Make it with: blastwatch data "):
        read(data)


@pytest.mark.parametrize(("name", "opened"), [(IMPORT, Path), (MANIFEST, pd)])
def test_a_file_that_may_not_be_read_is_not_called_damaged(data, monkeypatch, name, opened):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(opened, "read_text" if opened is Path else "read_parquet", refused)
    with pytest.raises(DataError, match=rf"read .*{name} but may not: Permission denied\. Let this user") as told:
        read_cells(data / "cells")
    assert "cut off" not in str(told.value) and "anew" not in str(told.value)


def test_a_page_of_images_that_are_gone_says_which(data):
    edit(data / "cells" / IMPORT, root=str(data / "nowhere"))
    cells = read_cells(data / "cells")
    with pytest.raises(DataError, match=r"Expected the image .*nowhere/.*bmp, .* cannot be read: No such file"):
        write_data_page(cells, data_card(cells), data / "data.html")
