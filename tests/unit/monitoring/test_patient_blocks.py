"""The sequence of patients begins where it began, however many have left it since: looking often finds no more."""

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from blastwatch.package import DriftReference
from monitoring import patients
from monitoring.patient_alarms import Alarms, State
from monitoring.patient_blocks import MOST_BEFORE, Block, block_now
from monitoring.patient_drift import PATIENTS_PER_FALSE_ALARM, Begun, evidence_of, follow, p_values, stakes
from monitoring.patient_report import PatientWatch, followed
from monitoring.patients import MOST_PATIENTS, Came
from monitoring.retention import open_retention
from monitoring.scores import PROBABILITY
from monitoring.store import open_store
from tests.cohorts import NOON, draw_cohort
from tests.patient_streams import cells_of

HOUR = timedelta(hours=1)
FACTS = {"version": "1", "settle": HOUR}
NEEDED = PATIENTS_PER_FALSE_ALARM  # of one column alone


class People:
    """Known patients, and those who come, one an hour."""

    def __init__(self, seed, count):
        random = np.random.default_rng(seed)
        self.reference, self.values = random.normal(size=12), random.normal(size=count)
        self.uniforms = random.random(count)
        self.known = pd.DataFrame({PROBABILITY: self.reference})

    def came(self, since, until):
        """Those who are stored, as far as they are looked at."""
        places = np.arange(max(since, until - MOST_PATIENTS), until)
        return Came(
            rows=pd.DataFrame({PROBABILITY: self.values[places]}), uniforms=self.uniforms[places], few=0, waiting=0,
            first=pd.Series([NOON + int(place) * HOUR for place in places], dtype="datetime64[us, UTC]"),
            cut=len(places) == MOST_PATIENTS,
        )  # fmt: skip

    def blocks(self, ends):
        """Evidence after each patient where every block is one process; of those before, the first ten have left."""
        before = np.empty(0)
        for begin, end in zip([0, *ends], ends, strict=False):
            block = slice(begin, end)
            ranks = p_values(np.concatenate([self.reference, before]), self.values[block], self.uniforms[block])
            yield evidence_of(stakes(ranks, np.inf))
            before = np.concatenate([before, spaced(self.values[begin + 10 : end], MOST_BEFORE - len(before))])


def spaced(values, most):
    """As many as that of them, evenly spaced."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)]


def looks(people, untils, stored):
    """Document and state of each look, of which each knows what the one before kept."""
    state = State()
    for until in untils:
        document, state = followed(
            people.known, people.came(until - min(until, stored), until), None, state=state, **FACTS
        )
        yield until, document, state


@pytest.mark.parametrize(("stored", "ends"), [(10_000, [1000, 2000, 2500]), (400, [*range(400, 2500, 400), 2500])])
def test_looks_at_every_tenth_patient_find_what_the_process_of_each_block_does(stored, ends):
    """Whether patients leave since there are a thousand, or since they are deleted by age."""
    people = People(5, 2500)
    evidence = np.concatenate([*people.blocks(ends)]) / NEEDED
    assert evidence.max() < 1
    for until, document, _ in looks(people, range(10, 2501, 10), stored):
        (column,) = document["columns"]
        assert column["evidence"] == pytest.approx(evidence[until - 1], rel=1e-9) and document["changes"] == []


def test_a_change_in_a_later_block_is_found_and_dated_as_by_its_process():
    people = People(3, 1100)
    people.values[1040:] += 3
    baseline = np.concatenate([people.reference, spaced(people.values[10:1000], MOST_BEFORE)])
    begun = Begun(baseline=baseline, counts=np.ones(100, dtype=bool))
    (change,) = follow(people.reference, people.values[1000:], people.uniforms[1000:], NEEDED, begun).changes
    *_, (_, document, _) = looks(people, range(500, 1101, 10), 10_000)
    (found,) = document["changes"]
    assert found["since"] == (NOON + (1000 + change.since) * HOUR).isoformat() and not found["since_or_before"]
    assert found["found"] == (NOON + (1000 + change.found) * HOUR).isoformat() and document["drifted"]
    assert document["columns"][0]["before"] == pytest.approx(baseline.mean(), abs=0.02)


def test_a_change_of_who_is_first_in_a_later_block_may_be_of_before():
    people = People(3, 1100)
    people.values[998:] += 5
    *_, (_, document, _) = looks(people, [990, 1000, 1100], 10_000)
    (found,) = document["changes"]
    assert found["since"] == (NOON + 1000 * HOUR).isoformat() and found["since_or_before"]


def test_a_block_ends_with_the_last_who_was_looked_at():
    """Of more who came since then than are looked at, the first are in no block and nobody is held against them."""
    people = People(3, 3000)
    (_, _, one), (_, _, other) = looks(people, [600, 3000], 10_000)
    assert one.block.first == NOON.isoformat() and one.block.after is None and one.block.before == {}
    assert other.block.after == one.block.seen == (NOON + 599 * HOUR).isoformat()
    assert other.block.first == (NOON + 2000 * HOUR).isoformat() and other.block.before == {PROBABILITY: []}
    (_, _, one), (_, _, other) = looks(people, [600, 1300], 10_000)
    assert other.block.before == {PROBABILITY: sorted(people.values[300:600])}
    assert other.block.first == (NOON + 600 * HOUR).isoformat()


def test_who_was_of_a_clock_that_ran_ahead_keeps_nobody_out():
    people = People(3, 20)
    ahead = (NOON + timedelta(days=365)).isoformat()
    for block in (Block(first=ahead, seen=ahead), Block(after=ahead), Block(after=ahead, first=ahead, seen=ahead)):
        now = block_now(block, people.came(0, 10), [])
        assert now.after == (NOON + 9 * HOUR).isoformat() and now.first is None
        later = block_now(now, people.came(0, 12), [])
        assert later.first == (NOON + 10 * HOUR).isoformat() and later.seen == (NOON + 11 * HOUR).isoformat()


def test_where_all_are_deleted_the_next_who_comes_begins_a_block():
    people = People(3, 20)
    block = block_now(Block(), people.came(0, 10), [PROBABILITY])
    assert block_now(block, people.came(10, 10), [PROBABILITY]) == block
    assert block_now(block, people.came(12, 13), [PROBABILITY]).first == (NOON + 12 * HOUR).isoformat()


def test_monitors_of_one_home_one_that_starts_anew_and_the_command_agree(settings, monkeypatch):
    """While the oldest make room, and are deleted; each block goes on behind the last who was looked at."""
    monkeypatch.setattr(patients, "MOST_PATIENTS", 40)
    reference = DriftReference(draw_cohort(np.random.default_rng(2), patients=12, cells=10))
    package = SimpleNamespace(digest="d" * 64, drift=dict, reference=lambda: reference)
    random, begins = np.random.default_rng(5), set()

    def watch(store, **how):
        return PatientWatch(store, package, version="1", settings=settings, **how)

    with open_store(settings.predictions_url) as store, open_retention(settings.predictions_url) as retention:
        one, other = watch(store, keeps=True), watch(store, keeps=True)
        for number in range(120):
            probabilities = np.clip(random.uniform() + random.normal(size=10) / 20, 0, 1).tolist()
            store.add(cells_of(f"p{number}", NOON + number * HOUR, probabilities, digest="d" * 64))
            if number >= 60:
                retention.by_age(NOON + (number - 25) * HOUR)
            if number % 6 == 5:
                at = NOON + (number + 2) * HOUR
                found = one.look(at)
                assert other.look(at) == watch(store).look(at) == watch(store, keeps=True).look(at) == found
                begins.add(Alarms(settings.drift, "d" * 64).read().block.first)
    assert begins == {(NOON + hours * HOUR).isoformat() for hours in (0, 36, 60, 84, 108)}
