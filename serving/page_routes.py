"""The routes that answer anybody: pages, their scripts, and the words that explain a problem."""

import functools
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from blastwatch.browsers import FILES as SHARED
from serving.problems import KINDS

PAGES = Path(__file__).parent / "pages"
PAGE_FILES = SHARED | {
    "/": PAGES / "index.html",
    "/page.js": PAGES / "page.js",
    "/sending.js": PAGES / "sending.js",
    "/queue.js": PAGES / "queue.js",
    "/key.js": PAGES / "key.js",
    "/docs": PAGES / "docs.html",
    "/docs.js": PAGES / "docs.js",
    "/history": PAGES / "history.html",
    "/history.js": PAGES / "history.js",
}
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")


def page_routes() -> list[Route]:
    """Every route of this module."""
    return [
        Route("/problems/{name}", _explain_problem, methods=["GET"]),
        *(Route(path, functools.partial(_page, file), methods=["GET"]) for path, file in PAGE_FILES.items()),
        *(Route(f"/static/{name}", functools.partial(_swagger, name), methods=["GET"]) for name in SWAGGER_FILES),
    ]


async def _explain_problem(request: Request) -> Response:
    kind = KINDS.get(request.path_params["name"])
    if kind is None:
        raise HTTPException(404)
    return PlainTextResponse(f"{kind.title} (HTTP {kind.status})\n{kind.advice}\n")


async def _page(path: Path, _request: Request) -> Response:
    return FileResponse(path)


async def _swagger(name: str, _request: Request) -> Response:
    """Swagger UI as BentoML carries it. BentoML's own page around it loads a tag manager from the internet."""
    from bentoml._internal import server

    return FileResponse(Path(str(server.__file__)).parent / "static_content" / name)
