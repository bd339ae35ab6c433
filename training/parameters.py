"""`params.yaml`: every knob that shapes a model, typed. DVC watches the same keys."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from blastwatch.errors import UsageError
from blastwatch.network import ARCHITECTURES, READ_BY_STAGES
from training.data_parameters import AuditParameters, ContractParameters, ImportParameters
from training.splitting import SplitParameters


@dataclass(frozen=True, kw_only=True)
class ImageParameters:
    """Section `image`: crop and size in pixels, see `blastwatch.images.Preprocessing`."""

    crop: int = 320
    size: int = 224


READ_BY_LOGISTIC = (
    "architecture", "weights", "weights_file", "fit", "fusion", "nuisances", "shrink_patients", "balance", "precision",
    "channels_last", "seed",
)  # fmt: skip
"""What `train.fit=logistic` reads of the section `train`; the rest is for training by gradients."""


@dataclass(frozen=True, kw_only=True)
class TrainParameters:
    """Section `train`.

    weights: scratch, imagenet (`training.weights`) or file (`weights_file`, safetensors or a plain state dict).
    fit: gradient (the whole network, step by step) or logistic (the last layer alone, at once:
    `training.linear_probe`); of the knobs that follow, logistic reads fusion, nuisances, shrink_patients, balance,
    precision, channels_last and seed. fusion: of several networks beside each other, features (one last layer
    reads them all) or scores (each has its own, and their log odds are averaged). nuisances: with fit: logistic,
    directions along which simulated cameras move what the last layer reads, and in which it has no weight.
    shrink_patients: with fit: logistic, how much less it leans on directions in which patients of one label differ.
    probe_epochs: at the start, in which the last layer alone learns; layer_decay: rate of a block over that of the
    next one; frozen: blocks next to the image that never learn. accumulate: pieces that a batch is cut into.
    warmup: share of the steps after the probe.
    balance: what weighs the same: class (each class), subject (each subject, within equal classes) or none (each
    cell); balance_by: loss (each cell is shown once an epoch and weighed) or sampling (shown as often as it weighs).
    robust: step of the group weights of group DRO, 0 for none. mixup: parameter of the beta distribution, 0 for none.
    precision: fp32, bf16, fp16 or auto (bf16 where the device computes in it). compile: by torch.compile.
    first_size: px of the first epoch's input, from which it grows to the full size by half the epochs, in steps of 32;
        0 for none.
    keep: best (epoch by the validation patients) or last. patience: epochs without a better validation patient before
    training stops; with keep: last there is no such stop. average: decay a step of the averaged
    weights, 0 for none. augment: strength of stain, light, scale and blur; 0 leaves flips, turns and shifts alone.
    erase: share of the cells of which a square is erased.
    """

    architecture: str = "resnet50"
    weights: str = "scratch"
    weights_file: str = ""
    fit: str = "gradient"
    fusion: str = "features"
    nuisances: int = 0
    shrink_patients: float = 0.0
    probe_epochs: int = 0
    epochs: int = 30
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    frozen: int = 0
    weight_decay: float = 0.05
    warmup: float = 0.2
    label_smoothing: float = 0.05
    balance: str = "subject"
    balance_by: str = "loss"
    robust: float = 0.0
    mixup: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    first_size: int = 0
    keep: str = "best"
    patience: int = 8
    average: float = 0.99
    augment: float = 1.0
    erase: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.probe_epochs >= self.epochs:
            raise UsageError(
                f"Expected train.probe_epochs to be fewer than train.epochs ({self.epochs}) but got "
                f"{self.probe_epochs}."
            )
        if self.frozen and self.weights == "scratch":
            raise UsageError(
                f"train.frozen={self.frozen} keeps blocks as they were drawn: set train.weights to imagenet or file, "
                "or train.frozen to 0."
            )
        if self.fit == "logistic" and self.weights == "scratch":
            raise UsageError(
                "train.fit=logistic leaves all but the last layer as it was drawn: set train.weights to imagenet or "
                "file, or train.fit to gradient."
            )
        if self.nuisances and self.fit != "logistic":
            raise UsageError(
                f"train.nuisances={self.nuisances} is read by train.fit=logistic alone; with train.fit=gradient "
                "train.augment makes a network bear other cameras. Set train.nuisances to 0."
            )
        if self.shrink_patients and self.fit != "logistic":
            raise UsageError(
                f"train.shrink_patients={self.shrink_patients} is read by train.fit=logistic alone. Set it to 0."
            )
        if self.fusion == "scores" and (self.fit != "logistic" or len(READ_BY_STAGES.get(self.architecture, ())) < 2):
            several = [name for name, bases in READ_BY_STAGES.items() if len(bases) > 1]
            raise UsageError(
                "train.fusion=scores averages what networks beside each other say: expected train.architecture out of "
                f"{', '.join(several)} and train.fit=logistic but got {self.architecture} and {self.fit}. "
                "Or set train.fusion to features."
            )


def as_read(train: TrainParameters) -> TrainParameters:
    """The same, with the defaults in the place of what its `fit` does not read: two that are equal so are one
    training."""
    if train.fit != "logistic":
        return train
    return TrainParameters(**{name: getattr(train, name) for name in READ_BY_LOGISTIC})


@dataclass(frozen=True, kw_only=True)
class PretrainParameters:
    """Section `pretrain`, for `blastwatch pretrain`. projector: width of the layers that are thrown away afterwards;
    augment, erase, precision: as in `train`."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    projector: int = 1024
    precision: str = "auto"
    augment: float = 1.5
    erase: float = 0.25
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class EvaluateParameters:
    """Section `evaluate`. camera_cells: test cells that are looked at under each simulated camera too, 0 for none.
    resamples: bootstrap draws of whole groups; permutations: swaps of two models' answers in a
    comparison; error: share of wrong decisions allowed on each side of the referred cells, for the next patient;
    conformal: how its limits are taken from calibration patients, subsampled or pooled (`training.conformal`);
    calibrate_on: calibration (the patients of that side) or out-of-fold (those in training too, see
    `training.out_of_fold`);
    operating: how the operating threshold is chosen on calibration patients, youden (highest sum of sensitivity and
    specificity) or sensitivity (that of `sensitivity` is reached)."""

    camera_cells: int = 160
    resamples: int = 1000
    permutations: int = 10_000
    error: float = 0.1
    conformal: str = "subsampled"
    calibrate_on: str = "calibration"
    operating: str = "youden"
    sensitivity: float = 0.9
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class PackageParameters:
    """Section `package`. calibration_cells: cells that int8 is calibrated on; parity_cells: cells that every
    engine is compared on: test cells, filled up with calibration cells; golden_cells: cells that travel in the package
    with their answers; false_alarm_rate: of the drift
    verdict, per window; drift_resamples: simulated windows, 1 / false_alarm_rate or more; ood_rate: share of a new
    patient's cells that may be called out of distribution."""

    calibration_cells: int = 256
    parity_cells: int = 500
    golden_cells: int = 8
    false_alarm_rate: float = 0.001
    drift_resamples: int = 1000
    ood_rate: float = 0.02
    seed: int = 1


PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHOICES = {
    ("import", "kind"): ("cnmc", "folder", "table"),
    ("train", "architecture"): ARCHITECTURES,
    ("train", "weights"): ("scratch", "imagenet", "file"),
    ("train", "fit"): ("gradient", "logistic"),
    ("train", "fusion"): ("features", "scores"),
    ("train", "balance"): ("class", "subject", "none"),
    ("train", "balance_by"): ("loss", "sampling"),
    ("train", "keep"): ("best", "last"),
    ("train", "precision"): PRECISIONS,
    ("pretrain", "precision"): PRECISIONS,
    ("evaluate", "conformal"): ("subsampled", "pooled"),
    ("evaluate", "calibrate_on"): ("calibration", "out-of-fold"),
    ("evaluate", "operating"): ("youden", "sensitivity"),
}
# Lowest and highest value; where none is named a number must be positive.
RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("contract", "most_refused"): (0, 1),
    ("contract", "most_odd"): (0, 1),
    ("image", "crop"): (16, 4096),
    ("image", "size"): (32, 1024),
    ("train", "probe_epochs"): (0, 10_000),
    ("train", "nuisances"): (0, 10_000),
    ("train", "shrink_patients"): (0, 1e6),
    ("train", "layer_decay"): (0.01, 1),
    ("train", "frozen"): (0, 1000),
    ("train", "robust"): (0, 1),
    ("train", "mixup"): (0, 10),
    ("train", "first_size"): (0, 1024),
    ("train", "erase"): (0, 1),
    ("train", "warmup"): (0, 0.9),
    ("train", "weight_decay"): (0, 1),
    ("train", "label_smoothing"): (0, 0.5),
    ("train", "average"): (0, 0.99999),
    ("train", "augment"): (0, 3),
    ("pretrain", "batch_size"): (2, float("inf")),  # batch normalisation cannot learn from a single cell
    ("pretrain", "weight_decay"): (0, 1),
    ("pretrain", "augment"): (0, 3),
    ("pretrain", "erase"): (0, 1),
    ("pretrain", "seed"): (0, 2**31),
    ("train", "seed"): (0, 2**31),
    ("evaluate", "camera_cells"): (0, 1_000_000),
    ("evaluate", "resamples"): (20, 100_000),
    ("evaluate", "permutations"): (100, 1_000_000),
    ("evaluate", "error"): (0.001, 0.5),
    ("evaluate", "sensitivity"): (0.5, 1),
    ("evaluate", "seed"): (0, 2**31),
    ("package", "calibration_cells"): (8, 10_000),
    ("package", "golden_cells"): (2, 64),
    ("package", "false_alarm_rate"): (0.0001, 0.5),
    ("package", "ood_rate"): (0.001, 0.5),
    ("package", "drift_resamples"): (50, 100_000),
    ("package", "seed"): (0, 2**31),
}


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The whole file. The section `import` is called `importing` here, since `import` is a word of the language."""

    importing: ImportParameters = field(default_factory=ImportParameters)
    audit: AuditParameters = field(default_factory=AuditParameters)
    contract: ContractParameters = field(default_factory=ContractParameters)
    split: SplitParameters = field(default_factory=SplitParameters)
    image: ImageParameters = field(default_factory=ImageParameters)
    pretrain: PretrainParameters = field(default_factory=PretrainParameters)
    train: TrainParameters = field(default_factory=TrainParameters)
    evaluate: EvaluateParameters = field(default_factory=EvaluateParameters)
    package: PackageParameters = field(default_factory=PackageParameters)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        values = asdict(self)
        values["import"] = values.pop("importing")
        return values


def load_parameters(path: Path | None, overrides: Sequence[str] = ()) -> Parameters:
    """Read a params file, then overrides such as `train.epochs=3`. What is not named keeps its default.

    Args:
        path: None for no file.

    Raises:
        UsageError: naming the key, what was expected and what came.
    """
    document = _read(path) if path else {}
    for override in overrides:
        key, mark, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (mark and dot and name):
            raise UsageError(f"Expected SECTION.KEY=VALUE, such as train.epochs=3, but got {override!r}.")
        document.setdefault(section, {})[name] = read_value(key, text)
    return parse(document)


NO_YAML = (yaml.YAMLError, ValueError, IndexError)
"""What PyYAML raises: the second of a date with a month 13, the third of a number without a digit."""


def read_value(key: str, text: str) -> Any:
    """A value as YAML reads it; raises `UsageError` where it is none, naming the key."""
    try:
        return yaml.safe_load(text)
    except NO_YAML as error:
        raise UsageError(f"Expected a value of {key} as YAML has it but got {text!r}: {error}") from error


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise UsageError(f"{path} is missing: expected a YAML file of parameters. Name one with --params FILE.")
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except NO_YAML as error:
        raise UsageError(f"Expected YAML in {path} but it cannot be read: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(section, dict) for section in document.values()):
        raise UsageError(f"Expected sections of keys and values in {path} but got something else.")
    return document


def parse(document: dict[str, dict[str, Any]]) -> Parameters:
    """Check every section and key of a document."""
    kinds = {("import" if f.name == "importing" else f.name): f for f in fields(Parameters)}
    unknown = sorted(set(document) - set(kinds))
    if unknown:
        raise UsageError(f"Expected the sections {', '.join(kinds)} but got {', '.join(map(str, unknown))}.")
    hints = get_type_hints(Parameters)
    values = {
        kind.name: _section(name, hints[kind.name], document.get(name, {})) for name, kind in kinds.items()
    }  # fmt: skip
    parameters = Parameters(**values)
    if (parameters.train.weights == "file") != bool(parameters.train.weights_file):
        raise UsageError("train.weights=file and train.weights_file go together: name both or neither.")
    if parameters.train.first_size > parameters.image.size:
        raise UsageError(
            f"Expected train.first_size to be at most image.size ({parameters.image.size}), to which the input grows, "
            f"but got {parameters.train.first_size}. Set it to 0 for inputs of one size."
        )
    rate, windows = parameters.package.false_alarm_rate, parameters.package.drift_resamples
    if rate * windows < 1 - 1e-9:
        raise UsageError(
            f"Expected package.drift_resamples to be {ceil(1 / rate - 1e-9)} or more for package.false_alarm_rate "
            f"{rate:g}, which so few windows cannot give, but got {windows}. Set more windows or a higher rate."
        )
    return parameters


def _section(name: str, kind: type, values: dict[str, Any]) -> Any:
    known = get_type_hints(kind)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"Expected keys of {name} among {', '.join(known)} but got {', '.join(map(str, unknown))}.")
    return kind(**{key: checked(name, key, known[key], value) for key, value in values.items()})


def checked(section: str, key: str, kind: type, value: Any) -> Any:
    """A value that the key takes by itself, whatever the others are. Raises `UsageError`."""
    where = f"{section}.{key}"
    if kind is float and type(value) is int:
        value = float(value)
    if kind is float and isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError as error:
            raise UsageError(f"Expected {where} to be a number but got {value!r}.") from error
    if type(value) is not (get_origin(kind) or kind):
        raise UsageError(f"Expected {where} to be {_words(kind)} but got {value!r}.")
    choices = CHOICES.get((section, key))
    if choices and value not in choices:
        raise UsageError(f"Expected {where} to be one of {', '.join(choices)} but got {value!r}.")
    if isinstance(value, int | float) and not isinstance(value, bool) and section != "split":
        low, high = RANGES.get((section, key), (1e-12 if kind is float else 1, float("inf")))
        if not low <= value <= high:
            raise UsageError(f"Expected {where} to lie from {low:g} to {high:g} but got {value!r}.")
    return value


def _words(kind: type) -> str:
    if get_origin(kind) is list:
        return "a list"
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return named.get(kind, " or ".join(map(str, get_args(kind))))
