"""The routes of the service as one Starlette application, which BentoML mounts."""

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from serving.about_routes import about_routes
from serving.callers import check_headers
from serving.cell_routes import cell_endpoints, cell_routes
from serving.handlers import HANDLERS
from serving.header import has_header, header
from serving.in_flight import InFlight
from serving.limits import BATCH_BODY_IMAGES, SMALL_BODY, Limits
from serving.page_routes import page_routes
from serving.problems import Overloaded, no_address, no_method
from serving.straight import Direct
from serving.worker import PLACE, Service

ANSWERED_BY_THE_ENGINE = ("/v1/predict", "/v1/predict_batch")
BATCHES_IN_FLIGHT = 3  # so many of the largest bodies of batches a worker holds at a time


def build_app(service: Service) -> ASGIApp:
    """The whole application: routes, problems, limits."""
    routes = [*cell_routes(service), *about_routes(service), *page_routes()]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    # Else an address with a slash too many would lead to wherever the header `Host` says, and from https:// to http://.
    app.router.redirect_slashes = False
    known = {route.path: route for route in routes}
    one = service.settings.max_image_bytes + SMALL_BODY
    batch = BATCH_BODY_IMAGES * service.settings.max_image_bytes
    limits = {"/v1/predict": one, "/v1/explain": one, "/v1/predict_batch": batch}
    single = (BATCHES_IN_FLIGHT + 1) * batch  # more, so that batches do not keep out everybody else's single cells
    in_flight = InFlight({"/v1/predict": single, "/v1/explain": single, "/v1/predict_batch": BATCHES_IN_FLIGHT * batch})

    def admit(scope: Scope) -> None:
        if service.traces is not None:
            service.traces.begin(scope)
        service.guard.admit(scope)
        _check_address(scope, known)
        if scope["path"] in limits:
            check_headers(scope)
        if scope["path"] in ANSWERED_BY_THE_ENGINE:
            # Before the body is read: when there are many times too many callers, reading alone would fill the loop.
            try:
                scope["state"][PLACE] = service.answering(scope).reserve()
            except Overloaded as error:
                raise error.problem() from error

    return Limits(
        Direct(app, cell_endpoints(service)),
        body_limits=limits,
        in_flight=in_flight,
        # An unknown address must not become a label value of its own.
        observe=lambda scope, status, seconds: service.observe(
            scope["path"] if scope["path"] in known else "other", scope, status, seconds
        ),
        admit=admit,
        settle=service.guard.settle,
    )


def _check_address(scope: Scope, known: Mapping[str, Route]) -> None:
    """Keep out a body that nobody takes, or its size would be refused before anybody hears that the address is wrong,
    and an address with a line feed: the patterns of routes end before one, so `/v1/labels%0a` would lead to the labels
    by the permission that unknown addresses need.

    Any other request without a body is told so by the application itself.
    """
    if "\n" in scope["path"]:
        problem = no_address(scope["path"])
        problem.headers["Connection"] = "close"  # a body may follow, and not end
        raise problem
    if header(scope, b"content-length", "0") == "0" and not has_header(scope, b"transfer-encoding"):
        return
    path, method = scope["path"], scope["method"]
    route = known.get(path) or next((one for one in known.values() if one.matches(scope)[0] != Match.NONE), None)
    if route is not None and route.methods is not None and method in route.methods:
        return
    problem = no_address(path) if route is None else no_method(method, ", ".join(sorted(route.methods or ())))
    problem.headers["Connection"] = "close"  # the body may not have ended, so the connection cannot be used again
    raise problem
