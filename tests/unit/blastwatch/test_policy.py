"""The promotion policy: its defaults, files over them, and what is refused."""

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from blastwatch.errors import PolicyError
from blastwatch.gate import GATES, NEVER_OVERRIDDEN
from blastwatch.policy import DEFAULTS, load_policy
from tests.policies import lenient


@pytest.fixture
def written(tmp_path):
    """Writes a policy file."""

    def write(text):
        (tmp_path / "policy.yaml").write_text(text)
        return tmp_path / "policy.yaml"

    return write


def test_the_defaults():
    policy = load_policy(None)
    assert policy.two_person is False and policy.serve_moved_alias is False
    assert set(policy.overridable) == set(GATES) - set(NEVER_OVERRIDDEN) - {"two-persons"}
    off = {f"{name}.{key}" for name, section in policy.to_dict().items() if isinstance(section, dict)
           for key, value in section.items() if value is None}  # fmt: skip
    # Which older versions have no figure for; nobody knows a limit of the first, few patients can show the second.
    assert off == {"cameras.largest_loss", "baseline.least_difference"}
    assert policy.require_reason is False


def test_a_file_changes_what_it_names_and_nothing_else(written):
    found = load_policy(written("floors: {sensitivity: 1}\ntwo_person: true\n")).to_dict()
    expected = load_policy(None).to_dict()
    expected["floors"]["sensitivity"], expected["two_person"] = 1.0, True
    assert found == expected
    assert type(found["floors"]["sensitivity"]) is float


def test_null_switches_a_gate_off(written):
    policy = load_policy(written("non_inferiority: {margin: null}\ncard: {headings: null}\n"))
    assert policy.non_inferiority.margin is None and policy.card.headings is None


def test_an_empty_file_is_the_defaults(written):
    assert load_policy(written("# nothing\n")) == load_policy(None)


def test_nothing_overridable(written):
    assert load_policy(written("overridable: []\n")).overridable == ()


def test_the_lenient_policy_of_the_tests_is_one(tmp_path):
    policy = load_policy(lenient(tmp_path, two_person=True, floors={"sensitivity": 0.95}))
    assert (policy.floors.sensitivity, policy.floors.specificity, policy.two_person) == (0.95, None, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("floor: {}", "Expected keys of the promotion policy among non_inferiority,.* but got floor"),
        (
            "retraining: {findings: [rain]}",
            "retraining.findings .* among drift, patients, estimated, realised but got rain",
        ),
        ("retraining: {pause_days: -1}", "retraining.pause_days .* to lie from 0 to 3650 but got -1"),
        ("retraining: {command: dvc repro}", "retraining.command .* to be a list of texts but got 'dvc repro'"),
        ("floors: {sensitivty: 0.9}", "keys of floors among sensitivity, specificity but got sensitivty"),
        ("floors: 0.9", "Expected floors of the promotion policy to be keys and values but got 0.9"),
        ("floors:", "Expected floors of the promotion policy to be keys and values but got None"),
        (
            "floors: {sensitivity: high}",
            "floors.sensitivity .* a number, or null to switch the gate off, but got 'high'",
        ),
        ("floors: {sensitivity: true}", "floors.sensitivity .* but got True"),
        ("floors: {sensitivity: 1.5}", "floors.sensitivity .* lie from 0 to 1 but got 1.5"),
        ("floors: {sensitivity: .nan}", "floors.sensitivity .* lie from 0 to 1 but got nan"),
        ("baseline: {least_difference: 2}", "baseline.least_difference .* to lie from -1 to 1 but got 2"),
        ("require_reason: 1", "require_reason of the promotion policy to be true or false but got 1"),
        ("engine: {largest_latency_ms: 0}", "largest_latency_ms .* but got 0"),
        ("non_inferiority: {confidence: null}", "confidence of the promotion policy to be a number but got None"),
        ("non_inferiority: {confidence: 1}", "confidence .* lie from 0.5 to 0.9999"),
        ("non_inferiority: {least_patients: 1}", "least_patients .* lie from 2"),
        ("non_inferiority: {least_patients: 5.0}", "least_patients .* a whole number but got 5.0"),
        ("two_person: yes please", "two_person of the promotion policy to be true or false but got 'yes please'"),
        ("two_person: null", "two_person"),
        ("{two_person: true, two_person_since: '2026-12-01'}", "to be a day such as 2026-12-01 without quotes"),
        ("{two_person: true, two_person_since: 2026-12-01 10:00:00}", "two_person_since of the promotion policy to be"),
        ("two_person_since: 2026-12-01", "Expected two_person: true of the promotion policy beside two_person_since"),
        ("card: {headings: Data}", "card.headings .* a list of texts"),
        ("card: {headings: [1]}", "card.headings .* a list of texts"),
        ("overridable: [latency, speed]", "to name gates among audit, .* but got speed"),
        ("overridable: [digests]", "digests and signature can never be overridden"),
        ("floors: {sensitivity: 0.9, sensitivity: 0.1}", "every key of the policy once but sensitivity stands twice"),
        ("- floors", "Expected sections"),
        ("floors: [", "Expected YAML"),
        ("two_person: !!python/name:os.system", "Expected YAML"),
    ],
)
def test_what_cannot_be_used_is_named(written, text, said):
    with pytest.raises(PolicyError, match=said):
        load_policy(written(text))


def test_a_policy_has_a_digest_of_all_that_it_says(written):
    """The same whatever the file leaves away or says over, another by one limit."""
    plain, same = load_policy(None), load_policy(written("two_person: false\n"))
    day = load_policy(written("two_person: true\ntwo_person_since: 2026-12-01\n"))
    assert plain.digest == same.digest and len(plain.digest) == 64
    assert len({plain.digest, day.digest, load_policy(written("two_person: true\n")).digest}) == 3
    assert day.two_person_since == date(2026, 12, 1) and day.to_dict()["two_person_since"] == "2026-12-01"


def test_every_gate_is_in_the_documentation_in_its_order():
    root = Path(__file__).parents[3]
    text = (root / "docs" / "promotion.md").read_text()
    table = text.partition("## The gates")[2].partition("## The policy file")[0]
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", table, flags=re.MULTILINE)
    assert re.findall(r"`([a-z-]+)`", " ".join(rows)) == list(GATES)
    assert len(GATES) == 20 and "twenty gates" in (root / "README.md").read_text()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PolicyError, match="BLASTWATCH_POLICY"):
        load_policy(tmp_path / "none.yaml")


def test_every_key_of_the_defaults_is_explained():
    """A comment beside or above each: the file is what a lab reads first."""
    lines = DEFAULTS.read_text().splitlines()
    for section, value in yaml.safe_load(DEFAULTS.read_text()).items():
        for key in value if isinstance(value, dict) else [section]:
            [line] = [line for line in lines if line.strip().startswith(f"{key}:")]
            assert "#" in line, line
