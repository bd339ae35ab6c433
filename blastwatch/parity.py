"""The gate on how often an engine says another label than float32. A service asks it too, so it loads nothing heavy."""

from blastwatch.engines import REFERENCE_ENGINES
from blastwatch.gate import Gate, at_most
from blastwatch.package import Package
from blastwatch.policy import Policy

UNIT = "of the labels differ"


def parity_gate(package: Package, policy: Policy, engine: str) -> Gate:
    """How often the engine that serves here says another label than float32 did, measured when packaged."""
    limit = policy.engine.largest_flip_rate
    if engine in REFERENCE_ENGINES:
        return at_most("parity", 0.0, limit, f"{engine} is the reference", unit=UNIT)
    measured = package.info.precision.get(engine)
    if measured is None:
        return at_most("parity", None, limit, f"{engine} was not compared with float32")
    return at_most("parity", measured.flip_rate, limit, f"{engine} on {measured.cells} cells", unit=UNIT)
