"""Gates that let the engine that serves here answer: is it fast enough on this machine, and does it say the same?"""

import statistics
import time

from blastwatch.engines import open_engine
from blastwatch.errors import GoldenMismatch, PackageError
from blastwatch.gate import AT_MOST, OFF, Gate, at_most
from blastwatch.golden import check_golden, golden_tolerance, read_golden
from blastwatch.inference import Engine
from blastwatch.ood import read_ood
from blastwatch.package import Package
from blastwatch.policy import Policy

WARM_UP, RUNS = 3, 25


def engine_gates(package: Package, policy: Policy, name: str, *, threads: int | None) -> tuple[Gate, Gate]:
    """Latency and golden cells, on an engine that is opened for it once; not at all where both are off.

    Args:
        name: of the engine, `auto` already resolved.
    """
    limit = policy.engine.largest_latency_ms
    off = Gate(name="golden", passed=True, value="not asked", limit=OFF)
    if limit is None and not policy.engine.golden_cells:
        return _unmeasured(OFF), off
    try:
        engine = open_engine(package, name, threads=threads)
    except PackageError as error:
        slow = _unmeasured(OFF) if limit is None else _unmeasurable(error, limit)
        return slow, _golden_failure(error, "an engine that opens") if policy.engine.golden_cells else off
    latency = _unmeasured(OFF) if limit is None else latency_gate(package, engine, limit)
    return latency, golden_gate(package, engine) if policy.engine.golden_cells else off


def latency_gate(package: Package, engine: Engine, limit: float) -> Gate:
    """Median time of one cell, in milliseconds."""
    try:
        value = median_latency(package, engine)
    except PackageError as error:
        return _unmeasurable(error, limit)
    note = f"median of {RUNS} golden cells one by one, {engine.name} on this machine"
    return at_most("latency", value, limit, note, unit="ms")


def median_latency(package: Package, engine: Engine) -> float:
    """Milliseconds of the engine for one cell, the median of `RUNS` after a few that warm up.

    Raises:
        PackageError: where the golden cells cannot be read.
    """
    crops, _ = read_golden(package)
    times = []
    for run in range(WARM_UP + RUNS):
        cell = crops[run % len(crops)][None]
        start = time.perf_counter()
        engine.infer(cell)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:]) * 1000


def golden_gate(package: Package, engine: Engine) -> Gate:
    """The engine gives the answers that travel in the package, and what refers unlike images can be read."""
    try:
        read_ood(package)
        limit = golden_tolerance(package, engine.name)
        value = check_golden(package, engine)
    except GoldenMismatch as error:
        return _golden_failure(error, "the package's own answers")
    except PackageError as error:
        return _golden_failure(error, "files to answer with that can be read")
    note = f"largest difference of a probability, {engine.name}"
    return Gate(name="golden", passed=True, value=value, limit=limit, note=note, bound=AT_MOST)


def _unmeasured(limit: str) -> Gate:
    return Gate(name="latency", passed=True, value="not measured", limit=limit)


def _unmeasurable(error: PackageError, limit: float) -> Gate:
    return Gate(name="latency", passed=False, value=str(error), limit=limit, bound=AT_MOST)


def _golden_failure(error: PackageError, limit: str) -> Gate:
    return Gate(name="golden", passed=False, value=str(error), limit=limit)
