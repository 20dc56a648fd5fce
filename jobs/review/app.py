"""The application: pages and actions behind a guard."""

import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from curation.errors import ConfigError, SourceError, StageError
from jobs.review import actions, pages
from jobs.review.desk import Desk, who
from jobs.review.guard import HEADERS, Guard
from jobs.review.store import Refused
from jobs.review.wishes import Wish


def make(desk: Desk, guard: Guard, decided: Callable[[], None]) -> FastAPI:
    """The application over a desk. `decided` is called after each decision."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk, app.state.guard, app.state.decided = desk, guard, decided
    app.middleware("http")(_guarded)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ConfigError, _wrong)
    for failure in (SourceError, StageError):
        app.add_exception_handler(failure, _unplayable)
    app.include_router(pages.router)
    app.include_router(actions.router)
    return app


async def _guarded(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
    began = time.perf_counter()
    why = request.app.state.guard.refusal(request)
    response = await follow(request) if why is None else Response(why, 403, media_type="text/plain")
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server-Timing"] = f"page;dur={1000 * (time.perf_counter() - began):.1f}"
    return response


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


def _wrong(request: Request, error: Exception) -> Response:
    if request.method == "POST":
        return JSONResponse({"error": str(error)}, 400)
    return HTMLResponse(request.app.state.desk.page("message", who(request), Wish(), {"message": str(error)}), 400)


def _unplayable(request: Request, error: Exception) -> Response:
    return Response(str(error), 422, media_type="text/plain")
