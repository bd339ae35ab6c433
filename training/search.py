"""Search of training parameters on validation patients alone, by Optuna (Akiba 2019, doi:10.1145/3292500.3330701).

A trial trains on the train side of a split and is judged on its validation side. The other two sides are taken out of
the split before the first trial, so no trial can read them. Its sampler is the tree-structured Parzen estimator
(Bergstra et al. 2011, NeurIPS 24), seeded anew for every trial: a search that was stopped goes on as it would have.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from blastwatch.console import say
from blastwatch.decision import CLASS_NAMES, POSITIVE, probabilities
from blastwatch.digests import json_digest
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import SPLIT, SPLIT_FACTS, read_cells, read_json, read_split, split_digest, write_json
from blastwatch.rounding import fixed
from blastwatch.settings import Settings
from training.calibration import patient_weights
from training.evaluation import read_trained
from training.figures import plain, units_of
from training.initial_weights import initial_weights
from training.loop import TrainingDiverged, predict_logits
from training.pack import Packed, check_image, open_pack
from training.parameters import READ_BY_LOGISTIC, Parameters, load_parameters
from training.search_space import SECTION, Knob, Value, describe
from training.steps import alone
from training.tracking import NAME, PARENT, flat, open_parent
from training.training_run import Row, Within, checkpoint_path, run_training

if TYPE_CHECKING:
    from types import ModuleType

    from optuna import Study, Trial

RESULT = "search.json"
SEEN = ("train", "validation")
# The figure of each epoch that stands for an objective while a trial trains.
CURVES = {
    "mean_accuracy": "validation_subject_accuracy",
    "worst_quarter_accuracy": "validation_worst_quarter",
    "auroc": "validation_auroc",
    "loss": "validation_loss",
}
UNPRUNED = 5  # trials that are never stopped early; the median of those before is what a later one is held against
STARTING = ("train.architecture", "train.weights", "train.weights_file")  # what initial weights depend on
MOST_CORNERS = 256  # of the space, at which the parameters are tried before anything is trained
CONTINUES, RUN, DIVERGED = "continues", "run_id", "diverged"  # what is noted with a trial


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is searched. trials: in all, those of an earlier call included. objective: one of `CURVES`."""

    params: Path | None
    overrides: Sequence[str]
    space: Sequence[Knob]
    trials: int
    objective: str
    seed: int

    def parameters(self, values: Mapping[str, Value]) -> Parameters:
        """All parameters of a trial."""
        return load_parameters(self.params, [*self.overrides, *(f"{key}={_text(values[key])}" for key in values)])

    def check(self) -> None:
        """Raise `UsageError` where values that may be drawn together do not go with each other or with the rest, or a
        parameter is searched that no trial reads."""
        keys = [knob.key for knob in self.space]
        fits = set()
        for values in islice(product(*(knob.ends for knob in self.space)), MOST_CORNERS):
            corner = dict(zip(keys, values, strict=True))
            try:
                fits.add(self.parameters(corner).train.fit)
            except UsageError as error:
                told = ", ".join(f"{key}={_short(value)}" for key, value in corner.items())
                raise UsageError(f"These may be drawn together and do not go: {told}. {error}") from error
        unread = [key for key in keys if key.removeprefix(f"{SECTION}.") not in READ_BY_LOGISTIC]
        if unread and fits == {"logistic"}:
            raise UsageError(
                f"Expected parameters that train.fit=logistic reads but got {', '.join(unread)}, which no trial would "
                "read. Search others, or set train.fit=gradient."
            )

    def starts(self) -> list[dict[str, Any]]:
        """`training.initial_weights` of all that a trial may begin with.

        Raises:
            UsageError: where a file of weights is not there.
        """
        keys = [knob.key for knob in self.space]
        tried = product(*(knob.ends if knob.key in STARTING else knob.ends[:1] for knob in self.space))
        return [initial_weights(self.parameters(dict(zip(keys, values, strict=True))).train) for values in tried]


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def run_search(plan: Plan, settings: Settings, *, cells: Path, split: Path, pack: Path, out: Path) -> dict[str, Any]:
    """Try parameters until the plan's number of trials is reached, and write what was found into `out`.

    The trials lie in a SQLite file under `settings.home`; a search of the same plan on the same data goes on with them.

    Returns:
        What `search.json` says: objective, space, every trial, and the best one.

    Raises:
        UsageError: where Optuna or a file of weights is missing, or another process runs this search.
        DataError: where no trial came to its end.
    """
    optuna = import_optuna()
    base = plan.parameters({})
    plan.check()
    manifest = read_cells(cells)
    packed = open_pack(pack, manifest)
    check_image(packed, base.image, pack)
    rows = read_split(cells, split)
    sections = base.to_dict()
    # What is searched does not count with the value that it has in params.yaml.
    fixed = {key: value for key, value in flat({"train": sections["train"]}).items() if key not in _keys(plan)}
    identity = {
        "data": manifest.digest, "split": split_digest(rows), "pack": packed.digest, "train": fixed,
        "starts": plan.starts(), "space": describe(plan.space), "objective": plan.objective, "seed": plan.seed,
    }  # fmt: skip
    key = json_digest(identity)
    home = settings.home / "searches" / key
    with alone(home):
        seen = hide_sides(rows, split, home / "split")
        study = open_study(optuna, home / "trials.db", plan)
        places = {"cells": cells, "split": home / "split", "pack": pack}
        with open_parent(
            settings,
            key=key,
            name=f"search for {plan.objective}",
            tags={f"blastwatch.{name}_digest": str(identity[name]) for name in ("data", "split", "pack")},
            parameters=flat({"search": {"objective": plan.objective, "seed": plan.seed}, "image": sections["image"]}),
        ) as run:
            known = len(finished(study))
            if known:
                say(f"{known} of {plan.trials} trials were done before")
            while len(finished(study)) < plan.trials:
                _Turn(optuna, study, plan, settings, packed, seen, home / "embeddings").take(places)
            facts = {"run_id": run.info.run_id, "study": key, **_facts(study, plan, identity)}
            _write(facts, out)
    return facts


def import_optuna() -> "ModuleType":
    """Optuna, which only `blastwatch search` needs."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "blastwatch search needs Optuna, which the extra `search` brings: pip install 'blastwatch[search]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def hide_sides(rows: pd.DataFrame, split: Path, out: Path) -> pd.DataFrame:
    """Write a split of the train and the validation side alone; returns its rows.

    Args:
        rows: of `read_split`. split: folder that they come from.
    """
    seen = rows[rows["side"].isin(SEEN)].reset_index(drop=True)
    facts = read_json(split / SPLIT_FACTS, made_by="blastwatch data split")
    facts.pop("rows_digest", None)  # it is of all sides
    facts |= {"digest": split_digest(seen), "sides": {side: facts["sides"][side] for side in SEEN}}
    out.mkdir(parents=True, exist_ok=True)
    seen[["path", "subject", "group", "side"]].to_parquet(out / SPLIT, index=False)
    write_json(out / SPLIT_FACTS, facts)
    return seen


def open_study(optuna: "ModuleType", path: Path, plan: Plan) -> "Study":
    """The study in a SQLite file. The first third of the epochs, two at least, stops no trial."""
    epochs = plan.parameters({}).train.epochs
    study: Study = optuna.create_study(
        study_name="blastwatch",
        storage=optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}"),
        direction="minimize" if plan.objective == "loss" else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=max(2, epochs // 3)),
        load_if_exists=True,
    )
    return study


def finished(study: "Study") -> list[Any]:
    """The trials that count: complete, or stopped early; not those that a kill left behind."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]


def _keys(plan: Plan) -> set[str]:
    return {knob.key for knob in plan.space}


class _Turn:
    """One trial: what is tried, trained, judged and told to the study."""

    def __init__(
        self,
        optuna: "ModuleType",
        study: "Study",
        plan: Plan,
        settings: Settings,
        packed: Packed,
        seen: pd.DataFrame,
        kept: Path,
    ) -> None:
        self.optuna, self.study, self.plan, self.settings, self.packed = optuna, study, plan, settings, packed
        self.kept = kept
        self.validation = seen[seen["side"] == "validation"].sort_values("path", ignore_index=True)
        self.run_id, self.key = "", ""

    def take(self, places: Mapping[str, Path]) -> None:
        trial = self._ask()
        values = {knob.key: knob.suggest(trial) for knob in self.plan.space}
        told = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
        say(f"[{len(finished(self.study)) + 1}/{self.plan.trials}] trial {trial.number}: {told}")
        try:
            value = self._train(trial, values, places)
        except self.optuna.TrialPruned:
            self._stop(trial, "behind the median of earlier trials")
        except TrainingDiverged as error:
            trial.set_user_attr(DIVERGED, str(error))
            self._stop(trial, "diverged")
        else:
            self.study.tell(trial, value)
            say(f"  {self.plan.objective} {fixed(value, 4)}")

    def _ask(self) -> "Trial":
        """The next trial; first the one that a kill left behind, with the same parameters and what it had reported."""
        state = self.optuna.trial.TrialState
        for left in self.study.get_trials(states=(state.RUNNING,)):
            self.study.tell(left.number, state=state.FAIL)
            if set(left.params) == _keys(self.plan):
                self.study.enqueue_trial(left.params, user_attrs={CONTINUES: left.number})
        seed = np.random.SeedSequence([self.plan.seed, len(finished(self.study))]).generate_state(1)[0]
        self.study.sampler = self.optuna.samplers.TPESampler(seed=int(seed))
        trial: Trial = self.study.ask()
        if CONTINUES in trial.user_attrs:
            before = self.study.get_trials(deepcopy=False)[trial.user_attrs[CONTINUES]]
            for step, value in before.intermediate_values.items():
                trial.report(value, step)
        return trial

    def _train(self, trial: "Trial", values: Mapping[str, Value], places: Mapping[str, Path]) -> float:
        import mlflow

        def on_epoch(row: Row) -> None:
            run = mlflow.active_run()
            assert run is not None, "called within the run of the training"
            self.run_id, self.key = run.info.run_id, run.data.tags["blastwatch.key"]
            trial.report(row[CURVES[self.plan.objective]], int(row["epoch"]))
            if trial.should_prune():
                raise self.optuna.TrialPruned

        parent = mlflow.active_run()
        assert parent is not None, "called within the run of the search"
        number, above = str(trial.number), parent.info.run_id
        labels = {NAME: f"trial {number}", PARENT: above, "blastwatch.trial": number}
        within = Within(labels=labels, on_epoch=on_epoch, kept=self.kept)
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch)
            facts = run_training(self.plan.parameters(values), self.settings, within, **places, out=out)
            network = read_trained(out).network
        network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        logits = predict_logits(network, self.packed, self.packed.rows_of(self.validation["path"].tolist()))
        figures = judge(self.validation, probabilities(logits, 1.0)[:, POSITIVE])
        client = mlflow.MlflowClient()
        for name, figure in figures.items():
            client.log_metric(facts["run_id"], f"objective.{name}", figure)
        trial.set_user_attr(RUN, facts["run_id"])
        return figures[self.plan.objective]

    def _stop(self, trial: "Trial", why: str) -> None:
        """End a trial before its time: its run is marked as killed, its checkpoint removed."""
        import mlflow

        trial.set_user_attr(RUN, self.run_id)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        say(f"  stopped: {why}")
        if self.run_id:
            client = mlflow.MlflowClient()
            client.set_tag(self.run_id, "blastwatch.stopped", why)
            client.set_terminated(self.run_id, "KILLED")
            checkpoint_path(self.settings, self.key).unlink(missing_ok=True)


def judge(rows: pd.DataFrame, blast: np.ndarray[Any, Any]) -> dict[str, float]:
    """The figures of `CURVES` over cells of validation patients.

    Args:
        rows: of `read_split`. blast: probability of a blast, shape (n,).
    """
    figures = plain(units_of(rows.assign(probability=blast)), ("mean_accuracy", "worst_quarter_accuracy", "auroc"))
    labels = rows["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    said = np.where(labels == POSITIVE, blast, 1 - blast)
    weights = patient_weights(labels, rows["group"].to_numpy())
    return figures | {"loss": float(-(weights * np.log(np.maximum(said, 1e-12))).sum())}


def _facts(study: "Study", plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {
            "trial": trial.number,
            "state": "diverged" if DIVERGED in trial.user_attrs else trial.state.name.lower(),
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            "parameters": trial.params,
            "run_id": trial.user_attrs.get(RUN, ""),
        }
        for trial in finished(study)
    ]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        raise DataError(f"None of {len(trials)} trials came to its end. Narrow the ranges, train.learning_rate first.")
    sign = 1 if plan.objective == "loss" else -1
    return {
        "objective": plan.objective,
        "data_digest": identity["data"],
        "split_digest": identity["split"],
        "space": identity["space"],
        "states": dict(Counter(trial["state"] for trial in trials)),
        "best": min(complete, key=lambda trial: sign * trial["value"]),
        "trials": trials,
    }


def _write(facts: dict[str, Any], out: Path) -> None:
    import mlflow

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULT, facts)
    mlflow.log_metric("best", facts["best"]["value"])
    mlflow.set_tag("blastwatch.best", str(facts["best"]["trial"]))
    mlflow.log_artifact(str(out / RESULT))
