"""The model package: one folder that holds all there is to know of one model version. No pickle in it.

model.json                       what `ModelInfo` says
weights.safetensors              the network's state
network.onnx                     the float32 graph: `cells` -> `logits`, `embedding`
network-int8.onnx                the same, quantized after training on calibration patients
golden.safetensors               `crops`, `logits`: a few cells of calibration patients and what float32 answers to them
projection.safetensors           `mean`, `components`: reduces an embedding to what monitoring keeps
ood.safetensors                  how unlike the known cells an embedding is, and the limit (from format 4 on)
reference.parquet                reference data for drift, one row a cell of patients not trained on
trained.parquet                  what drift may know of patients trained on, one row a cell (from format 5 on)
seen.safetensors                 digests of the pixels of every cell that it learned from, by side (from format 7 on)
drift.json                       drift thresholds calibrated on both
evidence/metrics.json            metrics with intervals, per patient
evidence/test_predictions.parquet  logits of every test cell
evidence/audit.json, split.json, data.json, params.json
report.html                      the evaluation report, in one file that needs no network (from format 3 on)
card.md                          the model card
digests.json                     SHA-256 of every other file, and one for all of them
"""

import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.baseline import number_of
from blastwatch.decision import CLASS_NAMES, Thresholds
from blastwatch.digests import combined_digest, folder_digests
from blastwatch.errors import PackageError
from blastwatch.images import Preprocessing
from blastwatch.package_files import read_object, read_table, read_tensors
from blastwatch.state_files import write_whole

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 7
READABLE = (2, 3, 4, 5, 6, FORMAT)
"""Formats that are opened: a package that serves stays in service."""

MODEL = "model.json"
WEIGHTS = "weights.safetensors"
ONNX = "network.onnx"
ONNX_INT8 = "network-int8.onnx"
GOLDEN = "golden.safetensors"
PROJECTION = "projection.safetensors"
REFERENCE = "reference.parquet"
TRAINED = "trained.parquet"
DRIFT = "drift.json"
METRICS = "evidence/metrics.json"
PREDICTIONS = "evidence/test_predictions.parquet"
EVIDENCE = tuple(f"evidence/{name}.json" for name in ("audit", "split", "data", "params"))
REPORT = "report.html"
CARD = "card.md"
OOD = "ood.safetensors"
SEEN = "seen.safetensors"
DIGESTS = "digests.json"

SINCE = {REPORT: 3, OOD: 4, TRAINED: 5, SEEN: 7}
"""Files that packages of earlier formats do not have, and the format that brought them."""

REQUIRED = (
    *(MODEL, WEIGHTS, ONNX, ONNX_INT8, GOLDEN, PROJECTION, REFERENCE, DRIFT, METRICS, PREDICTIONS),
    *EVIDENCE,
    CARD,
    REPORT,
    OOD,
    TRAINED,
    SEEN,
)

OUT_OF_FOLD = "out-of-fold"
"""What `calibration` of the metrics says under `on` where training patients were answered by fits that had not seen
them."""

HEADLINE = ("weighted_f1", "auroc", "sensitivity", "specificity")
"""Figures over test cells that are told with a version wherever it is named."""

PREDICTION_COLUMNS = ("path", "subject", "group", "label", "pixel_sha256", "logit_hem", "logit_all", "probability")
"""Columns of `PREDICTIONS`; `probability` is the calibrated probability of a blast."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How one engine's answers differ from the float32 reference, measured on `cells` cells when packaged.

    flip_rate: share of cells whose label differs; decision_flip_rate: share whose decision differs, without concerns
    about the image; largest_difference: of the probability of a blast; speed: cells a second over those of torch-f32,
    on the machine that packaged. decision_flip_rate and speed are None in packages of a format before 4, speed also for
    an engine of a GPU that was emulated, as on a machine without one.

    scale, shift: what the engine's logits are multiplied by, and what is then added to each class's, so that they are
    nearest to float32's; the other figures are of logits so corrected. From format 6 on, before that nothing.
    """

    cells: int
    flip_rate: float
    largest_difference: float
    decision_flip_rate: float | None = None
    speed: float | None = None
    scale: float = 1.0
    shift: tuple[float, ...] = (0.0,) * len(CLASS_NAMES)

    @property
    def is_plain(self) -> bool:
        """Whether the logits are answered as they are."""
        return self.scale == 1 and not any(self.shift)

    def corrected(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits as the engine gives them, shape (n, classes), and as they are answered."""
        return np.asarray(np.float32(self.scale) * logits + np.array(self.shift, np.float32), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What `model.json` says.

    quality_limits: per image statistic, the lowest and highest value that is this model's kind of image.
    synthetic: True where any cell behind the model was drawn and not photographed.
    """

    architecture: str
    preprocessing: Preprocessing
    temperature: float
    thresholds: Thresholds
    synthetic: bool
    data_digest: str
    split_digest: str
    run_id: str
    git_commit: str
    lock_digest: str
    created: str
    class_names: tuple[str, ...] = CLASS_NAMES
    precision: dict[str, Precision] = field(default_factory=dict)
    quality_limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelInfo":
        """Parse `model.json`; raises `PackageError` where it is of another format or incomplete."""
        try:
            values = json.loads(text, parse_constant=_finite, parse_float=_finite)
            if values.get("format") not in READABLE:
                raise PackageError(
                    f"Expected a model package of format {' or '.join(map(str, READABLE))} but got "
                    f"{values.get('format')!r}. "
                    "Package the model again with this version of blastwatch."
                )
            if not values["temperature"] > 0:
                raise ValueError(f"expected a temperature above 0 but got {values['temperature']}")
            shape = values.pop("preprocessing")
            return cls(
                preprocessing=Preprocessing(
                    crop=shape["crop"], size=shape["size"], mean=tuple(shape["mean"]), std=tuple(shape["std"])
                ),
                thresholds=Thresholds(**values.pop("thresholds")),
                class_names=tuple(values.pop("class_names")),
                precision={name: _precision(row) for name, row in values.pop("precision").items()},
                quality_limits={name: (low, high) for name, (low, high) in values.pop("quality_limits").items()},
                **values,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PackageError(f"{MODEL} cannot be read: {error!r}. Package the model again.") from error


def _finite(text: str) -> float:
    """A number of JSON as Python reads it; NaN and what is too large for a float are none: no limit holds them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers but got {text}")
    return value


def _precision(row: dict[str, Any]) -> Precision:
    shift = {"shift": tuple(row["shift"])} if "shift" in row else {}
    found = Precision(**row | shift)
    for name in ("flip_rate", "largest_difference"):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"expected {name} from 0 to 1 but got {value!r}")
    return found


@dataclass(frozen=True)
class Package:
    """A verified model package; open it with `open_package`."""

    folder: Path
    info: ModelInfo
    digest: str

    def metrics(self) -> dict[str, Any]:
        """The evidence: what `blastwatch evaluate --json` prints."""
        return read_object(self.folder, METRICS)

    @cached_property
    def headline(self) -> dict[str, float]:
        """The figures that are told beside the version's name: those of `HEADLINE` that the evidence has, by cells.

        Raises:
            PackageError: where one is no number.
        """
        cells = self.metrics().get("cells")
        if not isinstance(cells, dict):
            raise PackageError(
                f"Expected an object as `cells` in {METRICS} but got {cells!r:.80}. Evaluate and package the model "
                "again."
            )
        found = {}
        for name in (name for name in HEADLINE if name in cells):
            value = number_of(cells[name], "value")
            if value is None:
                raise PackageError(
                    f"Expected a number as `value` of {name} in {METRICS} but got {cells[name]!r:.80}. Evaluate and "
                    "package the model again."
                )
            found[name] = value
        return found

    def evidence(self, name: str) -> dict[str, Any]:
        """One of the JSON files under `evidence/`: audit, split, data or params."""
        return read_object(self.folder, f"evidence/{name}.json")

    def predictions(self) -> "pd.DataFrame":
        """Logits and probabilities of the test cells, columns `PREDICTION_COLUMNS`."""
        return read_table(self.folder, PREDICTIONS, PREDICTION_COLUMNS)

    def calibrated_out_of_fold(self) -> bool:
        """Whether training patients calibrated too, answered by fits that had not seen them. Then the last layer alone
        was fitted, so the embedding was learned from no patient."""
        said = self.metrics().get("calibration")
        return isinstance(said, dict) and said.get("on") == OUT_OF_FOLD

    def reference(self) -> "DriftReference":
        """What a window of predictions is held against."""
        import pandas as pd

        names = [REFERENCE] if self.info.format < SINCE[TRAINED] else [REFERENCE, TRAINED]
        parts = [read_table(self.folder, name, ("group", "probability")) for name in names]
        return DriftReference(pd.concat(parts, ignore_index=True))

    def drift(self) -> dict[str, Any]:
        """Drift thresholds calibrated on the reference.

        Raises:
            PackageError: one of its numbers is none: no score would ever lie above such a threshold.
        """
        return read_object(self.folder, DRIFT, number=_finite)

    def projection(self) -> "Projection":
        """The projection of this version's embeddings.

        Raises:
            PackageError: where the file holds none.
        """
        mean, components = read_tensors(self.folder, PROJECTION, ("mean", "components"))
        if mean.ndim != 1 or components.ndim != 2 or components.shape[1:] != mean.shape:
            raise PackageError(
                f"Expected `mean` of shape (d,) and `components` of shape (k, d) in {PROJECTION} but got {mean.shape} "
                f"and {components.shape}. Package the model again."
            )
        return Projection(mean=mean, components=components)


@dataclass(frozen=True)
class DriftReference:
    """The cells that a version knows, a row each; its columns are `monitoring.reference.reference_columns`.

    Statistics of an image are what they are, whoever learned from it. What a network says of a cell that it learned
    from is not what it says of a new one: `probability` and embedding of such a cell are NaN.
    """

    cells: "pd.DataFrame"

    @cached_property
    def answered(self) -> "pd.DataFrame":
        """The cells of patients whom what answered them had never seen."""
        return self.cells[self.cells["probability"].notna()].reset_index(drop=True)


@dataclass(frozen=True)
class Projection:
    """Principal axes of the training embeddings: mean (d,) and components (k, d), float32."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def __call__(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reduce embeddings (n, d) to (n, k), float32."""
        return np.asarray((embeddings - self.mean) @ self.components.T, dtype=np.float32)

    @cached_property
    def wide(self) -> NDArray[np.float64]:
        """The components in float64, widened once and not for every cell."""
        return self.components.astype(np.float64)

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        write_whole(path, save({"mean": self.mean, "components": np.ascontiguousarray(self.components)}))


def seal(folder: Path) -> str:
    """Write `digests.json` over everything in the folder and return the package's digest (SHA-256, hex).

    Raises:
        PackageError: naming the files that are still missing.
    """
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise PackageError(f"The package in {folder} is incomplete: {', '.join(missing)} missing.")
    files = folder_digests(folder, leave_out=(DIGESTS,))
    digest = combined_digest(files)
    (folder / DIGESTS).write_text(json.dumps({"digest": digest, "files": files}, indent=2, sort_keys=True) + "\n")
    return digest


def open_package(folder: Path) -> Package:
    """Check every digest, then read the package.

    Raises:
        PackageError: naming each file that is missing, changed or not accounted for.
    """
    if not (folder / DIGESTS).is_file():
        raise PackageError(f"{folder} is no model package: {DIGESTS} is missing. Make one with: blastwatch package")
    try:
        sealed = json.loads((folder / DIGESTS).read_text())
        expected: dict[str, str] = dict(sealed["files"])
        digest = str(sealed["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{DIGESTS} in {folder} cannot be read: {error!r}. Fetch the package again.") from error
    found = folder_digests(folder, leave_out=(DIGESTS,))
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is not accounted for" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} was changed" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]
    faults += [f"{name} is not in {DIGESTS}" for name in REQUIRED if name not in (*expected, *SINCE)]
    if combined_digest(expected) != digest:
        faults.append(f"{DIGESTS} was changed")
    if faults:
        raise PackageError(f"The model package in {folder} is not what was sealed: {'; '.join(faults)}.")
    info = ModelInfo.from_json((folder / MODEL).read_text())
    lacking = [name for name, since in SINCE.items() if info.format >= since and name not in expected]
    if lacking:
        raise PackageError(
            f"The model package in {folder} is not what was sealed: {', '.join(lacking)} not in {DIGESTS}."
        )
    return Package(folder=folder, info=info, digest=digest)
