"""From the bytes of an image to the answer of the service, in two steps with the engine between them.

    prepare: bytes -> crop, statistics, concerns                    (any thread)
    engine:  many crops -> logits, embeddings                       (the batcher, or a loop over batches)
    judge:   logits, embeddings -> probability, decision, answer    (pure arithmetic)

The service and `blastwatch score` both go this way.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blastwatch import DISCLAIMER
from blastwatch.decision import CLASS_NAMES, POSITIVE, REFER, decide, label, probabilities
from blastwatch.errors import ImageRejected
from blastwatch.images import MAX_PIXELS, Pixels, crop_cell, decode, pixel_digest
from blastwatch.ood import read_ood
from blastwatch.package import Package
from blastwatch.rounding import fixed
from blastwatch.seen import read_seen
from monitoring.quality import concerns
from monitoring.statistics import image_statistics
from monitoring.store import PredictionRecord
from serving.live import Served


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image, ready for the engine. `crop`: uint8 (size, size, 3); `statistics` of it; reasons to refer."""

    crop: Pixels
    pixel_sha256: str
    statistics: dict[str, float]
    concerns: list[str]


class Cell(NamedTuple):
    """One image file as it was sent, and what was made of it."""

    file: bytes
    prepared: Prepared


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What the model says of one cell. `probability` is that of a blast, calibrated.

    concerns: reasons to refer, of the image and of its embedding; reasons: these and that the probability lies between
    the version's thresholds, empty where the decision is none to refer; ood_score: see `blastwatch.ood`, None where the
    package is of a format without it. seen: whether the version learned from this very image, as far as pixels tell
    (`blastwatch.seen`); None where the package is of a format that does not say.
    """

    probability: float
    probabilities: dict[str, float]
    label: str
    decision: str
    concerns: list[str]
    reasons: list[str]
    ood_score: float | None
    seen: bool | None


def prepare(
    data: bytes, package: Package, *, max_bytes: int | None = None, max_pixels: int = MAX_PIXELS
) -> Prepared:  # fmt: skip
    """Decode, crop and measure one image file.

    Raises:
        ImageRejected: with the reason.
    """
    if max_bytes is not None:
        check_size(len(data), max_bytes)
    info = package.info
    image = decode(data, max_pixels=max_pixels)
    crop = crop_cell(image, info.preprocessing)
    statistics = image_statistics(crop, info.preprocessing)
    return Prepared(
        crop=crop,
        pixel_sha256=pixel_digest(image),
        statistics=statistics,
        concerns=concerns(statistics, info.quality_limits),
    )


def check_size(size: int, most: int) -> None:
    """Raise `ImageRejected` where a file has more bytes than are read."""
    if size > most:
        raise ImageRejected("too-large", f"Expected an image of at most {most} bytes but got {size}.")


def finite(logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> bool:
    """Whether the engine's outputs for a cell are numbers to conclude from: an overflow is of no class, not of the
    first one."""
    return bool(np.isfinite(logits).all() and np.isfinite(embedding).all())


class Judge:
    """Concludes for one version. What its package says of unlike images, and of those it has seen, is read once."""

    def __init__(self, package: Package) -> None:
        self._info = package.info
        low, high = fixed(package.info.thresholds.hem), fixed(package.info.thresholds.all)
        self._uncertain = f"too uncertain: between {low} and {high}"  # the same for every cell
        self.ood, self._seen = read_ood(package), read_seen(package)

    def __call__(self, prepared: Prepared, logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> Conclusion:
        """Calibrate one cell's logits (2,) and decide; an image with concerns, or unlike any known cell by its
        embedding (d,), is referred."""
        values = probabilities(logits[None], self._info.temperature)[0]
        blast = float(values[POSITIVE])
        doubts, score = list(prepared.concerns), None
        if self.ood is not None:
            score = float(self.ood(embedding[None])[0])
            unlike = self.ood.concern(score)
            doubts += [unlike] if unlike else []
        undecided = decide(blast, self._info.thresholds) == REFER
        return Conclusion(
            probability=blast,
            probabilities={name: float(value) for name, value in zip(CLASS_NAMES, values, strict=True)},
            label=label(blast),
            decision=decide(blast, self._info.thresholds, concerns=bool(doubts)),
            concerns=doubts,
            reasons=[*doubts, self._uncertain] if undecided else doubts,
            ood_score=score,
            seen=None if self._seen is None else prepared.pixel_sha256 in self._seen,
        )


class Predictor:
    """Makes answers and their records for one served version."""

    def __init__(self, served: Served, *, model_name: str, engine: str) -> None:
        self.package = served.package
        self.version = served.entry.version
        self.model = served.facts(model_name)
        self._engine = engine
        self._project = served.package.projection()
        self._judge = Judge(served.package)

    def answer(
        self,
        prepared: Prepared,
        logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
        *,
        seconds: float,
        patient: str = "",
    ) -> tuple[dict[str, Any], PredictionRecord]:
        """The JSON of /v1/predict, and what monitoring keeps of it.

        Args:
            logits: float32 (2,). embedding: float32 (d,).
            seconds: since the request came.
            patient: hashed, or empty.
        """
        said = self._judge(prepared, logits, embedding)
        identity = uuid.uuid4().hex
        answer = {
            "id": identity,
            "label": said.label,
            "probability": said.probability,
            "probabilities": said.probabilities,
            "decision": said.decision,
            "reasons": said.reasons,
            "model": self.model,
            "quality": {
                "statistics": prepared.statistics,
                "concerns": said.concerns,
                "ood_score": said.ood_score,
                "ood_limit": self._judge.ood.limit if self._judge.ood else None,
            },
            "seen_in_training": said.seen,
            "disclaimer": DISCLAIMER,
        }
        record = PredictionRecord(
            id=identity,
            time=datetime.now(UTC),
            model_version=self.version,
            model_digest=self.package.digest,
            engine=self._engine,
            label=said.label,
            probability=said.probability,
            decision=said.decision,
            latency_ms=seconds * 1000,
            pixel_sha256=prepared.pixel_sha256,
            concerns=said.concerns,
            statistics=prepared.statistics,
            embedding=self._project(embedding[None])[0],
            patient=patient,
            seen=said.seen,
        )
        return answer, record
