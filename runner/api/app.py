"""The native API: one app, its error documents, and the routes of each family."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from runner.api import routes_box, routes_follow, routes_jobs, routes_keys, routes_results
from runner.api.room import Room
from runner.core.errors import Bug, StokerError, UsageError
from runner.core.faults import sentence
from storage.errors import StorageError

log = logging.getLogger("stoker.api")
_CODES = {404: "not_found", 405: "usage", 413: "usage"}


@dataclass(frozen=True, slots=True)
class Report:
    """Where the report of a bug of ours goes."""

    directory: Path
    number: Callable[[], int]

    def write(self, request: Request, error: Exception) -> Path:
        """Write what happened, without anything the caller sent; return the file."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"api-{self.number()}.txt"
        path.write_text(f"{request.method} {request.url.path}\n\n{''.join(traceback.format_exception(error))}")
        return path


def make_app(room: Room, report: Report) -> FastAPI:
    """Return the app over the use cases."""
    app = FastAPI(title="Stoker", version=room.version, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.state.room = room
    for family in (routes_jobs, routes_follow, routes_results, routes_keys, routes_box):
        app.include_router(family.router)

    @app.exception_handler(StokerError)
    async def refused(_: Request, error: StokerError) -> Response:
        return problem(error.document())

    @app.exception_handler(StorageError)
    async def not_stored(_: Request, error: StorageError) -> Response:
        return problem(StokerError(error.message, hint=error.hint).document())

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> Response:
        fault = error.errors()[0]
        message = f"{fault['loc'][-1]} is wrong: {sentence(fault)}"
        return problem(UsageError(message, hint="see /v1/openapi.json").document())

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        document = StokerError(
            f"{request.method} {request.url.path}: {error.detail}", hint="see /v1/openapi.json"
        ).document()
        return problem(document | {"status": error.status_code, "code": _CODES.get(error.status_code, "usage")})

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response()  # nobody reads it

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        path = report.write(request, error)
        log.error("a bug of ours: %s (%s)", error, path)
        return problem(Bug("the runner met a bug of its own", hint=f"please report it with {path}").document())

    return app


def problem(document: dict[str, Any]) -> Response:
    """Return an error as problem+json (RFC 9457); in ASCII, as it may name a path of bytes that are no UTF-8."""
    return Response(json.dumps(document), status_code=document["status"], media_type="application/problem+json")
