"""What stands between the wire and the application: who may ask, how much, how slowly.

Nothing here depends on what a request is about, and nothing of it is written to a log.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from empathy_jax.serving import journal
from empathy_jax.serving.metrics import Metrics
from empathy_jax.serving.protocol import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")  # answered without a token
HEADER_SECONDS = 10.0  # from a connection to the end of its first request's headers
BODY_SECONDS = 20.0  # from the headers of a request to the end of its body

OWN_ERROR = Refused(500, "an error of this server's own", "internal")
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guarded:
    """An application behind a token, with bodies of limited size and slowness.

    Reads the whole body before the application runs; gives every response headers that keep
    browsers careful; turns an error of the application's own into a plain 500. Requests and errors
    are counted, and noted in the log by route and status.
    """

    def __init__(
        self,
        app: Application,
        routes: Collection[str],
        token: str,
        max_body_bytes: int,
        metrics: Metrics,
    ):
        """Holds its arguments.

        Args:
          app: what is guarded.
          routes: paths that it has; all others are one in counts and in the log.
          token: that requests must bear; empty: none.
          max_body_bytes: of a request.
          metrics: counts.
        """
        self._app, self._routes, self._metrics = app, routes, metrics
        self._token, self._max_body_bytes = token.encode("utf-8"), max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_hardened(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            self._check_token(scope)
            body = await self._read(scope, receive)
            await self._app(scope, _replay(body, receive), send_hardened)
        except Refused as refused:
            await respond(send_hardened, refused)
        except Exception as error:
            self._metrics.failed(error)
            journal.note_error(error)
            if not status:
                await respond(send_hardened, OWN_ERROR)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            seconds = time.monotonic() - began
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            journal.note(route=route, status=status, seconds=round(seconds, 3))

    def _check_token(self, scope: Scope) -> None:
        if not self._token or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise Refused(
                401,
                "a bearer token is wanted",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The body, no further than may be, no longer than it may take."""
        close, body = {"Connection": "close"}, bytearray()
        too_large = Refused(
            413, f"a body has at most {self._max_body_bytes} bytes", "too_large", headers=close
        )
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self._max_body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return bytes(body)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._max_body_bytes:
                        raise too_large
        except TimeoutError as error:
            raise Refused(408, "the body was too slow", "slow_body", headers=close) from error
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, in one piece."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def respond(send: Send, refused: Refused) -> None:
    """Sends an error, without the framework."""
    body = json.dumps(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    pairs = [(k.encode(), v.encode()) for k, v in {**headers, **refused.headers}.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but whoever takes longer than HEADER_SECONDS to ask is cut off."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self._is_answering():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        self._timer = None
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
