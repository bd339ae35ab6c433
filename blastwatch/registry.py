"""The registry of model versions, on MLflow's model registry and any of its stores.

A version is one sealed model package. `candidate` was just registered, `champion` serves, `challenger` shadows it.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch import history
from blastwatch.digests import file_digest
from blastwatch.errors import AliasNotSet, PackageError, RegistryError, RegistryUnreachable, UsageError, VersionNotFound
from blastwatch.package import DIGESTS, Package, open_package
from blastwatch.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE, CHAMPION, CHALLENGER = "candidate", "champion", "challenger"
ALIASES = (CANDIDATE, CHAMPION, CHALLENGER)
HEADLINE = ("weighted_f1", "auroc", "sensitivity", "specificity")
REACH_TIMEOUT = 5.0  # seconds that a server gets to answer /health


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model version as the registry knows it."""

    version: str
    digest: str
    run_id: str
    created: str
    synthetic: bool
    registered_by: str
    aliases: list[str] = field(default_factory=list)
    promoted_at: str | None = None
    promoted_by: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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

    # -- reading ------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every version, newest first."""
        with self._reaching():
            tags, aliases = self._model()
            versions = self._client.search_model_versions(f"name='{self.name}'") if aliases is not None else []
        records = history.read(tags)
        found = [self._entry(version, aliases or {}, records) for version in versions]
        return sorted(found, key=lambda entry: int(entry.version), reverse=True)

    def entry(self, ref: str) -> Entry:
        """The version that a reference names: an alias, a number, or a model URI of either.

        Raises:
            AliasNotSet, VersionNotFound: saying what there is and what to do.
        """
        wanted = parse_ref(ref, self.name)
        found = self.entries()
        for entry in found:
            if wanted == entry.version or wanted in entry.aliases:
                return entry
        known = ", ".join(entry.version for entry in found) or "none"
        if wanted.isdigit():
            raise VersionNotFound(f"There is no version {wanted} of {self.name}; there are: {known}.")
        raise AliasNotSet(_not_set(wanted, self.name, known, self.settings.tracking_uri))

    def records(self) -> list[history.Record]:
        """The history, oldest first."""
        with self._reaching():
            tags, _ = self._model()
        return history.read(tags)

    def fetch(self, ref: str, *, fresh: bool = False) -> Fetched:
        """A verified copy of a version's package.

        Args:
            fresh: read the store's own copy again instead of trusting the one kept on this machine.

        Raises:
            PackageError: where a file is missing or changed, or the package is not the registered one.
        """
        entry = self.entry(ref)
        kept = self.settings.packages / entry.digest
        if fresh or not kept.exists():
            self._download(entry, kept)
        package = open_package(kept)
        if package.digest != entry.digest:
            raise PackageError(f"Expected package {entry.digest} in {kept} but it holds {package.digest}. Remove it.")
        return Fetched(entry, package)

    # -- writing ------------------------------------------------------------------------------------------------

    def register(self, folder: Path) -> Entry:
        """Log a sealed package to MLflow as one model, register it, and make it the candidate.

        A package that is registered already keeps its version.
        """
        package = open_package(folder)
        with self._reaching():
            self._ensure_model()
        same = [entry for entry in self.entries() if entry.digest == package.digest]
        with self._reaching():
            version = same[0].version if same else self._log(package)
            self._client.set_registered_model_alias(self.name, CANDIDATE, version)
        if not same:
            self.record("register", version=version, digest=package.digest)
        return self.entry(version)

    def crown(self, entry: Entry, *, action: str, why: str, gates: list[dict[str, Any]]) -> None:
        """Move the alias of the champion and write it down."""
        with self._reaching():
            if CANDIDATE in entry.aliases:
                self._client.delete_registered_model_alias(self.name, CANDIDATE)
            self.record(action, version=entry.version, digest=entry.digest, after=entry.version, why=why, gates=gates)
            self._client.set_registered_model_alias(self.name, CHAMPION, entry.version)

    def record(
        self,
        action: str,
        *,
        version: str,
        digest: str,
        after: str | None = None,
        why: str = "",
        gates: list[dict[str, Any]] | None = None,
    ) -> None:
        """Add one entry to the history; without `after` the champion stays."""
        with self._reaching():
            tags, aliases = self._model()
            before = str((aliases or {}).get(CHAMPION, ""))
            past = history.read(tags)
            entry = history.Record(
                number=past[-1].number + 1 if past else 1,
                time=history.now(),
                who=self.settings.actor,
                action=action,
                version=version,
                digest=digest,
                before=before,
                after=before if after is None else after,
                why=why,
                gates=gates or [],
            )
            self._client.set_registered_model_tag(self.name, *history.tag_of(entry))

    # -- MLflow -------------------------------------------------------------------------------------------------

    @cached_property
    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        if self.settings.embedded_registry:
            self.settings.home.mkdir(parents=True, exist_ok=True)
        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn what MLflow raises into the errors of this project, and a dead server into a quick answer."""
        check_reachable(self.settings.tracking_uri)
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            where = self.settings.tracking_uri
            raise RegistryError(f"MLflow at {where} refused: {error.message} ({error.error_code}).") from error

    def _model(self) -> tuple[dict[str, str], dict[str, str] | None]:
        """Tags and aliases of the registered model; no aliases (None) where nothing was registered yet."""
        found = self._client.search_registered_models(f"name='{self.name}'")
        if not found:
            return {}, None
        # The search leaves the aliases out in some stores, the single look-up never does.
        model = self._client.get_registered_model(self.name)
        return dict(model.tags), {alias: str(version) for alias, version in model.aliases.items()}

    def _ensure_model(self) -> None:
        if not self._client.search_registered_models(f"name='{self.name}'"):
            self._client.create_registered_model(self.name, description="Single-cell classifier, see the model card.")

    def _entry(self, version: "ModelVersion", aliases: dict[str, str], records: list[history.Record]) -> Entry:
        tags, number = version.tags, str(version.version)
        crowned = history.crowned(records, number)
        created = tags.get("blastwatch.created", "")
        prefix = "blastwatch.metric."
        return Entry(
            version=number,
            digest=tags.get("blastwatch.digest", ""),
            run_id=version.run_id or "",
            created=created,
            synthetic=tags.get("blastwatch.synthetic") == "true",
            registered_by=tags.get("blastwatch.registered_by", ""),
            aliases=sorted(alias for alias, target in aliases.items() if target == number),
            promoted_at=crowned.time if crowned else None,
            promoted_by=crowned.who if crowned else None,
            metrics={name.removeprefix(prefix): float(text) for name, text in tags.items() if name.startswith(prefix)},
        )

    def _log(self, package: Package) -> str:
        """Log the package under the run that trained it and create a version from it; returns its number."""
        import mlflow

        info = package.info
        mlflow.set_tracking_uri(self.settings.tracking_uri)
        mlflow.set_registry_uri(self.settings.tracking_uri)
        try:
            self._client.get_run(info.run_id)
        except mlflow.exceptions.MlflowException as error:
            raise RegistryError(
                f"Expected the training run {info.run_id} of this package in {self.settings.tracking_uri} but it is "
                "not there. Register with the MLFLOW_TRACKING_URI that the training used."
            ) from error
        with mlflow.start_run(run_id=info.run_id, log_system_metrics=False), warnings.catch_warnings():
            # Left out on purpose: two cells of 224 px cost 15 MB of JSON a version. Loading is tested instead.
            warnings.filterwarnings("ignore", message=".*An input example was not provided")
            logged = mlflow.pyfunc.log_model(
                name="package",
                loader_module="blastwatch.pyfunc_model",
                data_path=str(package.folder),
                signature=_signature(package),
                pip_requirements=["blastwatch"],
            )
        tags = {
            "blastwatch.digest": package.digest,
            "blastwatch.created": info.created,
            "blastwatch.synthetic": str(info.synthetic).lower(),
            "blastwatch.registered_by": self.settings.actor,
            "blastwatch.data_digest": info.data_digest,
            "blastwatch.split_digest": info.split_digest,
        }
        cells = package.metrics()["cells"]
        tags |= {f"blastwatch.metric.{name}": str(cells[name]["value"]) for name in HEADLINE if name in cells}
        created = self._client.create_model_version(
            self.name,
            source=logged.model_uri,
            model_id=logged.model_id,
            run_id=info.run_id,
            tags=tags,
            description="Trained on synthetic cells." if info.synthetic else "",
        )
        return str(created.version)

    def _download(self, entry: Entry, kept: Path) -> None:
        """Fetch, verify, and only then put in place, in one step."""
        import mlflow

        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch, self._reaching():
            mlflow.set_tracking_uri(self.settings.tracking_uri)
            mlflow.set_registry_uri(self.settings.tracking_uri)
            uri = f"models:/{self.name}/{entry.version}"
            try:
                got = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            except OSError as error:
                raise RegistryError(f"The files of version {entry.version} cannot be read: {error}.") from error
            seals = sorted(got.rglob(DIGESTS))
            if len(seals) != 1:
                raise PackageError(f"Expected one {DIGESTS} in version {entry.version} but found {len(seals)}.")
            package = open_package(seals[0].parent)
            if package.digest != entry.digest:
                raise PackageError(
                    f"Version {entry.version} was registered as package {entry.digest} but holds {package.digest}."
                )
            if kept.exists():
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


def check_reachable(tracking_uri: str) -> None:
    """Raise `RegistryUnreachable` within seconds where no MLflow server answers; MLflow alone retries for minutes."""
    if not tracking_uri.startswith(("http://", "https://")):
        return
    import httpx

    try:
        httpx.get(f"{tracking_uri.rstrip('/')}/health", timeout=REACH_TIMEOUT)
    except httpx.HTTPError as error:
        raise RegistryUnreachable(
            f"No MLflow server answers at {tracking_uri} ({error}). "
            "Start it (blastwatch up) or set MLFLOW_TRACKING_URI to where it is."
        ) from error


def lock_digest(project: Path) -> str:
    """SHA-256 of the pinned requirements of a checkout, "" where there are none."""
    pins = project / "requirements" / "run.txt"
    return file_digest(pins) if pins.is_file() else ""


def _signature(package: Package) -> Any:
    """Unnamed tensors: a named one breaks pyfunc's predict."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    size = package.info.preprocessing.size
    cells = TensorSpec(np.dtype(np.float32), (-1, 3, size, size))
    answers = Schema([ColSpec("double", "probability"), ColSpec("string", "label"), ColSpec("string", "decision")])
    return ModelSignature(inputs=Schema([cells]), outputs=answers)


def _not_set(alias: str, name: str, known: str, where: str) -> str:
    if alias == CHAMPION:
        remedy = "Promote one: blastwatch registry promote VERSION" if known != "none" else (
            "Register one first: blastwatch registry register DIR, then blastwatch registry promote VERSION"
        )  # fmt: skip
        return f"There is no champion of {name} yet in {where} (versions: {known}). {remedy}"
    return f"No version of {name} carries the alias {alias} in {where} (versions: {known})."
