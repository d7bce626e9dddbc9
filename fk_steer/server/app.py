"""The application: its paths, its key, and what it answers to what goes wrong."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..rewards.base import RewardFunction
from ..smc import integer, real
from .errors import STATUSES, RequestError, content
from .frame import Frame
from .limits import Limits
from .schema import FORM, ErrorReply, Rewards, ScoreReply, ScoreRequest, Status
from .service import SenderLeft, Service


logger = logging.getLogger(__name__)

BEARER = HTTPBearer(auto_error=False, description="The key that the server was started with.")

DESCRIPTION = """Scores of images for prompts, by rewards: higher is better. Every error has the same form, a code for
programs and a sentence for people."""


def make_app(
    rewards: Mapping[str, RewardFunction],
    *,
    limits: Limits,
    api_key: str | None,
    hosts: Sequence[str],
    private_hosts: bool,
    max_batch: int,
    max_wait: float,
    models: Mapping[str, str],
) -> FastAPI:
    """See `fk_steer.server.create_app`."""
    service = Service(
        rewards,
        limits=limits,
        hosts=hosts,
        private_hosts=private_hosts,
        max_batch=integer("max_batch", max_batch, 1),
        max_wait=real("max_wait", max_wait, 0.0),
        models=models,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="fk-steer rewards",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        # Their pages have browsers ask other hosts.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    _add_paths(app, service, [] if api_key is None else [Depends(_key_check(api_key))])
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(SenderLeft, _answer_nobody)
    app.add_exception_handler(Exception, _answer_exception)
    app.add_middleware(Frame, metrics=service.metrics, paths=[getattr(route, "path", "") for route in app.routes])
    return app


def _add_paths(app: FastAPI, service: Service, locked: Sequence[Any]) -> None:
    errors = _errors(401) if locked else {}

    @app.get("/health", tags=["state"])
    async def health() -> Status:
        """Whether the server runs."""
        return Status(status="ok")

    @app.get("/ready", tags=["state"], responses={503: {"model": Status, "description": "It is stopping."}})
    async def ready(response: Response) -> Status:
        """Whether the server takes requests: not any more once it is stopping."""
        if service.draining:
            response.status_code = 503
        return Status(status="stopping" if service.draining else "ready")

    @app.get(
        "/metrics",
        tags=["state"],
        dependencies=locked,
        response_class=Response,
        responses={
            200: {"content": {service.metrics.content_type: {"schema": {"type": "string"}}}, "description": "Metrics."},
            **errors,
        },
    )
    async def metrics() -> Response:
        """What the server has counted, in the format of Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/rewards", tags=["rewards"], dependencies=locked, responses=errors)
    async def rewards() -> Rewards:
        """What is served, and what a request may hold."""
        return service.facts()

    json_schema = ScoreRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    body = {
        "required": True,
        "content": {"application/json": {"schema": json_schema}, "multipart/form-data": {"schema": FORM}},
    }
    wrong = {**errors, **_errors(*(status for status in STATUSES if status != 401))}
    wrong[503]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}

    @app.post(
        "/score",
        tags=["rewards"],
        dependencies=locked,
        response_model=ScoreReply,
        responses=wrong,
        openapi_extra={"requestBody": body},
    )
    async def score(request: Request) -> JSONResponse:
        """Score images for prompts.

        Images are scored for the prompt at the same position. A reward that is `relative` compares the images of a
        prompt within the request: of two images the first one's score is how likely it is to be the better one.
        """
        # The numbers as they are, and nothing validated again.
        return JSONResponse({"scores": await service.scores(request)})


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": STATUSES[status]} for status in statuses}


def _key_check(key: str) -> Any:
    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        # In constant time, so that how long it takes says nothing of the key.
        if given is None or not hmac.compare_digest(given.credentials.encode(), key.encode()):
            raise RequestError(
                401,
                "unauthorized",
                "Expected the server's key as `Authorization: Bearer KEY`, but it is missing or wrong.",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


def _error(request: Request, status: int, code: str, message: str, headers: Mapping[str, str]) -> JSONResponse:
    request.app.state.service.metrics.errors.labels(code).inc()
    return JSONResponse(content(code, message), status, dict(headers))


async def _answer_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(request, error.status, error.code, error.message, error.headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Of the framework: no such path, no such method."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = {
        404: "There is no such path. There are: /score, /rewards, /health, /ready, /metrics, /openapi.json.",
        405: "This path takes another method.",
    }
    status = error.status_code
    return _error(
        request, status, codes.get(status, "http_error"), message.get(status, error.detail), error.headers or {}
    )


async def _answer_nobody(request: Request, error: Exception) -> Response:
    request.app.state.service.metrics.gone.inc()
    return Response(status_code=499)


async def _answer_exception(request: Request, error: Exception) -> Response:
    # Starlette raises it again, which has the server log it.
    return _error(request, 500, "internal", "The server failed. Its log says how.", {})
