"""Gates that read what a package says of itself: its files were checked, so nobody changed it since it was made."""

import re
from itertools import combinations
from typing import Any, TypeGuard

from blastwatch import DISCLAIMER
from blastwatch.baseline import number_of, patients_tested, size_difference, what_few_show
from blastwatch.errors import PackageError
from blastwatch.gate import AT_MOST, MISSING, OFF, Gate, at_least, at_most
from blastwatch.manifest import SIDES
from blastwatch.package import CARD, Package
from blastwatch.patients import read_patients
from blastwatch.policy import Policy
from blastwatch.rounding import fixed
from blastwatch.seen import read_seen


def audit_gate(package: Package) -> Gate:
    """The data was audited, and it is the data that the version names."""
    audit, data, info = package.evidence("audit"), package.evidence("data"), package.info
    limit = "an audit of the data that the version was made from"
    findings, groups = audit.get("findings"), audit.get("groups")
    if not isinstance(findings, list) or not groups or not info.data_digest:
        return Gate(name="audit", passed=False, value=MISSING, limit=limit)
    if not (isinstance(groups, list) and all(isinstance(group, list) for group in groups) and _are_objects(findings)):
        value = "evidence/audit.json does not list findings, each an object, and groups, each a list"
        return Gate(name="audit", passed=False, value=value, limit=limit)
    for name, found in (("audit", audit.get("data_digest")), ("data", data.get("digest"))):
        if found != info.data_digest:
            value = f"evidence/{name}.json is of data {_short(found)} but the version of {_short(info.data_digest)}"
            return Gate(name="audit", passed=False, value=value, limit=limit)
    contradicted = [finding for finding in findings if finding.get("kind") == "label"]
    value = f"{len(findings)} findings, {len(groups)} groups of patients"
    note = f"{len(contradicted)} pairs of equal images carry two labels" if contradicted else ""
    return Gate(name="audit", passed=not contradicted, value=value, limit=limit, note=note)


def split_gate(package: Package) -> Gate:
    """Figures from a split that parts a patient say nothing about the next patient."""
    split, info = package.evidence("split"), package.info
    limit = "the version's own split, no patient on two sides"
    if not info.split_digest or split.get("digest") != info.split_digest:
        value = f"evidence/split.json is {_short(split.get('digest'))} but the version's {_short(info.split_digest)}"
        return Gate(name="split", passed=False, value=value, limit=limit)
    if split.get("data_digest") != info.data_digest:
        value = f"the split is of data {_short(split.get('data_digest'))}, the version of {_short(info.data_digest)}"
        return Gate(name="split", passed=False, value=value, limit=limit)
    # Anything but a plain "no" is a leak: what the evidence does not say is not shown.
    tight = split.get("leaky") is False and split.get("crossing") == 0 and split.get("parted_groups") == []
    note = "" if tight else f"{split.get('crossing', '?')} findings of the audit cross it"
    return Gate(name="split", passed=tight, value=f"by {split.get('by')}", limit=limit, note=note)


def groups_gate(package: Package) -> Gate:
    """No patient of the evaluation was trained on: by the names of groups, of subjects, in what is stored, and by the
    pixels of the tested images, which are the same under any name."""
    tested, reference = package.predictions(), package.reference()
    try:
        patients, seen = read_patients(package), read_seen(package)
        known = tested[seen.among(tested["pixel_sha256"])] if seen else tested.iloc[:0]
    except PackageError as error:
        return Gate(name="groups", passed=False, value=str(error), limit=0.0, bound=AT_MOST)
    groups, subjects = patients.groups, {side: patients.subjects(side) for side in SIDES}
    shared: set[str] = set()
    for one, two in combinations(SIDES, 2):
        shared |= (groups[one] & groups[two]) | (subjects[one] & subjects[two])
    unseen = groups["validation"] | groups["calibration"]
    if package.calibrated_out_of_fold():
        unseen = unseen | groups["train"]
    stray = set(tested["group"].astype(str)) - groups["test"] | set(tested["subject"].astype(str)) - subjects["test"]
    stray |= set(reference.answered["group"].astype(str)) - unseen
    stray |= set(reference.cells["group"].astype(str)) - unseen - groups["train"]
    wrong = sorted(shared | stray | set(known["group"].astype(str)))
    note = f"{len(subjects['test'])} test subjects, none of them among {len(subjects['train'])} trained on"
    if wrong:
        note = f"stands on several sides, or where the split does not have it: {', '.join(wrong[:5])}"
    if len(known):
        note += f"; {len(known)} tested images are among those that it learned from"
    return at_most("groups", float(len(wrong)), 0.0, note, unit="patients")


def initial_weights_gate(package: Package) -> Gate:
    """What the network knew before it was trained did not come from patients of the evaluation."""
    name, limit = "initial-weights", "scratch, ImageNet, or pretrained on the training side alone"
    found = package.evidence("data").get("initial_weights")
    start = found if isinstance(found, dict) else {}
    source = start.get("source")
    if source in ("scratch", "imagenet"):
        return Gate(name=name, passed=True, value=source, limit=limit)
    if source != "pretrained":
        file = f"a file, {start.get('name')}, of which it is not known what it has seen" if source else MISSING
        return Gate(name=name, passed=False, value=file, limit=limit)
    try:
        trained = read_patients(package).subjects("train")
    except PackageError as error:
        return Gate(name=name, passed=False, value=str(error), limit=limit)
    known = start.get("subjects")
    seen = set(map(str, known)) if isinstance(known, list) else set()
    stray = sorted(seen - trained)
    note = f"not on the training side: {', '.join(stray[:5])}" if stray else ""
    value = f"pretrained on {len(seen)} subjects"
    return Gate(name=name, passed=bool(seen) and not stray, value=value, limit=limit, note=note)


def floor_gates(package: Package, policy: Policy) -> list[Gate]:
    """Sensitivity and specificity on test patients, every patient weighing the same."""
    said = package.metrics().get("patients")
    patients = said if isinstance(said, dict) else {}
    rows = (
        ("sensitivity", "sensitivity_over_ill", policy.floors.sensitivity, "of the blasts"),
        ("specificity", "specificity_over_healthy", policy.floors.specificity, "of the normal cells"),
    )
    return [at_least(name, number_of(patients.get(key), "value"), limit, _interval(patients.get(key)), unit=unit)
            for name, key, limit, unit in rows]  # fmt: skip


def calibration_gate(package: Package, policy: Policy) -> Gate:
    """Probabilities mean what they say: expected calibration error after temperature scaling, on test cells."""
    value = number_of(package.metrics().get("calibration"), "ece_after")
    return at_most("calibration", value, policy.calibration.largest_ece, unit="ECE")


def cameras_gate(package: Package, policy: Policy) -> Gate:
    """It is not lost where the camera changes: the worst loss of mean accuracy over patients under a simulated one."""
    found = package.metrics().get("cameras")
    rows = found.get("rows") if isinstance(found, dict) else None
    rows = rows if _are_objects(rows) else []
    losses = {str(row.get("name")): number_of(row.get("change"), "value") for row in rows}
    known = {name: -change for name, change in losses.items() if change is not None}
    worst = max(known, key=known.__getitem__) if known and len(known) == len(losses) else None
    if worst is None:
        return at_most("cameras", None, policy.cameras.largest_loss, unit="of mean accuracy lost")
    note = f"under {worst.replace('_', ' ')}{_kept_from(package, rows)}"
    return at_most("cameras", known[worst], policy.cameras.largest_loss, note, unit="of mean accuracy lost")


def _kept_from(package: Package, rows: list[dict[str, Any]]) -> str:
    """What these cameras are no test of, where the training looked at simulated ones itself."""
    train = package.evidence("params").get("train")
    if not (isinstance(train, dict) and train.get("nuisances")):
        return ""
    others = [str(row.get("name")) for row in rows if row.get("simulated") is False]
    if others:
        return f"; the last layer was kept from reading all but {', '.join(others)}"
    # As packages of old are: each row is a simulation that the training looked at.
    return "; the last layer was kept from reading these same simulations, so this is no test of an unseen camera"


def baseline_gate(package: Package, policy: Policy) -> Gate:
    """The network is worth more than three size numbers: the lower end of the interval of its AUROC less theirs. Where
    the policy does not judge that, the difference itself: of few patients the lower end lies far from it."""
    found, limit = size_difference(package.metrics()), policy.baseline.least_difference
    if found is None:
        note = "an evaluation of old has no such comparison; evaluate and package anew to have it"
        return at_least("baseline", None, limit, note)
    whose = what_few_show(patients_tested(package.evidence("split")))
    end, value = ("", found.difference) if limit is None else ("lower end of the 95 % interval", found.low)
    note = "; ".join(filter(None, [end, str(found), whose]))
    return at_least("baseline", value, limit, note, unit="of AUROC against three size numbers")


def reference_gates(package: Package, policy: Policy) -> list[Gate]:
    """Enough cells of enough patients to tell drift from chance."""
    reference, limits = package.reference(), policy.drift_reference
    note = "drift.json has no thresholds for this reference"
    try:
        drift = package.drift()
    except PackageError as error:
        drift, note = {}, str(error)
    usable = bool(drift.get("windows")) and drift.get("cells") == len(reference.cells)
    answered = reference.answered
    cells, groups = (float(len(answered)), float(answered["group"].nunique())) if usable else (None, None)
    note = "" if usable else note
    return [
        at_least("reference-cells", cells, limits.least_cells, note, unit="cells"),
        at_least("reference-groups", groups, limits.least_groups, note, unit="patients"),
    ]


def read_card(package: Package) -> str:
    """The model card. Raises `PackageError` where it is no text."""
    try:
        return (package.folder / CARD).read_text(encoding="utf-8")
    except ValueError as error:
        raise PackageError(f"Expected text in UTF-8 in {CARD} but {error}. Package the model again.") from error


def card_gate(text: str, policy: Policy) -> Gate:
    """The model card says all that its reader must know; `text` is Markdown."""
    wanted = policy.card.headings
    if wanted is None:
        return Gate(name="card", passed=True, value="not read", limit=OFF)
    limit = f"{len(wanted)} sections with text, and the disclaimer"
    parts = re.split(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE)
    filled = {heading for heading, body in zip(parts[1::2], parts[2::2], strict=True) if body.strip()}
    missing = [heading for heading in wanted if heading not in filled]
    if DISCLAIMER not in text:
        missing.append("the disclaimer")
    value = f"missing: {', '.join(missing)}" if missing else "complete"
    return Gate(name="card", passed=not missing, value=value, limit=limit)


def _are_objects(rows: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether it is a list of JSON objects."""
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _interval(row: Any) -> str:
    low, high = number_of(row, "low"), number_of(row, "high")
    if low is None or high is None:
        return ""
    return f"mean over patients, 95 % interval {fixed(low)} to {fixed(high)}"


def _short(digest: Any) -> str:
    return str(digest)[:12] if digest else "unknown"
