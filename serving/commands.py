"""The commands `blastwatch serve`, `predict`, `score` and `bento`."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TextIO

import click

from blastwatch import DISCLAIMER, __version__
from blastwatch.console import json_option, print_json, progress, say
from blastwatch.errors import BlastwatchError, DataError, ServiceError, ServiceUnreachable
from blastwatch.image_files import in_words
from blastwatch.private_file import replace
from blastwatch.rounding import fixed
from blastwatch.settings import Settings, load
from serving.names import line_of, text_of

if TYPE_CHECKING:
    from serving.live import Served

SHUT_OUT = (401, 403)
"""HTTP statuses by which a service refuses the caller, whatever it sends."""
TOLD: dict[str, type | tuple[type, ...]] = {
    "decision": str,
    "label": str,
    "probability": (int, float),
    "reasons": list,
}
"""What `blastwatch predict` tells of an answer, with the kind of each; and of its model:"""
TOLD_OF_ITS_MODEL = ("version", "synthetic")


@click.command()
@click.option("--host", help="Address to bind.  [BLASTWATCH_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to bind.  [BLASTWATCH_PORT]")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that answer.  [BLASTWATCH_WORKERS]")
def serve(host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the champion until stopped (Ctrl+C).

    The service follows the registry: a version that is promoted or rolled back serves within seconds, no request is
    dropped. With BLASTWATCH_FOLLOW_SECONDS=0 it stays on the version that is champion now.
    """
    from blastwatch.addresses import check_free, origin
    from serving.binding import check_binding, check_salt
    from serving.live import settle

    asked = {"BLASTWATCH_HOST": host, "BLASTWATCH_PORT": port, "BLASTWATCH_WORKERS": workers}
    environment = {**os.environ, **{name: str(value) for name, value in asked.items() if value is not None}}
    settings = load(environment)
    check_binding(settings.host, settings)  # here too, for a plain word before anything is loaded
    # BentoML empties the folder of metrics at its start, of another service on this port as well.
    check_free(settings.host, settings.port, "BLASTWATCH_PORT")
    served, variables = settle(settings, environment)
    check_salt(settings)  # once it is known that a version is there: it may make one
    kind = _trained_on(served.package.info.synthetic)
    say(f"Serving version {served.entry.version} ({served.package.digest[:12]}, {kind}).")
    address = origin(settings.host, settings.port)
    say(f"Page: {address}/  Description: {address}/docs")
    _become_server(settings, {**environment, **variables})


def _trained_on(synthetic: bool) -> str:
    return f"trained on {'synthetic' if synthetic else 'real'} cells"


def _become_server(settings: Settings, environment: Mapping[str, str]) -> None:
    """Turn this process into BentoML's server, so that signals and exit codes are its own."""
    from serving.binding import SETTLED_VARIABLE

    ours = {
        SETTLED_VARIABLE: "1",
        "BLASTWATCH_WORKERS": str(settings.workers),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # BentoML empties a folder for metrics below its home at each start: two services must not share it.
        "BENTOML_HOME": str(settings.home / "bentoml" / str(settings.port)),
    }
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Blastwatch"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, {**environment, **ours})  # noqa: S606  (no shell is wanted)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--url", help="Address of the service.  [BLASTWATCH_URL]")
@click.option(
    "--patient-file",
    type=click.File("r", encoding="utf-8-sig"),
    help="File with the key of the patient whose cells these are; - reads it from standard input.",
)
@json_option
def predict(images: tuple[Path, ...], url: str | None, patient_file: TextIO | None, as_json: bool) -> None:
    """Ask the service about IMAGES, one cell a file.

    An image that is refused is named with the reason; the others are answered, and the exit code is 1. Where the
    service wants a key it is the one in BLASTWATCH_API_KEY; where that is not let in, the first refusal ends the call.
    A patient's key is no argument, since other users of the machine see what a command was called with; the service
    stores a salted pseudonym of it.
    """
    from serving.client import Client

    patient = _patient(patient_file) if patient_file else ""
    settings = load()
    with Client(url or settings.service_url, api_key=settings.api_key) as client:
        answers = zip(images, client.predict_many(images, patient=patient), strict=True)
        results, end = _collect(answers, images, settings, as_json=as_json)
    _conclude(results, as_json=as_json)
    if end is not None:
        raise end
    refused = sum("error" in row for row in results)
    if refused:
        raise BlastwatchError(f"{refused} of {len(images)} images got no answer.")


def _collect(
    answers: Iterable[tuple[Path, Any]], images: Sequence[Path], settings: Settings, *, as_json: bool
) -> tuple[list[dict[str, Any]], BlastwatchError | None]:
    """The results up to the last image or to what ends the call before it, which comes with them.

    Raises:
        ServiceUnreachable: no image was answered.
    """
    results: list[dict[str, Any]] = []
    try:
        for path, answer in progress(answers, total=len(images), what="Asking"):
            name, said = text_of(str(path)), _checked(answer)
            if isinstance(said, dict):
                results.append({"path": name, **said})
                if not as_json:
                    click.echo(_line(path, said))
                continue
            results.append({"path": name, "error": text_of(str(said))})
            if isinstance(said, ServiceError) and said.status in SHUT_OUT:
                words = f"{_stopped(path, said)} {_remedy(settings, said.status)}"
                return results, ServiceError(words, status=said.status)
            say(line_of(f"{path}: {said}"))
    except ServiceUnreachable as error:
        if not results:
            raise
        path = images[len(results)]
        results.append({"path": text_of(str(path)), "error": str(error)})
        return results, ServiceUnreachable(_stopped(path, error))
    return results, None


def _checked(answer: Any) -> dict[str, Any] | ServiceError | DataError:
    """An answer, or the error in place of one that lacks what is told of it: another server gives objects too."""
    if isinstance(answer, (ServiceError, DataError)):
        return answer
    wrong = [name for name, kind in TOLD.items() if not isinstance(answer.get(name), kind)]
    model = answer.get("model")
    wrong += [f"model.{name}" for name in TOLD_OF_ITS_MODEL if not isinstance(model, dict) or name not in model]
    if not wrong:
        return dict(answer)
    words = f"Expected {', '.join(wrong)} in the answer but it has no such member, or one of another kind."
    return ServiceError(f"{words} Is this the address of the prediction service?", status=200)


def _stopped(path: Path, why: BlastwatchError) -> str:
    return line_of(f"Stopped at {path}: {why}")


def _conclude(results: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the results as JSON, or which versions answered and what they are not."""
    if as_json:
        print_json(results)
        return
    answers = [row for row in results if "model" in row]
    for model in {row["model"]["version"]: row["model"] for row in answers}.values():
        say(f"Model version {model['version']}, {_trained_on(model['synthetic'])}. {DISCLAIMER}")


def _remedy(settings: Settings, status: int) -> str:
    """What to do where the service lets the caller not in."""
    if status == 403 and settings.api_key:  # a key that is not known is a 401
        return (
            "The key in BLASTWATCH_API_KEY may not `predict`, and what a key may do is never changed: make another one "
            "under a new name (blastwatch keys add NAME --may predict) and set BLASTWATCH_API_KEY to what that printed."
        )
    given = "the key in BLASTWATCH_API_KEY is not the one it needs" if settings.api_key else "none was sent"
    return (
        f"Every image needs a key that may `predict`, and {given}: set BLASTWATCH_API_KEY to what "
        "`blastwatch keys add NAME` printed."
    )


def _patient(file: TextIO) -> str:
    """The one key in a file."""
    from serving.calls import named

    try:
        key = file.read().strip()
        named(patient=key)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--patient-file") from error
    if not key:
        raise click.BadParameter("Expected a patient's key but the file is empty.", param_hint="--patient-file")
    return key


def _line(path: Path, answer: dict[str, Any]) -> str:
    reasons = "; ".join(answer["reasons"])
    decision = answer["decision"] + (f" ({reasons})" if reasons else "")
    name, blast = line_of(str(path)), fixed(answer["probability"])
    seen = "; the model learned from this very image" if answer.get("seen_in_training") else ""
    id_ = f"  id {line_of(str(answer['id']))}" if "id" in answer else ""  # which a label that comes later needs
    return f"{name}  {decision}  probability of a blast {blast}, more probable: {answer['label']}{seen}{id_}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Parquet file to write.")
@click.option("--ref", help="Version or alias that scores; default: the one that serves.")
@json_option
def score(folder: Path, out: Path, ref: str | None, as_json: bool) -> None:
    """Score every image below FOLDER on this machine, without the service.

    An image that is refused is named with the reason and has no row; the others are written, and the exit code is 1.
    The file is written once all are scored, in place of the one that may be there. Until then the scores lie beside it
    in OUT.part: call it again after a stop, and it goes on. Links to folders are followed; hidden files, those of other
    kinds and what is read by another name are left aside and counted.
    """
    import PIL

    from serving.kept_scores import open_kept
    from serving.live import find, open_live
    from serving.scoring import score as score_folder

    settings = load()
    if out.suffix != ".parquet":
        raise click.BadParameter(f"Expected a name that ends in .parquet but got {out.name}.", param_hint="--out")
    aside = _look_through(folder)  # before a model is fetched for nothing
    _check_place(out)
    served = find(settings) if ref is None else _asked(settings, ref)
    live = open_live(served, settings)
    by = {"package": served.package.digest, "version": served.entry.version, "engine": live.engine.name}
    by |= {"program": __version__, "decoder": f"pillow {PIL.__version__}"}  # of others the same file may have others
    limits = {"max_image_bytes": settings.max_image_bytes, "max_image_pixels": settings.max_image_pixels}
    with open_kept(out, {"folder": text_of(str(folder.absolute())), **by, **limits}) as kept:
        if kept.of_another:
            say(
                f"What was scored before ({kept.path}) is of another version, folder, limit, program or Pillow: all "
                "are scored anew."
            )
        if len(kept):
            say(f"Going on with {len(kept)} images that were scored before ({kept.path}).")
        rows, refused = score_folder(
            folder, live, settings, watched=lambda parts: progress(parts, total=len(parts), what="Scoring"), kept=kept
        )
        for row in refused:
            say(line_of(f"{folder / row.path}: {row.message}"))
        if rows.empty:
            kept.remove()
            raise DataError(f"None of the {len(refused)} images in {folder} can be read.")
        try:
            mode = (out if out.exists() else kept.path).stat().st_mode & 0o777  # by the umask, or who may read it now
            replace(out.resolve(), rows.to_parquet(index=False), mode=mode)
        except OSError as error:
            raise BlastwatchError(f"The scores cannot be written to {out}: {error.strerror or error}.") from error
        kept.remove()
    decisions = {str(name): int(count) for name, count in rows["decision"].value_counts().items()}
    if as_json:
        print_json(
            {
                "out": str(out),
                "images": len(rows),
                "decisions": decisions,
                "model_version": served.entry.version,
                "synthetic": served.package.info.synthetic,
                "refused": [asdict(row) for row in refused],
                "skipped": aside,
                "disclaimer": DISCLAIMER,
            }
        )
    else:
        counted = ", ".join(f"{name} {count}" for name, count in sorted(decisions.items()))
        say(f"Version {served.entry.version} scored {len(rows)} images ({counted}), refused {len(refused)}: {out}")
        say(f"It was {_trained_on(served.package.info.synthetic)}. {DISCLAIMER}")
    if refused:
        raise BlastwatchError(f"{len(refused)} of {len(rows) + len(refused)} images have no row in {out}.")


def _look_through(folder: Path) -> dict[str, int]:
    """What is left aside below a folder of images, counted by why, and said.

    Raises:
        DataError: as `serving.scoring.find_images`.
    """
    from serving.scoring import find_images

    aside: Counter[str] = Counter()
    find_images(folder, lambda why: aside.update([why]))
    if aside:
        say(f"Left aside in {line_of(str(folder))}: {in_words(aside)}.")
    return dict(aside)


def _asked(settings: Settings, ref: str) -> "Served":
    """The version that --ref names, as somebody trusted registered it; that it was never promoted is said.

    Raises:
        AliasMoved: an alias that the history has elsewhere.
        SignatureInvalid: nobody trusted registered the version.
        AliasNotSet, VersionNotFound, PackageError: there is none, or it is not what was registered.
        RegistryError: there is no registry, and none is made.
    """
    from blastwatch.embedded_store import check_made
    from blastwatch.promotion import unmoved
    from blastwatch.registry import Registry
    from serving.live import Served

    check_made(settings)
    registry = Registry(settings)
    entry = unmoved(registry, ref)
    registry.check_registered(entry)
    if entry.promoted_at is None:
        say(f"Version {entry.version} was never promoted: the gates refused it or were not asked.")
    return Served(entry=entry, package=registry.fetch_entry(entry), alias=ref)


def _check_place(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is scored for it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        words = f"Expected a file that can be written but got {out}: {error.strerror or error}."
        raise click.BadParameter(words, param_hint="--out") from error


@click.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="New folder for the bento."
)
@click.option("--dockerfile", type=click.Path(path_type=Path, dir_okay=False), help="Copy its Dockerfile here.")
@click.option("--ref", help="Version or alias to pack; default: the one that serves.")
@json_option
def bento(out: Path, dockerfile: Path | None, ref: str | None, as_json: bool) -> None:
    """Build a bento that serves one version by itself, without a registry.

    The version that serves is the one that a trusted promoter put there. With --ref it may be one that never passed the
    gates, which is said; one that nobody trusted registered is refused.
    """
    from serving.bento import build_bento
    from serving.live import find

    settings = load()
    served = find(settings) if ref is None else _asked(settings, ref)
    built = build_bento(served, out)
    if dockerfile is not None:
        dockerfile.parent.mkdir(parents=True, exist_ok=True)
        dockerfile.write_text(built.dockerfile)
    if as_json:
        print_json({"tag": built.tag, "folder": str(out), "version": served.entry.version})
    else:
        say(f"Bento {built.tag} of version {served.entry.version} is in {out}. Serve it: bentoml serve {out}")
