"""The rule of two persons: who registered a version does not alone make it champion or challenger.

Whoever promotes is asked by their own policy, and another file may not have the rule. So whoever reads the registry
under a policy that has it asks again, by what is signed: the key of the registration, and the keys of the entries that
put the version where it stands. One of these must be another's, or of before the rule, or name the override that the
reader's policy allows. Names do not count here: nobody checks them. Nor does a clock: who sets theirs back signs what
looks like an entry of before. Where everybody signs with one key there is nothing to ask by.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from blastwatch import history
from blastwatch.errors import PromotionRefused, SignatureInvalid
from blastwatch.gate import OFF, Gate
from blastwatch.history import CHALLENGER, CHAMPION, Record
from blastwatch.model_store import Version
from blastwatch.policy import Policy, load_policy
from blastwatch.recording import ENTRY_TAG, read_word
from blastwatch.settings import Settings
from blastwatch.signing import TrustedKeys

GATE = "two-persons"
STANDING_FOR = {CHAMPION: ("promote", "rollback"), CHALLENGER: ("promote", "rollback", "challenge")}
"""By alias, the actions by which somebody stands for a version that carries it."""


def two_persons_gate(registered: Record | None, actor: str, policy: Policy, *, settings: Settings, key: str) -> Gate:
    """Who registered a version, as the history says, does not promote it alone.

    Args:
        registered: the entry of it, None for nobody known. actor: who would promote, "" for nobody known.
        key: fingerprint of the key that would sign, "" where that is not known. The key that is made under home is
            that of everybody there; a key in a team's folder is that of one person, whatever names they go by.
            Without such a folder the names are all that there is, and they count where accounts of MLflow check them.
    """
    who = registered.who if registered else ""
    one_key = settings.trusted_keys is not None and registered is not None and key == registered.key
    value = f"registered by {who or 'nobody known'}, promoted by {actor or 'nobody known'}"
    value += ", both with one key" if one_key else ""
    if not policy.two_person:
        return Gate(name=GATE, passed=True, value=value, limit=OFF)
    if settings.trusted_keys is None and not _by_account(settings, actor):
        value = f"cannot be judged: {value}, and nobody checks these names"
        return Gate(name=GATE, passed=False, value=value, limit="two persons", note=_A_KEY_EACH)
    two = bool(who and actor) and who != actor and not one_key
    return Gate(name=GATE, passed=two, value=value, limit="two persons")


def _by_account(settings: Settings, actor: str) -> bool:
    """Whether a name is that of the account with which MLflow's client asks its server; a file asks for none."""
    served = settings.tracking_uri.startswith(("http://", "https://"))
    return served and bool(actor) and actor == os.environ.get("MLFLOW_TRACKING_USERNAME")


def check_challenge(registered: Record | None, actor: str, policy: Policy, *, settings: Settings, key: str) -> None:
    """Raise `PromotionRefused` where the rule lets this person not make a version the challenger, which may answer."""
    gate = two_persons_gate(registered, actor, policy, settings=settings, key=key)
    if not gate.passed:
        raise PromotionRefused(f"The version was not made challenger. {gate.told}")


def check_word(settings: Settings, trusted: TrustedKeys, version: Version, word: Record) -> None:
    """Ask the rule of the signed entry that put an alias on a version, with what MLflow mirrors alone, as services do.

    Only entries since the day that the policy names are asked: a champion of before must not stop a service, nor
    must an emergency in which somebody goes back to it.

    Args:
        version: its own signature was checked.

    Raises:
        SignatureInvalid: nobody but whoever registered the version stands for it.
        PolicyError: the policy of the settings cannot be used.
    """
    policy = _binding(settings)
    if policy is None or policy.two_person_since is None or not _is_asked(word, policy):
        return
    key, earlier = version.tags.get("blastwatch.key", ""), _mirrored(version.tags, trusted, model=word.model)
    entries = [word, *(entry for entry in earlier if entry.digest == word.digest)]
    if _is_alone(key, entries, word.alias, word.after, policy):
        raise SignatureInvalid(
            f"Expected two persons behind a {word.alias} since {policy.two_person_since} but {_told(word, key)}. "
            f"{_REMEDY[word.alias]}"
        )


def faults_of_one(settings: Settings, records: Sequence[Record]) -> list[tuple[int, str]]:
    """Number and words of the entry behind each alias that one person alone set, by the policy of the settings.

    Raises:
        PolicyError: it cannot be used.
    """
    policy, found = _binding(settings), []
    for alias, word in history.words(records).items():
        standing = history.stands_on(word, alias)
        registered = history.registered(records, standing)
        if policy is None or registered is None or word.alias != alias or not _is_asked(word, policy):
            continue
        if _is_alone(registered.key, records, alias, standing, policy):
            text = f"{_told(word, registered.key)}, and the policy says two_person. {_REMEDY[alias]}"
            found.append((word.number, text))
    return found


def not_examined(settings: Settings) -> str:
    """Why the rule is not asked of what stands, though the policy of the settings has it; "" where it is asked, or
    where the policy has no such rule.

    Raises:
        PolicyError: the policy cannot be used.
    """
    if settings.trusted_keys is not None or not load_policy(settings.policy).two_person:
        return ""
    return f"The rule of two persons was not examined, since everybody signs with one key here: {_A_KEY_EACH}."


def _binding(settings: Settings) -> Policy | None:
    """The policy of whoever reads, where it has the rule and each key is one person's; else None."""
    if settings.policy is None or settings.trusted_keys is None:
        return None
    policy = load_policy(settings.policy)
    return policy if policy.two_person else None


def _is_asked(word: Record, policy: Policy) -> bool:
    overridden = GATE in word.overridden and GATE in policy.overridable
    return word.alias in STANDING_FOR and not overridden and not _is_before(word, policy)


def _is_before(entry: Record, policy: Policy) -> bool:
    """Whether an entry is of before the rule, by the time that is signed."""
    since = policy.two_person_since
    return since is not None and datetime.fromisoformat(entry.time).astimezone(UTC).date() < since


def _is_alone(key: str, entries: Iterable[Record], alias: str, version: str, policy: Policy) -> bool:
    """Whether each entry by which somebody stands for a version is signed with the key that registered it, and none is
    of before the rule."""
    for_it = (entry for entry in entries if entry.action in STANDING_FOR[alias] and entry.after == version)
    return all(entry.key == key and not _is_before(entry, policy) for entry in for_it)


def _mirrored(tags: Mapping[str, str], trusted: TrustedKeys, *, model: str) -> list[Record]:
    """The entries about a version that MLflow's tags of it mirror; what nobody trusted signed stands for nothing."""
    found = []
    for name, text in tags.items():
        if name.startswith(ENTRY_TAG):
            try:
                found.append(read_word(text, trusted, model=model))
            except SignatureInvalid:
                continue
    return found


_A_KEY_EACH = (
    "give each person a key of their own and name the folder of the public halves in BLASTWATCH_TRUSTED_KEYS, as "
    "docs/promotion.md says under Keys and roles"
)

_REMEDY = {
    CHAMPION: "Have somebody else promote another version, or go back: blastwatch registry rollback",
    CHALLENGER: "Have somebody else challenge with it: blastwatch registry withdraw, then challenge",
}


def _told(word: Record, key: str) -> str:
    return f"version {word.after} became {word.alias} by the key {key[:16]} alone, which registered it too"
