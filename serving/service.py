"""What `bentoml serve serving.service:Blastwatch` and `bentoml build` run.

BentoML supervises the workers, holds the socket, and answers /livez and /readyz; every other address is answered by
the application in `serving.app`. BentoML's own metrics are off: they take each unknown address as a label value.
"""

import asyncio
import logging
import os

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

# Of a bento's own modules BentoML's supervisor finds only those that are imported here.
from blastwatch.settings import load
from serving.binding import SETTLED_VARIABLE, asked_host, check_binding, check_salt
from serving.limits import REQUEST_SECONDS
from serving.supervising import end_with_supervisor, prepare_supervisor, tell_serving

if os.environ.get(SETTLED_VARIABLE) != "1":  # else a supervisor needs nothing of what finds a version: 22 MiB
    from serving.live import settle

# BentoML answers late requests in its own shape; `serving.limits` comes before it. But not much later: BentoML's timer
# of a request, answered long ago or not, lives until it runs out.
TIMEOUT_SECONDS = REQUEST_SECONDS + 10
# That timer would also hold the span of the request, 5 KiB, which BentoML makes whether anybody collects spans or not.
# Who does sets services.blastwatch.tracing in BENTOML_CONFIG_OPTIONS.
UNTRACED = {"excluded_urls": ".*"}
# A version is loaded by one thread and used by others. With an arena a thread glibc keeps up to 40 % more of what
# earlier versions left.
TWO_ARENAS = {"name": "MALLOC_ARENA_MAX", "value": "2"}
# numpy's products of a few thousand numbers would wake a thread on every core, and each waits there for work in a loop:
# an engine that uses all cores then loses a quarter of its throughput and more (docs/performance.md).
ONE_BLAS_THREAD = {"name": "OPENBLAS_NUM_THREADS", "value": "1"}


async def route(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand a request to the application that this worker built when it started."""
    await bentoml.get_current_service().app(scope, receive, send)


class AlsoLineFeeds:
    """Hands the application what BentoML's router does not: its pattern stops at a line feed (`%0a`), and the answer
    came from nobody's door and left no line in the audit log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (route if "\n" in scope.get("path", "") else self._app)(scope, receive, send)


@bentoml.asgi_app(route)
@bentoml.service(
    name="blastwatch",
    workers=load().workers,  # here, since a bento is served by BentoML's own command, which knows no other place
    traffic={"timeout": TIMEOUT_SECONDS},
    tracing=UNTRACED,
    envs=[TWO_ARENAS, ONE_BLAS_THREAD],
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Blastwatch:
    """Reads single-cell images: leukemic blast (`all`) or normal cell (`hem`). Research software, not a device."""

    def __init__(self) -> None:
        end_with_supervisor(os.environ)  # first: what follows takes seconds
        # Here and not above: the metrics must find the folder that BentoML names to its workers.
        from prometheus_client import CollectorRegistry

        from blastwatch.images import without_warnings
        from monitoring.capture import Capture
        from monitoring.waiting import open_waiting
        from serving.accepting import take_many
        from serving.app import build_app
        from serving.contest import open_contest, unasked
        from serving.following import Pursuit, follow
        from serving.live import follows, open_first
        from serving.live_folder import LiveFolder
        from serving.memory import set_apart
        from serving.metrics import ServiceMetrics
        from serving.readers import Readers, reading_at_a_time, reading_threads
        from serving.worker import Service

        settings = load()
        logging.getLogger("blastwatch").setLevel(logging.INFO)  # BentoML's handler takes what this lets through
        without_warnings()
        live, refusal = open_first(settings, os.environ)
        metrics = ServiceMetrics(CollectorRegistry())
        capture = Capture(
            settings.predictions_url,
            queue_size=settings.capture_queue,
            aside=open_waiting(settings),
            on_stored=metrics.capture.labels("stored").inc,
            on_dropped=metrics.capture.labels("dropped").inc,
            on_failed=metrics.capture.labels("failed").inc,
            on_aside=metrics.waiting.set,
        )
        readers = Readers(
            reading_threads(settings.workers),
            at_a_time=reading_at_a_time(settings.workers, on_cores=live.engine.on_cores),
        )
        self.service = Service(live, settings, metrics, capture, readers)
        if follows(settings, os.environ):
            served, folder = self.service, LiveFolder(settings.home)
            served.contest = open_contest(served.slot, folder, settings, metrics, served.open_lane, os.environ)
            pursuit = Pursuit(served.slot, folder, settings, metrics, served.open_lane, refusal)
            served.following = follow(pursuit, settings, served.contest, os.environ)
            served.following.start()
        elif unheard := unasked(settings):
            logging.getLogger("blastwatch.service").warning(unheard)
        self.app = build_app(self.service)
        take_many(asyncio.get_running_loop(), self.app)  # BentoML opens the service in the loop that listens next
        set_apart()
        tell_serving(os.environ)

    async def __is_ready__(self) -> bool:
        """What BentoML answers /readyz by: false while the engine fails."""
        return self.service.lane.batcher.health.ready

    async def __is_alive__(self) -> bool:
        """What BentoML answers /livez by: false once the engine has failed for long."""
        return self.service.lane.batcher.health.alive

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def pin() -> None:
        """Before any worker starts: keep strangers out, settle which version all serve at first, or do not start."""
        settings = load()
        os.environ.update(prepare_supervisor())
        # In the image of a bento BentoML replaces no worker that died, so that the container ends with it. Of several
        # only the last one's death ends it, and until then nobody would see that the others are gone.
        if settings.workers > 1:
            os.environ.pop("BENTOML_CONTAINERIZED", None)
        os.environ.update(check_binding(asked_host(), settings))
        if os.environ.get(SETTLED_VARIABLE) != "1":
            os.environ.update(settle(settings, os.environ)[1])
        check_salt(settings)  # last, since it may make one: not in a home where no version is

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Flush what waits to be stored."""
        self.service.close()


Blastwatch.add_asgi_middleware(AlsoLineFeeds)  # type: ignore[attr-defined]  # the decorator made a BentoML service of it
