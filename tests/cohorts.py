"""Cohorts of simulated patients as rows of numbers, for tests of drift: no images, no network."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import Thresholds
from blastwatch.images import Preprocessing
from blastwatch.package import DRIFT, REFERENCE, TRAINED, DriftReference, ModelInfo, Package
from monitoring import signatures
from monitoring.calibration import calibrate
from monitoring.image_store import ImageRecord
from monitoring.reference import reference_columns
from monitoring.scores import PROBABILITY, Scorer
from monitoring.shadow_store import ShadowRecord
from monitoring.statistics import STATISTICS
from monitoring.store import EMBEDDING, PredictionRecord

BETWEEN = 0.4  # share of a cell's variance that lies between patients
FACTORS = 6
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
START = datetime(2026, 11, 1, tzinfo=UTC)
VARYING = [name for name in STATISTICS if name != "border"]


def draw_cohort(random: np.random.Generator, *, patients: int, cells: int) -> pd.DataFrame:
    """Reference rows of patients who differ by a few hidden factors; two in three have leukemia."""
    loadings = np.random.default_rng(5).normal(size=(FACTORS, len(VARYING) + len(EMBEDDING)))
    group = np.repeat(np.arange(patients), cells)
    sick = random.random(patients) < 2 / 3
    means = random.normal(size=(patients, FACTORS)) * np.sqrt(BETWEEN)
    means[:, 0] += np.where(sick, 0.7, -0.7)
    factors = means[group] + random.normal(size=(len(group), FACTORS)) * np.sqrt(1 - BETWEEN)
    values = factors @ loadings + 0.4 * random.normal(size=(len(group), loadings.shape[1]))
    logit = np.where(sick[group], 2.5, -2.5) + 1.5 * random.normal(size=len(group)) + factors[:, 1]
    frame = pd.DataFrame(values, columns=[*VARYING, *EMBEDDING])
    frame[VARYING] = 10 + frame[VARYING]
    frame["border"] = 0.0
    frame[PROBABILITY] = 1 / (1 + np.exp(-logit))
    frame["subject"] = frame["group"] = [f"P{number:03d}" for number in group]
    frame["label"] = np.where(sick[group], "all", "hem")
    return frame[list(reference_columns())]


def window_of(cohort: pd.DataFrame, groups: list[str], cells: int, random: np.random.Generator) -> pd.DataFrame:
    """Cells of some patients, shared out evenly."""
    share = -(-cells // len(groups))
    parts = [cohort[cohort["group"] == group].sample(share, random_state=random) for group in groups]
    return pd.concat(parts, ignore_index=True).iloc[:cells]


def pixels(id_: str) -> str:
    """The digest of an image that no other prediction is of."""
    return hashlib.sha256(id_.encode()).hexdigest()


def as_predictions(rows: pd.DataFrame, *, digest: str, start: datetime = START, keyed: bool = False) -> pd.DataFrame:
    """The rows as `Store.read` gives them; keyed: each carries the key of its group."""
    frame = rows.drop(columns=["subject", "group"]).copy()
    frame["patient"] = rows["group"] if keyed else ""
    frame["id"] = [f"{start:%H%M%S}-{number}" for number in range(len(rows))]
    frame["time"] = pd.to_datetime([start + timedelta(seconds=number) for number in range(len(rows))], utc=True)
    frame["pixel_sha256"] = [pixels(id_) for id_ in frame["id"]]
    frame["label"] = np.where(frame[PROBABILITY] >= 0.5, "all", "hem")
    return frame.assign(model_version="1", model_digest=digest, engine="test", decision="refer", latency_ms=1.0)


def as_records(
    rows: pd.DataFrame, *, digest: str, start: datetime = START, keyed: bool = False
) -> list[PredictionRecord]:
    """The rows as the service hands them to the store."""
    return [
        PredictionRecord(
            id=row["id"],
            time=row["time"].to_pydatetime(),
            model_version="1",
            model_digest=digest,
            engine="test",
            label=row["label"],
            probability=row[PROBABILITY],
            decision="refer",
            latency_ms=1.0,
            pixel_sha256=row["pixel_sha256"],
            patient=row["patient"],
            statistics={name: row[name] for name in STATISTICS},
            embedding=np.array([row[name] for name in EMBEDDING], dtype=np.float32),
        )
        for row in as_predictions(rows, digest=digest, start=start, keyed=keyed).to_dict("records")
    ]


def unanswered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a reference as they are of patients that the network was trained on."""
    return rows.assign(**dict.fromkeys((PROBABILITY, *EMBEDDING), np.nan))


def drawn_signatures(reference: pd.DataFrame, movements: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """As packaging measures them, of causes that move the transformed statistics so: these rows have no images."""
    with mock.patch.object(signatures, "_shifted", lambda *_: dict(movements)):
        return signatures.measure_signatures(reference, lambda _: np.empty(0, np.uint8), Preprocessing(size=32))


def write_reference(
    folder: Path,
    reference: pd.DataFrame,
    *,
    trained: pd.DataFrame | None = None,
    causes: dict[str, Any] | None = None,
    **options: object,
) -> None:
    """Write the files of a package that drift reads; causes: of `drawn_signatures`."""
    trained = reference.iloc[:0] if trained is None else trained
    reference.to_parquet(folder / REFERENCE)
    trained.to_parquet(folder / TRAINED)
    known = DriftReference(pd.concat([reference, trained], ignore_index=True))
    drift = calibrate(known, signatures=causes, resamples=300, **options)
    (folder / DRIFT).write_text(json.dumps(drift if causes is None else drift | {"signatures": causes}))


def unsealed_package(
    folder: Path,
    reference: pd.DataFrame,
    trained: pd.DataFrame | None = None,
    causes: dict[str, Any] | None = None,
) -> Package:
    """A package with nothing in it but what drift reads."""
    folder.mkdir(parents=True)
    write_reference(folder, reference, trained=trained, causes=causes)
    info = ModelInfo(
        architecture="resnet18", preprocessing=Preprocessing(size=32), temperature=1.0, synthetic=True,
        thresholds=Thresholds(hem=0.3, all=0.7), data_digest="", split_digest="", run_id="", git_commit="",
        lock_digest="", created="",
    )  # fmt: skip
    return Package(folder=folder, info=info, digest="d" * 64)


def record(
    id_="a", *, time=NOON, digest="d", probability=0.25, label="hem", decision="refer", statistics=None, embedding=None,
    patient="", pixel_sha256=None, seen=None,
):  # fmt: skip
    """One prediction, of whatever matters to a test."""
    return PredictionRecord(
        id=id_,
        time=time,
        model_version="1",
        model_digest=digest,
        engine="torch-f32",
        label=label,
        probability=probability,
        decision=decision,
        latency_ms=12.5,
        pixel_sha256=pixel_sha256 or pixels(id_),
        statistics=statistics or {name: float(index) for index, name in enumerate(STATISTICS)},
        embedding=np.arange(32, dtype=np.float32) if embedding is None else embedding,
        concerns=["the cell is blurred"],
        patient=patient,
        seen=seen,
    )


def shadowed(id_="a", *, time=NOON, champion="c" * 64, challenger="d" * 64, patient="", **said):
    """One cell that two versions read, of whatever matters to a test."""
    answers = {
        f"{who}_{what}": said.get(f"{who}_{what}", value)
        for who in ("champion", "challenger")
        for what, value in (("probability", 0.25), ("label", "hem"), ("decision", "hem"))
    }
    return ShadowRecord(
        id=id_, time=time, champion_version="1", champion_digest=champion, challenger_version="2",
        challenger_digest=challenger, patient=patient, **answers,
    )  # fmt: skip


def pictured(id_="a", *, time=NOON, patient="", size=100):
    """One picture of so many bytes, of whatever matters to a test."""
    return ImageRecord(id=id_, time=time, reason="sampled", patient=patient, png=np.random.default_rng(0).bytes(size))


def scores_of(reference, current):
    """All scores of one window of rows that are not in the reference."""
    both = pd.concat([reference, current], ignore_index=True)
    both["group"] = ["reference"] * len(reference) + ["current"] * len(current)
    scorer = Scorer(both)
    side = np.r_[np.ones(len(reference)), np.zeros(len(current))][None]
    return dict(zip(scorer.columns, scorer(1 - side, side)[0], strict=True))
