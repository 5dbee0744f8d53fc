"""The routes: OpenAI's chat, models and embeddings; scores, health and metrics; the page."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Send

from empathy_jax.serving import chat, limits, page, protocol, replies, rewards
from empathy_jax.serving.metrics import Metrics
from empathy_jax.serving.protocol import ChatRequest, EmbeddingRequest, Refused, ScoreRequest

ROUTES = (
    "/", "/v1/chat/completions", "/v1/models", "/v1/embeddings", "/score", "/health", "/metrics",
    "/openapi.json",
)  # fmt: skip
_LATE = 5.0  # seconds past its deadline after which a client that does not read is cut off


def make_app(
    policy: chat.Policy,
    reward_model: rewards.Rewards | None,
    metrics: Metrics,
    token: str,
    max_body_bytes: int,
) -> limits.Guarded:
    """The application.

    Args:
      policy: answers.
      reward_model: embeds and scores; None: there is none.
      metrics: counts.
      token: that requests must bear; empty: none.
      max_body_bytes: of a request.
    """
    app = FastAPI(title="empathy_jax", docs_url=None, redoc_url=None)
    created = int(time.time())
    html, page_headers = page.render(policy.log_texts)
    names = [policy.name, *([reward_model.name] if reward_model else [])]

    def scoring() -> rewards.Rewards:
        if reward_model is None:
            raise Refused(404, "this server has no reward model", "model_not_found", "model")
        return reward_model

    @app.post("/v1/chat/completions", responses=_ERRORS, response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        conversation = await chat.begin(policy, body)
        id_ = f"chatcmpl-{secrets.token_hex(12)}"
        head = {"id": id_, "created": int(time.time()), "model": policy.name}
        if not body.stream:
            whole = replies.whole(conversation, head, body.n or 1)
            return JSONResponse(await _unless_gone(request, whole))
        first = await _unless_gone(request, anext(conversation.events))
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = replies.streamed(conversation, first, head, with_usage)
        return _EventStream(events, policy.deadline + _LATE)

    @app.post("/v1/embeddings", responses=_ERRORS, response_model=None)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        made = await _unless_gone(request, rewards.embed(scoring(), body))
        return JSONResponse(made)

    @app.post("/score", responses=_ERRORS, response_model=None)
    async def score(body: ScoreRequest, request: Request) -> Response:
        return JSONResponse(await _unless_gone(request, rewards.score(scoring(), body)))

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> dict[str, Any]:
        return protocol.models(names, created)

    @app.get("/health")
    async def health() -> JSONResponse:
        worker = policy.worker
        state = "ok" if worker.failure is None else "broken"
        body = {
            "status": state,
            "running": worker.running,
            "waiting": worker.waiting,
            "guard": "off" if policy.region is None else "on",
            "region": policy.region,
        }
        return JSONResponse(body, 200 if state == "ok" else 503)

    @app.get("/metrics", responses=_ERRORS)
    async def read_metrics() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(html, headers=page_headers)

    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _own)
    return limits.Guarded(app, ROUTES, token, max_body_bytes, metrics)


_ERRORS = {
    status: {"description": text}
    for status, text in {
        400: "The request cannot be served as it is.",
        401: "A bearer token is wanted.",
        404: "There is no such model.",
        408: "The request was too slow, or not done by its deadline.",
        413: "The body is too large.",
        429: "Too many requests are waiting; Retry-After says when to come again.",
    }.items()
}


async def _refused(_: Request, refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body, refused.status, refused.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Where the body is wrong and why, without what stands there."""
    problems = [(".".join(map(str, e["loc"][1:])), e["msg"]) for e in error.errors()]
    message = "; ".join(f"{where}: {why}" if where else why for where, why in problems[:3])
    refused = Refused(400, message, "invalid_request", problems[0][0] or None)
    return JSONResponse(refused.body, 400)


async def _no_route(_: Request, error: HTTPException) -> JSONResponse:
    refused = Refused(error.status_code, str(error.detail), "invalid_request")
    return JSONResponse(refused.body, error.status_code, error.headers)


async def _own(_: Request, __: Exception) -> JSONResponse:
    """An error of the program's own; `limits.Guarded` counts it and notes where it was."""
    return JSONResponse(limits.OWN_ERROR.body, limits.OWN_ERROR.status)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of some work, which is given up when the client goes away."""
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "the client has gone", "gone")
        return working.result()
    finally:
        for task in (working, going):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events, as long as the client takes them and time allows."""

    def __init__(self, events: Any, seconds: float):
        super().__init__(events, media_type="text/event-stream")
        self._seconds = seconds

    async def stream_response(self, send: Send) -> None:
        with contextlib.suppress(TimeoutError):
            async with contextlib.aclosing(self.body_iterator), asyncio.timeout(self._seconds):
                await super().stream_response(send)
