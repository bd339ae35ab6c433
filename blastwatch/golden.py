"""Golden cells: a few cells that travel in the package with the answers that the float32 engine gave when it was made.

An engine that loads a version answers them before it may answer anybody: wrong weights, a graph of another network, a
preprocessing that changed, and a machine that computes something else all show here.

The file so holds a few images of calibration patients, at the size that the network sees, without path or name.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.engines import REFERENCE_ENGINES
from blastwatch.errors import GoldenMismatch, PackageError
from blastwatch.images import Pixels
from blastwatch.inference import Engine, in_batches
from blastwatch.package import GOLDEN, Package
from blastwatch.rounding import against
from blastwatch.state_files import write_whole

# Of the probability of a blast. Float32 engines differ by the order of their sums alone: 1e-5 at most was seen.
REFERENCE_TOLERANCE = 1e-3
# A faster engine was compared with float32 on other cells and maybe on another machine: so much more than the largest
# difference found then is allowed, but never one half, at which any label may turn.
SLACK_FACTOR, SLACK, MOST = 1.5, 0.02, 0.5


def write_golden(folder: Path, crops: Pixels, logits: NDArray[np.float32]) -> None:
    """Write the golden file of a package that is not sealed yet.

    Args:
        crops: what `blastwatch.images.crop_cell` gives, uint8, shape (n, size, size, 3).
        logits: what openvino-f32 answers to them, float32, shape (n, 2).
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "crops": np.ascontiguousarray(crops),
        "logits": np.ascontiguousarray(logits, dtype=np.float32),
    }
    write_whole(folder / GOLDEN, save(tensors))


def read_golden(package: Package) -> tuple[Pixels, NDArray[np.float32]]:
    """Crops and logits of the golden cells.

    Raises:
        PackageError: where the file cannot be read or does not fit the package's preprocessing.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(package.folder / GOLDEN)
        crops, logits = tensors["crops"], tensors["logits"]
    except (OSError, SafetensorError, KeyError) as error:
        raise PackageError(f"{GOLDEN} of the package cannot be read: {error!r}. Package the model again.") from error
    size, classes = package.info.preprocessing.size, len(package.info.class_names)
    wanted = {"crops": (np.uint8, (len(crops), size, size, 3)), "logits": (np.float32, (len(crops), classes))}
    for name, (kind, shape) in wanted.items():
        found = tensors[name]
        if found.dtype != kind or found.shape != shape or not len(found):
            raise PackageError(
                f"Expected `{name}` in {GOLDEN} to be {np.dtype(kind)} of shape {shape}, one cell at least, but got "
                f"{found.dtype} of shape {found.shape}. Package the model again."
            )
    if not np.isfinite(logits).all():
        raise PackageError(f"Expected finite `logits` in {GOLDEN} but got others. Package the model again.")
    return crops, logits


def golden_tolerance(package: Package, engine: str) -> float:
    """Largest difference of the probability of a blast that an engine may show on the golden cells.

    Raises:
        GoldenMismatch: for a faster engine that was not compared with float32 when the package was made.
    """
    if engine in REFERENCE_ENGINES:
        return REFERENCE_TOLERANCE
    measured = package.info.precision.get(engine)
    if measured is None:
        known = ", ".join([*REFERENCE_ENGINES, *sorted(package.info.precision)])
        raise GoldenMismatch(
            f"The package does not say how far {engine} differs from float32, so its answers cannot be checked. "
            f"Serve it with one of {known}, or package the model again."
        )
    return min(SLACK_FACTOR * measured.largest_difference + SLACK, MOST)


def check_golden(package: Package, engine: Engine, *, beside: bool = False, batch_size: int = 32) -> float:
    """Let an engine answer the golden cells.

    Args:
        beside: as it does where it computes several batches at a time (`Engine.infer_beside`).
        batch_size: cells at a time. An engine keeps the memory that its largest batch took.

    Returns:
        The largest difference of the probability of a blast from the stored answers.

    Raises:
        GoldenMismatch: where it is larger than allowed, or no number.
        PackageError: where the golden file itself cannot be used.
    """
    crops, logits = read_golden(package)
    limit = golden_tolerance(package, engine.name)
    answered = in_batches(engine.infer_beside if beside else engine.infer, crops, batch_size=batch_size).logits
    if answered.shape != logits.shape or not np.isfinite(answered).all():
        raise GoldenMismatch(
            f"Expected finite logits of shape {logits.shape} for the golden cells but {engine.name} gave "
            f"{int((~np.isfinite(answered)).sum())} that are not, shape {answered.shape}. This version must not serve "
            "with this engine."
        )
    temperature = package.info.temperature
    expected, got = (probabilities(values, temperature)[:, POSITIVE] for values in (logits, answered))
    differences = np.abs(got - expected)
    worst = int(differences.argmax())
    if not differences[worst] <= limit:  # so that what is no number is no answer either
        found, wanted = against(float(got[worst]), float(expected[worst]))
        apart, allowed = against(float(differences[worst]), limit)
        raise GoldenMismatch(
            f"Expected {engine.name} to give the probability {wanted} for golden cell {worst} but got {found}: they "
            f"are {apart} apart, and at most {allowed} is allowed. This version must not serve with this engine: "
            "package the model again, or use another engine."
        )
    return float(differences[worst])
