"""Put together the model package: weights, graphs, reference, evidence and card, sealed by their digests."""

import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch import package as layout
from blastwatch.console import say
from blastwatch.decision import POSITIVE, Thresholds, decide, probabilities
from blastwatch.engines import has_gpu, open_engine
from blastwatch.golden import write_golden
from blastwatch.images import Pixels
from blastwatch.inference import Engine, Outputs, in_batches
from blastwatch.manifest import AUDIT, IMPORT, SIDES, SPLIT_FACTS, read_cells, read_json, read_split, write_json
from blastwatch.network import build, load_weights
from blastwatch.package import ModelInfo, Package, Precision
from blastwatch.seen import write_seen
from monitoring.reference import Answers, build_reference, calibrate, quality_limits
from monitoring.signatures import measure_signatures
from monitoring.statistics import image_statistics
from training.audit import read_audit
from training.card import model_card
from training.evidence import CALIBRATION, METRICS, PREDICTIONS, check_copied, check_evaluated, check_trained_on
from training.export import export_onnx, fit_logits, quantize
from training.initial_weights import recorded, vouched
from training.memory import keep_freed_memory
from training.ood import fit_ood
from training.pack import Packed, open_pack
from training.parameters import Parameters
from training.parity_cells import deal_parity, some
from training.projection import fit_projection, without_each
from training.sampling import of_each_patient
from training.splitting import check_ties, dealt_by

REFERENCE_SIDES = ("validation", "calibration")
REFERENCE = "openvino-f32"
COMPARED = ("openvino-f32", "openvino-bf16", "openvino-int8", "torch-bf16", "torch-f16-graphs")
COMPARED_ON_GPU = ("torch-bf16-graphs",)
CORRECTED_ON = 256
"""Cells whose logits say how those of an engine are corrected, shared evenly among all patients but the test side's: no
label is read, and more patients tell better what is the same in all. None of them is compared on."""
EMULATED = 32  # cells in a batch of an engine of a GPU whose rounding is computed on a CPU
TIMED, TIMED_RUNS = 16, 3  # cells in a batch whose time is taken, and how often
MOST_FOR_AXES = 2000  # training cells that the projection is fitted on
MOST_TRAINED = 4000  # training cells in the reference, shared evenly among their patients


def build_package(
    parameters: Parameters,
    *,
    cells_folder: Path,
    audit_folder: Path,
    split_folder: Path,
    pack_folder: Path,
    train_folder: Path,
    evaluate_folder: Path,
    out: Path,
) -> str:
    """Make the package in `out` and return its digest. It appears there whole or not at all.

    Raises:
        LeakFound, DataError: where the folders are not of one training, or an evaluation did not come to its end.
    """
    keep_freed_memory()
    cells = read_cells(cells_folder)
    rows = read_split(cells_folder, split_folder).sort_values("path", ignore_index=True)
    packed = open_pack(pack_folder, cells)
    facts = read_json(train_folder / "train.json", made_by="blastwatch train")
    check_trained_on(facts, train_folder, cells=cells, split=split_folder, packed=packed, pack=pack_folder)
    metrics = read_json(evaluate_folder / METRICS, made_by="blastwatch evaluate")
    check_evaluated(metrics, facts, train_folder, evaluate_folder)
    found = read_audit(audit_folder, cells)  # refused where it is of other cells
    evidence = {
        "metrics": metrics,
        "audit": read_json(audit_folder / AUDIT, made_by=f"blastwatch data audit {cells_folder}"),
        # With the groups of each side: which patients a version was trained on is asked at every promotion.
        "split": read_json(split_folder / SPLIT_FACTS, made_by=f"blastwatch data split {cells_folder}")
        | {"groups": {side: sorted(set(rows.loc[rows["side"] == side, "group"].astype(str))) for side in SIDES}},
        # Where the cells and the weights lay on this machine is nobody else's business.
        "data": {name: value for name, value in read_json(cells_folder / IMPORT, made_by="").items() if name != "root"}
        | {"initial_weights": vouched(recorded(facts), rows)},
    }
    check_ties(evidence["split"], found, audit_folder)
    evidence["params"] = params_of(parameters, facts, metrics, evidence["split"])
    fitted = read_json(evaluate_folder / CALIBRATION, made_by="blastwatch evaluate")
    info = ModelInfo(
        architecture=facts["architecture"],
        preprocessing=packed.preprocessing,
        temperature=fitted["temperature"],
        thresholds=Thresholds(hem=fitted["hem"], all=fitted["all"]),
        **{name: facts[name] for name in ("synthetic", "data_digest", "split_digest", "run_id", "created")},
        **{name: facts[name] for name in ("git_commit", "lock_digest")},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch) / "package"
        (folder / "evidence").mkdir(parents=True)
        shutil.copy(train_folder / "weights.safetensors", folder / layout.WEIGHTS)
        shutil.copy(evaluate_folder / PREDICTIONS, folder / layout.PREDICTIONS)
        shutil.copy(evaluate_folder / layout.REPORT, folder / layout.REPORT)
        for name, value in evidence.items():
            write_json(folder / "evidence" / f"{name}.json", value)
        write_seen(folder, rows)
        maker = _Maker(Package(folder=folder, info=info, digest=""), rows, packed, parameters, train_folder)
        maker.write_graphs()
        reference, drift = maker.write_reference()
        info = replace(info, precision=maker.precision(), quality_limits=quality_limits(reference))
        (folder / layout.MODEL).write_text(info.to_json())
        (folder / layout.CARD).write_text(model_card(info, evidence, drift, compared_on=maker.parity.told()))
        check_copied(folder, metrics, facts, train_folder, evaluate_folder)
        digest = layout.seal(folder)
        if out.exists():
            shutil.rmtree(out)
        folder.replace(out)
    return digest


def params_of(
    parameters: Parameters, facts: dict[str, Any], metrics: dict[str, Any], split: dict[str, Any]
) -> dict[str, Any]:
    """What `evidence/params.json` says: how it was split, trained and measured is what that split, that training and
    that evaluation were told, whatever the parameters say today.

    Args:
        facts: what train.json says. metrics: what metrics.json says. split: what split.json says.
    """
    train = facts["parameters"] | {"weights_file": Path(facts["parameters"]["weights_file"]).name}  # and not where
    own = {"split": dealt_by(split), "image": facts["image"], "train": train, "evaluate": metrics["parameters"]}
    return parameters.to_dict() | own


class _Maker:
    """Writes into a package that is not sealed yet, hence without a digest to check."""

    def __init__(
        self, package: Package, rows: pd.DataFrame, packed: Packed, parameters: Parameters, trained: Path
    ) -> None:
        self.package, self.rows, self.packed, self.trained = package, rows, packed, trained
        self.knobs = parameters.package
        self.random = np.random.default_rng(parameters.package.seed)
        self.parity = deal_parity(
            rows, most=self.knobs.parity_cells, ranges=self.knobs.calibration_cells, random=self.random
        )
        self._engines: dict[str, Engine] = {}

    def write_graphs(self) -> None:
        """Both graphs; int8 takes its ranges from calibration cells on which it is not compared."""
        folder = self.package.folder
        network = build(self.package.info.architecture).eval()
        load_weights(network, folder / layout.WEIGHTS)
        say("Exporting the graph")
        export_onnx(network, self.packed.preprocessing.size, folder / layout.ONNX)
        say("Quantizing to int8")
        crops = self._crops(self.parity.ranges)
        quantize(folder / layout.ONNX, crops, self.packed.preprocessing, folder / layout.ONNX_INT8)

    def write_reference(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The projection from training cells, the reference, the out-of-distribution score, and the thresholds of
        drift; returns the reference's cells and these.

        The golden cells are taken on the way, since the reference knows every probability.
        """
        say("Making the reference for drift")
        fitted_to = some(self._side("train"), MOST_FOR_AXES, self.random)
        fitted = self._infer(fitted_to).embeddings
        projection = fit_projection(fitted)
        projection.save(self.package.folder / layout.PROJECTION)
        known, learned = self._side(*REFERENCE_SIDES), self._of_each_patient(self._side("train"), MOST_TRAINED)
        outputs = self._infer(known)
        held_out = self._write_rows(
            layout.REFERENCE, known, (self._blast(outputs.logits), projection(outputs.embeddings))
        )
        self._write_golden(known.assign(probability=held_out["probability"].to_numpy()))
        embeddings, groups, others, answers = outputs.embeddings, known["group"].astype(str), None, None
        if self.package.calibrated_out_of_fold():
            own, trained = self._infer(learned).embeddings, learned["group"].astype(str)
            answers = self._out_of_fold(learned), projection(own)
            embeddings, groups = np.concatenate([embeddings, own]), pd.concat([groups, trained])
            others = without_each(fitted, fitted_to["group"].astype(str), set(trained))
        self._write_rows(layout.TRAINED, learned, answers)
        ood = fit_ood(embeddings, groups, projection, others, rate=self.knobs.ood_rate)
        ood.save(self.package.folder / layout.OOD)
        return self._write_drift(pd.concat([known, learned], ignore_index=True))

    def _write_drift(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The thresholds, on the reference of the package, whose cells are `rows`."""
        reference = self.package.reference()
        signatures = measure_signatures(
            reference.cells,
            lambda chosen: self._crops(rows.iloc[chosen]),
            self.package.info.preprocessing,
            seed=self.knobs.seed,
        )
        drift = calibrate(
            reference,
            signatures=signatures,
            false_alarm_rate=self.knobs.false_alarm_rate,
            resamples=self.knobs.drift_resamples,
            seed=self.knobs.seed,
        )
        drift["signatures"] = signatures
        (self.package.folder / layout.DRIFT).write_text(
            json.dumps(drift, indent=2, sort_keys=True, allow_nan=False) + "\n"
        )
        return reference.cells, drift

    def _write_rows(self, name: str, cells: pd.DataFrame, answers: Answers | None) -> pd.DataFrame:
        places = self.packed.rows_of(cells["path"].tolist())
        shape = self.package.info.preprocessing
        statistics = [image_statistics(self.packed.crops[place], shape) for place in places]
        rows = build_reference(cells, statistics=statistics, answers=answers)
        rows.to_parquet(self.package.folder / name, index=False)
        return rows

    def _out_of_fold(self, learned: pd.DataFrame) -> NDArray[np.float64]:
        """The probability of a blast of training cells, each by a fit that had not seen its patient."""
        from training.out_of_fold import out_of_fold_logits  # which needs torch

        every = self._side("train")
        logits = pd.DataFrame(out_of_fold_logits(self.trained, every), index=every["path"])
        return self._blast(logits.loc[learned["path"]].to_numpy())

    def _write_golden(self, known: pd.DataFrame) -> None:
        """The golden cells, from calibration patients."""
        chosen = spread_cells(known[known["side"] == "calibration"], self.knobs.golden_cells)
        crops = self.packed.crops[self.packed.rows_of(chosen["path"].tolist())]
        write_golden(self.package.folder, crops, self._infer(chosen).logits)

    def precision(self) -> dict[str, Precision]:
        """How each faster engine answers against float32, on the cells of `parity`."""
        say("Comparing the engines")
        chosen = self.parity.compared
        expected = self._blast(self._infer(chosen).logits)
        decided = self._decisions(expected)
        held = self._of_each_patient(self.parity.others(self._side("train", *REFERENCE_SIDES)), CORRECTED_ON)
        aim = self._infer(held).logits
        plain = self._rate(chosen, "torch-f32")
        found = {}
        for name in (*COMPARED, *COMPARED_ON_GPU) if has_gpu() else COMPARED:
            logits, own = (self._infer(cells, name).logits for cells in (chosen, held))
            if not (np.isfinite(logits).all() and np.isfinite(own).all()):
                say(f"{name} is left out: the numbers of this network are beyond its range")
                continue
            scale, shift = fit_logits(own, aim)  # 1 and 0 where both are the same
            blast = self._blast(scale * logits + shift)
            found[name] = Precision(
                scale=float(scale),
                shift=tuple(float(value) for value in shift),
                cells=len(chosen),
                flip_rate=float(((blast >= 0.5) != (expected >= 0.5)).mean()),
                largest_difference=float(np.abs(blast - expected).max()),
                decision_flip_rate=float((self._decisions(blast) != decided).mean()),
                speed=None if _is_emulated(name) else self._rate(chosen, name) / plain,
            )
        return found

    def _decisions(self, blast: NDArray[np.float64]) -> NDArray[np.str_]:
        return np.array([decide(value, self.package.info.thresholds) for value in blast.tolist()])

    def _rate(self, rows: pd.DataFrame, engine: str) -> float:
        """Cells a second of an engine in batches of `TIMED`, the best of a few: what disturbs only slows down."""
        crops = self._crops(rows.head(TIMED))
        opened = self._open(engine)
        times = []
        for _ in range(TIMED_RUNS):
            started = time.perf_counter()
            opened.infer(crops)
            times.append(time.perf_counter() - started)
        return len(crops) / min(times)

    def _side(self, *sides: str) -> pd.DataFrame:
        return self.rows[self.rows["side"].isin(sides)].reset_index(drop=True)

    def _of_each_patient(self, rows: pd.DataFrame, most: int) -> pd.DataFrame:
        """As many cells of each patient, `most` in all."""
        drawn = self.random.permutation(len(rows))
        return rows.iloc[of_each_patient(rows["group"].to_numpy(), most, drawn)].reset_index(drop=True)

    def _crops(self, rows: pd.DataFrame) -> Pixels:
        return self.packed.crops[self.packed.rows_of(rows["path"].tolist())]

    def _infer(self, rows: pd.DataFrame, engine: str = REFERENCE) -> Outputs:
        """Run cells in pieces, so that memory does not grow with their number."""
        opened = self._open(engine)
        parts = [in_batches(opened.infer, self._crops(rows.iloc[n : n + 256])) for n in range(0, len(rows), 256)]
        return Outputs(
            logits=np.concatenate([part.logits for part in parts]),
            embeddings=np.concatenate([part.embeddings for part in parts]),
        )

    def _open(self, engine: str) -> Engine:
        if engine not in self._engines:
            if _is_emulated(engine):
                from blastwatch.graph_engine import open_graph_engine

                self._engines[engine] = open_graph_engine(self.package, engine, device="cpu", sizes=(EMULATED,))
            else:
                self._engines[engine] = open_engine(self.package, engine)
        return self._engines[engine]

    def _blast(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        return probabilities(logits, self.package.info.temperature)[:, POSITIVE]


def _is_emulated(engine: str) -> bool:
    """Whether its arithmetic is computed on the CPU, because the GPU that it is for is not here."""
    return engine.endswith("-graphs") and not has_gpu()


def spread_cells(cells: pd.DataFrame, most: int) -> pd.DataFrame:
    """Some cells of both labels, from the least to the most probable blast of each: always the same ones.

    Args:
        cells: with path, label and probability.
        most: cells in all, shared evenly among the labels; fewer where a label has fewer.
    """
    labels = sorted(cells["label"].unique())
    parts: list[pd.DataFrame] = []
    for number, name in enumerate(labels):
        ranked: pd.DataFrame = cells[cells["label"] == name].sort_values(["probability", "path"])
        wanted = most // len(labels) + (number < most % len(labels))
        places = np.linspace(0, len(ranked) - 1, min(wanted, len(ranked))).round().astype(int)
        parts.append(ranked.iloc[places])
    return pd.concat(parts, ignore_index=True)
