"""One training: from the split and the pack to weights, curves and a tracked run."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import blastwatch
from blastwatch import history
from blastwatch.console import say
from blastwatch.digests import file_digest, json_digest
from blastwatch.errors import UsageError
from blastwatch.manifest import SPLIT_FACTS, read_cells, read_json, read_split, write_json
from blastwatch.network import build, save_weights
from blastwatch.registry import lock_digest
from blastwatch.rounding import fixed
from blastwatch.settings import Settings
from training.checkpoint import alone_with
from training.distributed import World, world_of_torchrun
from training.fitting import Fit, Progress
from training.initial_weights import initial_weights
from training.linear_probe import LinearProbe
from training.loop import Trainer
from training.memory import keep_freed_memory
from training.out_of_fold import OUT_OF_FOLD, write_out_of_fold
from training.pack import Packed, check_image, open_pack
from training.parameters import Parameters, TrainParameters
from training.pretraining import check_unseen
from training.sampling import side_of
from training.splitting import check_leak, dealt_by
from training.tracking import NAME, PARENT, flat, git_commit, open_run, read_knobs, unfinished_run
from training.weights import first_network

WEIGHTS, FACTS, CURVES = "weights.safetensors", "train.json", "curves.csv"
APART = (PARENT, "blastwatch.recipe")  # labels that part trainings of the same inputs from one another
Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Within:
    """What a training that is one of many is given.

    labels: further tags of its run; with another value of one of `APART` it is another training, with a checkpoint and
    a run of its own. on_epoch: called with the row of the curves after each epoch; what it raises stops
    the training and leaves the checkpoint. kept: where those that fit a last layer alone keep what it reads
    (`training.embedding.Embedder`), None where each computes it.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    on_epoch: Callable[[Row], None] = lambda row: None  # noqa: ARG005
    kept: Path | None = None


def run_training(
    parameters: Parameters,
    settings: Settings,
    within: Within | None = None,
    /,
    *,
    cells: Path,
    split: Path,
    pack: Path,
    out: Path,
) -> dict[str, Any]:
    """Train, track and write `weights.safetensors`, `train.json` and `curves.csv`; resumes a stopped training.

    Under torchrun every process trains, and the first one tracks and writes.

    Raises:
        LeakFound: where a patient stands on two sides of a split that claims to be by group, or pretrained weights
            have seen a held-out patient.
        UsageError: where another process is at the same training.
        DataError: where the pack is of another crop or size than the parameters say, or a checkpoint of another
            precision.
    """
    keep_freed_memory()
    manifest = read_cells(cells)
    rows = read_split(cells, split)
    split_facts = read_json(split / SPLIT_FACTS, made_by=f"blastwatch data split {cells}")
    if split_facts["by"] == "group":
        check_leak(rows)
    if parameters.train.weights == "file":
        check_unseen(Path(parameters.train.weights_file), rows)
    packed = open_pack(pack, manifest)
    check_image(packed, parameters.image, pack)
    values = {name: section for name, section in parameters.to_dict().items() if name in ("image", "train")}
    start = initial_weights(parameters.train)
    within = within or Within()
    inputs = {"parameters": values, "split": split_facts["digest"], "pack": packed.digest, "start": start}
    inputs |= averaging(parameters.train)
    key = json_digest(inputs | {label: within.labels[label] for label in APART if label in within.labels})
    checkpoint = checkpoint_path(settings, key)
    project = Path(blastwatch.__file__).parents[1]
    facts: dict[str, Any] = {
        "data_digest": manifest.digest,
        "split_digest": split_facts["digest"],
        "pack_digest": packed.digest,
        "git_commit": git_commit(project),
        "lock_digest": lock_digest(project),
        "synthetic": manifest.synthetic,
        "leaky": split_facts["leaky"],
        "architecture": parameters.train.architecture,
        "image": asdict(parameters.image),
        "parameters": asdict(parameters.train),
        "initial_weights": start,
    }
    with world_of_torchrun() as world, alone_with(checkpoint) if world.first else nullcontext():
        if not world.first:
            _fit(parameters.train, rows, packed, checkpoint, world).run(_say_nothing)
            return facts
        going_on = unfinished_run(settings, key) if checkpoint.is_file() else None
        named = ("data_digest", "split_digest", "git_commit", "lock_digest", "synthetic", "leaky")
        tags = {f"blastwatch.{name}": str(facts[name]).lower() for name in named} | {"blastwatch.key": key}
        tags |= {f"blastwatch.initial_weights.{name}": value for name, value in start.items() if name != "subjects"}
        tags |= within.labels
        with open_run(settings, run_id=going_on, tags=tags) as run:
            import mlflow

            if going_on is None:
                own = {"train": read_knobs(asdict(parameters.train)), "split": dealt_by(split_facts)}
                mlflow.log_params(flat(parameters.to_dict() | own))

            name = within.labels.get(NAME, "")

            def told(row: Row) -> None:
                _tell(row, parameters.train, name)
                within.on_epoch(row)

            fit = _fit(parameters.train, rows, packed, checkpoint, world, within.kept, name)
            if initial_weights(parameters.train) != start:
                raise UsageError(
                    f"Expected {start.get('name')} to stay as it was while the training began, but it was replaced. "
                    "Call again."
                )
            done = fit.run(told)
            facts |= {
                "run_id": run.info.run_id,
                "created": history.now(),
                "epochs": done.epoch,
                "best_epoch": done.best_epoch,
                "processes": world.size,
                "precision": fit.precision.kind,
            }
            facts = _write(fit, done, facts, packed, out)
            _log_end(done, out, synthetic=manifest.synthetic)
        checkpoint.unlink(missing_ok=True)
    return facts


def averaging(parameters: TrainParameters) -> dict[str, str]:
    """How a training averages its weights, where it does: it goes on from no checkpoint that was averaged otherwise,
    and what was trained otherwise is not taken up for it."""
    return {"average": "warm"} if parameters.fit != "logistic" and parameters.average > 0 else {}


def checkpoint_path(settings: Settings, key: str) -> Path:
    """Where the training whose run carries the tag `blastwatch.key` leaves its checkpoint."""
    return settings.home / "checkpoints" / f"{key}.pt"


def _fit(
    parameters: TrainParameters,
    rows: pd.DataFrame,
    packed: Packed,
    checkpoint: Path,
    world: World,
    kept: Path | None = None,
    name: str = "",
) -> Fit | LinearProbe:
    network = first_network(parameters.architecture, parameters.weights, parameters.weights_file, seed=parameters.seed)
    cells = side_of(rows, packed, "train", parameters.balance)
    validation = side_of(rows, packed, "validation", "subject")
    if parameters.fit == "logistic":
        return LinearProbe(network, parameters, packed, cells, validation, world, kept)
    return Fit(Trainer(network, parameters, packed, cells, world), validation, checkpoint, name=name)


def _say_nothing(row: Row) -> None:
    """What processes beside the first one tell of an epoch."""


def _tell(row: Row, parameters: TrainParameters, name: str) -> None:
    """Log the figures of an epoch, and say them, with the name of the training where it is one of many."""
    import mlflow

    mlflow.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))
    told = f"{name}: " if name else ""
    epochs = 1 if parameters.fit == "logistic" else parameters.epochs
    say(
        f"{told}epoch {row['epoch']:.0f} of {epochs}  loss {row['train_loss']:.3f}  validation: loss "
        f"{row['validation_loss']:.3f}, accuracy by patient {fixed(row['validation_subject_accuracy'])}, "
        f"AUROC {fixed(row['validation_auroc'])}"
    )


def _write(fit: Fit | LinearProbe, done: Progress, facts: dict[str, Any], packed: Packed, out: Path) -> dict[str, Any]:
    """Write what a training leaves, and return its facts with the digests of that.

    They are written last, and those of an earlier training go first, once the weights are on the disk: what a kill
    leaves is then none, and nothing in the folder passes for a part of another. The weights are digested under a name
    of this process's own, since another training may write into the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{WEIGHTS}.*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    network = build(facts["architecture"])
    network.load_state_dict(done.best_state)
    own = out / f"{WEIGHTS}.own-{os.getpid()}"
    save_weights(network, own)
    digests = {"weights_sha256": file_digest(own)}
    for name in (FACTS, OUT_OF_FOLD):
        (out / name).unlink(missing_ok=True)
    own.replace(out / WEIGHTS)
    if isinstance(fit, LinearProbe):
        write_out_of_fold(out, [packed.paths[row] for row in fit.cells.rows], fit.out_of_fold)
        digests["out_of_fold_sha256"] = file_digest(out / OUT_OF_FOLD)
    pd.DataFrame(done.curves).to_csv(out / CURVES, index=False)
    write_json(out / FACTS, facts | digests)
    return facts | digests


def _log_end(done: Progress, out: Path, *, synthetic: bool) -> None:
    import mlflow

    from training.plots import plot_curves

    mlflow.log_metrics({"best_epoch": done.best_epoch, "best_validation_loss": done.best_loss})
    plot_curves(pd.DataFrame(done.curves), done.best_epoch, out / "curves.png", synthetic=synthetic)
    mlflow.log_artifact(str(out / "curves.png"), "plots")
    mlflow.log_artifact(str(out / FACTS))
