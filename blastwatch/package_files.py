"""The files of a model package, read so that one of another shape is named and ends in no error that is not ours.

Their digests say that nobody changed them since the package was sealed, not that they were right then.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from blastwatch.errors import PackageError

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("path", "subject", "group", "label", "pixel_sha256")  # columns of a table that hold text alone


def read_object(folder: Path, name: str, *, number: Callable[[str], float] = float) -> dict[str, Any]:
    """A JSON object. `number` reads what is none of JSON's whole numbers.

    Raises:
        PackageError: where the file holds anything else.
    """
    try:
        text = (folder / name).read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError) as error:  # the first of JSON and of UTF-8
        raise PackageError(f"{name} cannot be read: {error}. Package the model again.") from error
    if not isinstance(value, dict):
        raise PackageError(f"Expected a JSON object in {name} but got {type(value).__name__}. Package the model again.")
    return value


def read_table(folder: Path, name: str, columns: Sequence[str]) -> "pd.DataFrame":
    """A table that has these columns, and text where it belongs; it may have others.

    Raises:
        PackageError: where the file holds anything else.
    """
    import pandas as pd

    try:
        rows = pd.read_parquet(folder / name)
    except (ValueError, OSError) as error:  # Arrow's errors are of both
        raise PackageError(f"{name} cannot be read: {error}. Package the model again.") from error
    lacking = [column for column in columns if column not in rows.columns]
    if lacking:
        raise PackageError(
            f"{name} has no {', '.join(lacking)}; expected the columns {', '.join(columns)}. Package the model again."
        )
    for column in (column for column in columns if column in _TEXTS):
        other = next((value for value in rows[column] if not isinstance(value, str)), "")
        if not isinstance(other, str):
            raise PackageError(f"Expected text as {column} in {name} but got {other!r:.80}. Package the model again.")
    return rows


def read_tensors(folder: Path, name: str, wanted: Sequence[str]) -> list[NDArray[Any]]:
    """These tensors, in this order.

    Raises:
        PackageError: where the file does not hold them.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / name)
        return [tensors[tensor] for tensor in wanted]
    except (OSError, SafetensorError, KeyError) as error:
        raise PackageError(f"{name} of the package cannot be read: {error!r}. Package the model again.") from error
