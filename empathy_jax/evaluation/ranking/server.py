"""The study as a web page: one page, one list of trials per rater, one place to send votes.

A rater's code is the bearer token. The link `http://HOST:PORT/#CODE` carries it behind the `#`, so
that it stands in no request line and no log. What a rater's browser gets names no system, and does
not tell a check or a repeat from any other trial.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse

from empathy_jax.evaluation.ranking import page, study, votes

# Six cards on five dimensions are 1 kB.
MAX_VOTE_BYTES = 64 * 1024

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(public: Mapping[str, Any], log: votes.VoteLog) -> FastAPI:
    """The application.

    Args:
      public: what `study.json` holds.
      log: open on the study's votes.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    hashes = {rater: entry["code_sha256"] for rater, entry in public["raters"].items()}

    def rater_of(request: Request) -> str:
        kind, _, code = request.headers.get("authorization", "").partition(" ")
        given = study.hash_code(code.strip())
        found = [rater for rater, known in hashes.items() if hmac.compare_digest(known, given)]
        if kind.lower() != "bearer" or not found:
            raise HTTPException(401, "unknown code", {"WWW-Authenticate": "Bearer"})
        return found[0]

    @app.middleware("http")
    async def harden(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.get("/")
    def index() -> HTMLResponse:
        nonce = page.new_nonce()
        return HTMLResponse(
            page.render(public, nonce, session=None),
            headers={"Content-Security-Policy": page.policy(nonce, served=True)},
        )

    @app.get("/api/session")
    def session(request: Request) -> JSONResponse:
        rater = rater_of(request)
        return JSONResponse(page.session(public, rater, log.of(rater)))

    @app.post("/api/votes")
    async def vote(request: Request) -> JSONResponse:
        rater = rater_of(request)
        sent = _parse(await _body(request))
        try:
            # fsync may take long; other raters are served meanwhile.
            stored = await run_in_threadpool(log.add, rater, sent)
        except votes.Conflict:
            kept = log.of(rater)[sent["trial"]]
            return JSONResponse({"error": "conflict", "vote": kept}, status_code=409)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except OSError as error:
            print(f"[ranking] a vote could not be stored: {error}", flush=True)
            raise HTTPException(
                507, "the vote could not be stored; it will be sent again"
            ) from error
        return JSONResponse({"stored": stored})

    return app


async def _body(request: Request) -> bytes:
    """The body, read no further than the largest vote."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_VOTE_BYTES:
            raise HTTPException(413, f"a vote has at most {MAX_VOTE_BYTES} bytes")
    return bytes(data)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "the vote is not JSON") from error


def serve(public: Mapping[str, Any], log: votes.VoteLog, host: str, port: int) -> None:
    """Serves until interrupted. Requests are not logged."""
    import uvicorn

    uvicorn.run(make_app(public, log), host=host, port=port, access_log=False, log_level="warning")
