"""The registry of model versions: MLflow's model registry on any of its stores, and the signed history beside it.

A version is one sealed model package. `candidate` was just registered, `champion` serves, `challenger` shadows it.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from blastwatch import history
from blastwatch.digests import file_digest
from blastwatch.entry import METRIC_TAG, Entry, entry_of
from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    HistoryBroken,
    NotPermitted,
    PackageError,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
    UsageError,
    VersionNotFound,
)
from blastwatch.history import ALIASES, CANDIDATE, CHALLENGER, CHAMPION, Record
from blastwatch.ledger import Ledger
from blastwatch.logged_model import open_logged
from blastwatch.model_store import Model, ModelStore, Version, check_reachable
from blastwatch.one_line import one_line
from blastwatch.package import Package, open_package
from blastwatch.policy import load_policy
from blastwatch.recording import ALIAS_TAG, Writer, head_of, read_word
from blastwatch.settings import UNATTENDED_VARIABLE, Settings
from blastwatch.signing import PROMOTER, TRAINER, open_signer, open_trusted
from blastwatch.two_persons import check_word

__all__ = ["ALIASES", "CANDIDATE", "CHALLENGER", "CHAMPION", "Fetched", "Registry", "check_reachable"]

SCRATCH = ".fetch-"  # begins the name of a folder that a fetch works in; a kill leaves it
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # as MLflow counts; it keeps them in 32 bits
_LOOKS, _PAUSE = 5, 0.2  # at the registry until both of its halves are of one moment, and seconds between two


@dataclass(frozen=True)
class Fetched:
    """A version and its verified package on this machine."""

    entry: Entry
    package: Package


class Registry:
    """Opens nothing until it is asked something."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model_name
        self.store = ModelStore(settings)
        self.ledger = Ledger(settings.history_url, settings.model_name, lock_seconds=settings.lock_seconds)
        self.trusted = open_trusted(settings)

    # -- reading ------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every version, newest first."""
        model, records = self.moment()
        if model is None:
            return []
        found = [entry_of(version, model, records) for version in self.store.versions()]
        return sorted(found, key=lambda entry: int(entry.version), reverse=True)

    def entry(self, ref: str) -> Entry:
        """The version that a reference names: an alias, a number, or a model URI of either.

        Raises:
            AliasNotSet, VersionNotFound: saying what there is and what to do.
        """
        wanted = parse_ref(ref, self.name)
        model, records = self.moment()
        number = model.aliases.get(wanted, wanted) if model else ""
        if model is not None and _NUMBER.fullmatch(number):  # asked for alone: a registry may hold thousands
            try:
                return entry_of(self.store.version(number), model, records)
            except VersionNotFound:
                pass
        known = ", ".join(entry.version for entry in self.entries()) or "none"
        if wanted.isdigit():
            raise VersionNotFound(f"There is no version {wanted} of {self.name}; there are: {known}.")
        raise AliasNotSet(_not_set(wanted, self.name, known, self.settings.tracking_shown))

    def records(self) -> list[Record]:
        """The history, oldest first."""
        return self.ledger.records()

    def moment(self) -> tuple[Model | None, list[Record]]:
        """What MLflow says, and the history at the same moment; without a model nothing is asked of the history.

        An action that comes between the two questions, or is under way, would look like an alias that was moved behind
        the registry's back. What still does after the last look was left by an interrupted action: it is taken as it
        is.
        """
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE)
            model = self.store.model()
            if model is None:
                return None, []
            rows = self.ledger.rows()
            try:
                told = head_of(model, rows, self.trusted, name=self.name).number
            except HistoryBroken:
                break  # which is no matter of time
            if told >= len(rows):
                break
        return model, [row.record() for row in rows]

    def proven(self, alias: str) -> Entry:
        """The version on which an alias stands, if a trusted promoter put it there and a trusted key registered it.

        It asks MLflow alone, so a service needs no way to the history.

        Raises:
            AliasNotSet: nothing carries the alias.
            AliasMoved: it stands elsewhere than the signed word about it says.
            SignatureInvalid: the word or the version is signed by nobody who may, or by one person where the policy
                wants two.
        """
        model = self.store.model()
        number = model.aliases.get(alias) if model else None
        if model is None or number is None:
            known = ", ".join(sorted(version.number for version in self.store.versions())) if model else "none"
            raise AliasNotSet(_not_set(alias, self.name, known or "none", self.settings.tracking_shown))
        version = self.store.version(number)
        entry = entry_of(version, model, None)
        self._check_signature(version)
        try:
            word = self._standing(model, alias, entry)
        except (AliasMoved, SignatureInvalid):
            if load_policy(self.settings.policy).serve_moved_alias:
                return entry  # nobody who may promote stands for it, and so nobody is named
            raise
        check_word(self.settings, self.trusted, version, word)
        return replace(entry, promoted_at=word.time, promoted_by=word.who, overridden=word.overridden, word=word.number)

    def _standing(self, model: Model, alias: str, entry: Entry) -> Record:
        """The signed word that puts an alias on a version. Raises `AliasMoved`, `SignatureInvalid`."""
        word = self.word(model, alias)
        said, stands = f"the last signed word ({one_line(word.who)}, {word.time})", history.stands_on(word, alias)
        if stands != entry.version:
            raise AliasMoved(
                f"The alias {alias} of {self.name} stands on version {entry.version} but {said} put it on version "
                f"{stands or 'none'}: it was moved behind the registry's back. Put it back: blastwatch registry restore"
            )
        if word.digest != entry.digest:
            raise AliasMoved(
                f"The alias {alias} of {self.name} stands on version {entry.version} as package {entry.digest[:12]} "
                f"but {said} put it on package {word.digest[:12]}: the version was exchanged in MLflow. "
                "Look with: blastwatch registry verify"
            )
        return word

    def word(self, model: Model, alias: str) -> Record:
        """The entry that last moved an alias, as MLflow mirrors it, its signature checked.

        Raises:
            SignatureInvalid: nobody trusted signed it.
        """
        if ALIAS_TAG + alias not in model.tags:
            raise SignatureInvalid(
                f"The alias {alias} of {self.name} was set without a signed word of the registry. Promote the version "
                "with: blastwatch registry promote VERSION"
            )
        return read_word(model.tags[ALIAS_TAG + alias], self.trusted, model=self.name)

    def check_signature(self, entry: Entry) -> None:
        """Raise `SignatureInvalid` where no trusted key signed a version's package."""
        self._check_signature(self.store.version(entry.version))

    def check_registered(self, entry: Entry) -> None:
        """As `check_signature`, and where no entry of the history registered the version.

        The signature is over the package, so it holds at every version that its tags are copied to; the entry does not.
        """
        self.check_signature(entry)
        record = history.registered(self.records(), entry.version)
        if record is None or record.digest != entry.digest:
            raise SignatureInvalid(
                f"Version {entry.version} is in MLflow but nobody registered package {entry.digest[:12]} as this "
                "version here. Register the package: blastwatch registry register DIR"
            )

    def _check_signature(self, version: Version) -> None:
        tags = version.tags
        digest, signature, key = (tags.get(f"blastwatch.{name}", "") for name in ("digest", "signature", "key"))
        try:
            self.trusted.check(_registration(self.name, digest), signature, key, role=TRAINER)
        except SignatureInvalid as error:
            text = f"Version {version.number} was not registered by anybody trusted. {error}"
            raise SignatureInvalid(text) from error

    def size_of(self, entry: Entry) -> int:
        """Bytes of a version's files in the store, before anything is fetched."""
        return self.store.size(entry.version)

    def fetch(self, ref: str, *, fresh: bool = False) -> Fetched:
        """A verified copy of a version's package.

        Args:
            fresh: read the store's own copy again instead of trusting the one kept on this machine.

        Raises:
            PackageError: where a file is missing or changed, or the package is not the registered one.
        """
        entry = self.entry(ref)
        return Fetched(entry, self.fetch_entry(entry, fresh=fresh))

    def fetch_entry(self, entry: Entry, *, fresh: bool = False) -> Package:
        """As `fetch`, for an entry that is known already."""
        if not _DIGEST.fullmatch(entry.digest):  # it becomes a path, and whoever may write to MLflow wrote it
            raise PackageError(f"Expected the SHA-256 of version {entry.version}'s package but got {entry.digest!r}.")
        kept = self.settings.packages / entry.digest
        if fresh or not kept.exists():
            self._download(entry, kept)
        package = open_package(kept)
        if package.digest != entry.digest:
            raise PackageError(f"Expected package {entry.digest} in {kept} but it holds {package.digest}. Remove it.")
        return package

    def check_files(self, entry: Entry) -> None:
        """Check a version's files where they lie, and what MLflow's tags say of them.

        Raises:
            PackageError, RegistryError: naming what is not so.
        """
        with tempfile.TemporaryDirectory(prefix="blastwatch-check-") as scratch:
            where = None if self.settings.embedded_registry else Path(scratch)
            package = open_logged(self.store.download(entry.version, where), entry.version, entry.digest)
            wrong = sorted(name for name, value in _told(package).items() if getattr(entry, name) != value)
        if wrong:
            raise PackageError(f"MLflow's tags say another {', '.join(wrong)} than its package")

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, role: str, *, mend: bool = False) -> Iterator[Writer]:
        """The one writer of the registry, after what an earlier one left unfinished is finished.

        Args:
            mend: let in also where MLflow lost the head of the history, see `Writer.settle`.

        Raises:
            NotPermitted: the key may not do what the role does, or nobody is there who could promote.
            RegistryBusy: another writer stays too long.
            HistoryBroken: the history and what MLflow mirrors of it do not go together.
        """
        if role == PROMOTER and self.settings.unattended:
            raise NotPermitted(
                f"Expected a person behind a promotion but {UNATTENDED_VARIABLE} is 1: a finding of the monitor "
                "started this. Look at the version and promote it by hand: blastwatch registry promote candidate."
            )
        signer = open_signer(self.settings, role)
        with self.ledger.lock():
            writer = Writer(self.store, self.ledger, signer, self.trusted, who=self.settings.actor)
            writer.settle(mend=mend)
            yield writer

    def register(self, folder: Path) -> Entry:
        """Log a sealed package to MLflow as one model, register it, and make it the candidate.

        A package that is registered already keeps its version, unless the files of that one are no longer what MLflow
        wrote, or its tags what the package says: then it gets another, and the damaged one is left to who looks at it.
        """
        package = open_package(folder)
        with self.writing(TRAINER) as writer:
            writer.check_clock()
            self.store.ensure_model()
            version = self._version_of(package, writer) or self.store.log(package, self._tags(package, writer))
            entry = self.entry(version)
            if history.registered(writer.records, version) is None or CANDIDATE not in entry.aliases:
                info = package.info
                facts = {name: getattr(info, name) for name in history.ORIGIN}
                writer.move("register", CANDIDATE, replace(entry, **facts))
        return self.entry(version)

    def _version_of(self, package: Package, writer: Writer) -> str:
        """The version that a package has already and whose files are whole, "" for none: the one that the history
        registered, else the one that an interrupted registration left. Any other that somebody put in is left where
        it is."""
        same = [entry for entry in self.entries() if entry.digest == package.digest and self._is_signed(entry)]
        said = {entry.version: history.registered(writer.records, entry.version) for entry in same}
        known = [entry for entry in same if (record := said[entry.version]) and record.digest == package.digest]
        left = [entry for entry in same if said[entry.version] is None]
        return next((entry.version for entry in [*known, *left] if self._is_whole(entry)), "")

    def _is_whole(self, entry: Entry) -> bool:
        """Whether a version's files and tags are those of its package."""
        try:
            self.check_files(entry)
        except (RegistryUnreachable, NotPermitted):
            raise  # nothing was looked at
        except (PackageError, RegistryError):
            return False
        return True

    def _is_signed(self, entry: Entry) -> bool:
        """Whether somebody trusted signed a version's package."""
        try:
            self.check_signature(entry)
        except SignatureInvalid:
            return False
        return True

    def _tags(self, package: Package, writer: Writer) -> dict[str, str]:
        info = package.info
        tags = {
            "blastwatch.digest": package.digest,
            "blastwatch.signature": writer.signer.sign(_registration(self.name, package.digest)),
            "blastwatch.key": writer.signer.fingerprint,
            "blastwatch.created": info.created,
            "blastwatch.synthetic": str(info.synthetic).lower(),
            "blastwatch.registered_by": self.settings.actor,
            "blastwatch.data_digest": info.data_digest,
            "blastwatch.split_digest": info.split_digest,
            "blastwatch.git_commit": info.git_commit,
        }
        return tags | {METRIC_TAG + name: str(value) for name, value in package.headline.items()}

    def _download(self, entry: Entry, kept: Path) -> None:
        """Fetch, verify, and only then put in place, in one step."""
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=SCRATCH) as scratch:
            package = open_logged(self.store.download(entry.version, Path(scratch)), entry.version, entry.digest)
            if kept.exists():
                if _holds(kept, entry.digest):
                    return  # the same bytes; a service may be reading them
                shutil.rmtree(kept)
            package.folder.replace(kept)


def parse_ref(ref: str, name: str) -> str:
    """The alias or version number in a reference: `champion`, `3`, `models:/NAME@champion`, `models:/NAME/3`."""
    text = ref
    if ref.startswith("models:/"):
        body = ref.removeprefix("models:/")
        model, mark, text = body.partition("@") if "@" in body else body.partition("/")
        if not mark or not text or model != name:
            raise UsageError(f"Expected models:/{name}@ALIAS or models:/{name}/VERSION but got {ref!r}.")
    if not text.isdigit() and text not in ALIASES:
        raise UsageError(f"Expected a version number or one of {', '.join(ALIASES)} but got {ref!r}.")
    return text


def lock_digest(project: Path) -> str:
    """SHA-256 of the pinned requirements of a checkout, "" where there are none."""
    pins = project / "requirements" / "run.txt"
    return file_digest(pins) if pins.is_file() else ""


def _registration(name: str, digest: str) -> dict[str, str]:
    """The statement that is signed when a version is registered."""
    return {"purpose": "blastwatch version", "model": name, "digest": digest}


def _told(package: Package) -> dict[str, object]:
    """What an entry says of a package out of MLflow's tags, by the entry's field."""
    info = package.info
    facts = {name: getattr(info, name) for name in ("synthetic", "created", *history.ORIGIN)}
    return facts | {"metrics": package.headline}


def _holds(folder: Path, digest: str) -> bool:
    """Whether a folder holds an intact package of a digest."""
    try:
        return open_package(folder).digest == digest
    except PackageError:
        return False


def _not_set(alias: str, name: str, known: str, where: str) -> str:
    register = "blastwatch registry register DIR"
    promote, challenge = (f"blastwatch registry {action} VERSION" for action in ("promote", "challenge"))
    remedy = {
        CANDIDATE: f"A promotion takes it away. Name a number, or register a version: {register}",
        CHAMPION: f"Promote one: {promote}",
        CHALLENGER: f"Make one: {challenge}. Of an earlier one: blastwatch shadow report --challenger NUMBER",
    }.get(alias, f"Expected one of {', '.join(ALIASES)}")
    if known == "none":
        remedy = f"Register one first: {register}, then {challenge if alias == CHALLENGER else promote}"
    there = f"There is no champion of {name} yet" if alias == CHAMPION else f"No version of {name} is the {alias}"
    return f"{there} in {where} (versions: {known}). {remedy}"
