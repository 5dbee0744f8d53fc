"""One request to a language model over the OpenAI chat-completions protocol, and what came of it.

Any endpoint that speaks the protocol will do. A request ends in a `Reply` or a `Failure`, never in
an exception of the network; who asks again, when, and at what price is the caller's affair, so the
client's own retries are off. The key is read from the environment and is struck out of every text
that an endpoint sends back about a failure.
"""

import asyncio
import dataclasses
import email.utils
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import openai

Message = dict[str, str]

# Nobody's key: what is sent to an endpoint that wants none.
_NO_KEY = "none"
_RETRIED_STATUSES = (408, 409, 429)
# Wrong key, no credit, unknown model: no other record would fare better.
_FATAL_STATUSES = (401, 402, 404)
# The client's exceptions that are raised before anything was sent.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_SHOWN_CHARACTERS = 300

_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# As variables are called, in capitals, and as no key looks; other names are not repeated.
_SHOWN_VARIABLE = re.compile("[A-Z_]+[0-9]{0,3}")
# A key pasted for the name of its variable: long, with digits, and no words between bars.
_PASTED_KEY = re.compile("(?=.*[0-9])(?:(?=.*[a-z]).{20,}|[A-Z0-9]{20,})")

# Fields of a request that the run sets itself: the option that does, empty for the run's own work.
_OWN_FIELDS = {
    "model": "model",
    "messages": "",
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_completion_tokens",
}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model answers and how it is asked.

    Attributes:
      base_url: up to and without /chat/completions, such as http://localhost:8000/v1.
      model: as the endpoint names it.
      api_key_env: environment variable that holds the key; empty: the endpoint wants none.
      timeout: seconds for one request, from its start to the last byte of the reply.
      max_completion_tokens: of one reply, reasoning included.
      token_limit_field: field of the request that carries that limit, `max_tokens` or
        `max_completion_tokens`.
      extra_body: JSON object of further fields of the request, such as {"temperature": 0.7}.
      option: what the user calls a field of this; messages name it so.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 300.0
    max_completion_tokens: int = 4096
    token_limit_field: str = "max_tokens"
    extra_body: str = "{}"
    option: Callable[[str], str] = dataclasses.field(default=str, compare=False)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model wrote. Token counts are None where the endpoint did not report them."""

    text: str
    finish_reason: str
    refusal: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request brought no reply.

    Attributes:
      kind: the status as text, or "timeout", "connection", "body".
      message: one line, without the key.
      retry: another try may succeed.
      fatal: no request of this run can succeed.
      billed: the model may have worked for it, and so may charge for it.
      wait: seconds that the endpoint asks to wait; None where it does not say.
    """

    kind: str
    message: str
    retry: bool
    fatal: bool = False
    billed: bool = False
    wait: float | None = None


def check(endpoint: Endpoint) -> None:
    """Refuses an endpoint that cannot be asked.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    url, option = urlsplit(endpoint.base_url), endpoint.option
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            f"{option('base_url')} is {endpoint.base_url!r}; name an OpenAI-compatible"
            " endpoint such as http://localhost:8000/v1"
        )
    if url.username or url.password or url.query:
        raise ValueError(
            f"{option('base_url')} must hold no user, password or query, because it is written"
            f" to a file; put the key into the variable that {option('api_key_env')} names"
        )
    name = endpoint.api_key_env
    if name and (not _VARIABLE.fullmatch(name) or _PASTED_KEY.fullmatch(name)):
        # Not repeated: it may be the key.
        raise ValueError(
            f"{option('api_key_env')} holds {len(name)} characters that are no name of an"
            " environment variable; put the key into a variable and give the name of that, such as"
            " OPENAI_API_KEY"
        )
    if not endpoint.model:
        raise ValueError(
            f"{option('model')} is empty; name a model of the endpoint"
            f" {endpoint.base_url} (its /models lists them)"
        )
    if endpoint.token_limit_field not in ("max_tokens", "max_completion_tokens"):
        raise ValueError(
            f"{option('token_limit_field')} is {endpoint.token_limit_field!r}; allowed are"
            " max_tokens and max_completion_tokens"
        )
    for name in ("timeout", "max_completion_tokens"):
        if not getattr(endpoint, name) > 0:
            raise ValueError(f"{option(name)} must be above 0, got {getattr(endpoint, name)}")
    _extra_fields(endpoint)


def api_key(endpoint: Endpoint) -> str:
    """The key from the environment.

    Raises:
      ValueError: when the variable is not set, empty, or holds what no header can carry.
    """
    name, option = endpoint.api_key_env, endpoint.option
    if not name:
        return _NO_KEY
    shown = name if _SHOWN_VARIABLE.fullmatch(name) else f"that {option('api_key_env')} names"
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {shown} is not set or empty; put the key of"
            f" {endpoint.base_url} into it, or name another with {option('api_key_env')}"
            " (empty for an endpoint that wants no key)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {shown} does not hold a key: it has characters other than"
            " visible ASCII"
        )
    return key


def connect(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client of the endpoint: a resource, to be used with `async with`."""
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=api_key(endpoint),
        timeout=endpoint.timeout,
        max_retries=0,
    )


async def ask(
    client: openai.AsyncOpenAI, endpoint: Endpoint, messages: list[Message]
) -> Reply | Failure:
    """Sends one request and waits for its end, `endpoint.timeout` seconds at most."""
    began = time.monotonic()
    try:
        # The client's timeout is for each read; a server that trickles would never meet it.
        async with asyncio.timeout(endpoint.timeout):
            response = await client.chat.completions.with_raw_response.create(
                model=endpoint.model,
                messages=messages,
                extra_body={
                    endpoint.token_limit_field: endpoint.max_completion_tokens,
                    **_extra_fields(endpoint),
                },
            )
    except TimeoutError:
        return _timeout(endpoint)
    except openai.APIError as error:
        return _failure(error, endpoint, client.api_key)
    try:
        return read_body(response.content, time.monotonic() - began)
    except ValueError as error:
        message = _one_line(str(error), client.api_key)
        return Failure("body", message, retry=True, billed=True)


# What a body that is no completion raises; a RecursionError where it is nested too deeply.
_NO_COMPLETION = (
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ValueError,
    RecursionError,
)


def read_body(body: bytes, seconds: float) -> Reply:
    """The reply in the body of a response with status 200.

    Raises:
      ValueError: when the body is no completion of the protocol.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        usage = value.get("usage") or {}
        tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        # Half a surrogate pair cannot be stored.
        (text + refusal).encode("utf-8")
    except _NO_COMPLETION as error:
        # The whole of it: cut here, a key could lose its end and not be recognised any more.
        text = body.decode("utf-8", "replace")
        raise ValueError(f"not a chat completion ({type(error).__name__}): {text}") from error
    return Reply(text, str(choice.get("finish_reason")), refusal, *tokens, round(seconds, 3))


def _count(value: Any) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if known else None


def _extra_fields(endpoint: Endpoint) -> dict[str, Any]:
    option = endpoint.option
    try:
        fields = json.loads(endpoint.extra_body)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{option('extra_body')} is not JSON ({error}): {endpoint.extra_body!r}"
        ) from error
    if not isinstance(fields, dict) or fields.get("stream") or fields.get("n", 1) != 1:
        raise ValueError(
            f"{option('extra_body')} must be a JSON object without stream and n, got"
            f" {endpoint.extra_body!r}"
        )
    if own := fields.keys() & _OWN_FIELDS.keys():
        name = min(own)
        owner = option(_OWN_FIELDS[name]) if _OWN_FIELDS[name] else "the run itself"
        raise ValueError(
            f"{option('extra_body')} must not hold {name!r}: {owner} sets it; got"
            f" {endpoint.extra_body!r}"
        )
    return fields


def _timeout(endpoint: Endpoint) -> Failure:
    message = f"no whole reply within {endpoint.timeout:g} s ({endpoint.option('timeout')})"
    return Failure("timeout", message, retry=True, billed=True)


def _failure(error: openai.APIError, endpoint: Endpoint, key: str) -> Failure:
    """What an exception of the client means."""
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, key)
    cause = type(error.__cause__).__name__
    if isinstance(error, openai.APITimeoutError) and cause not in _NEVER_SENT:
        return _timeout(endpoint)
    message = f"{endpoint.base_url}: {error.__cause__ or error.message} ({cause})"
    billed = cause not in _NEVER_SENT
    return Failure("connection", _one_line(message, key), retry=True, billed=billed)


def _status_failure(error: openai.APIStatusError, key: str) -> Failure:
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message")
    text = message if isinstance(message, str) else error.message
    fatal = status in _FATAL_STATUSES or error.code == "insufficient_quota"
    retry = not fatal and (status in _RETRIED_STATUSES or status >= 500)
    wait = retry_after(error.response.headers.get("retry-after"), time.time())
    return Failure(str(status), _one_line(text, key), retry, fatal, wait=wait)


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, in seconds or as a date (RFC 9110, 10.2.3).

    Args:
      header: its value, None where there is none.
      now: seconds since the epoch.

    Returns:
      0 or more; None where the header says nothing usable.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def _one_line(text: str, key: str) -> str:
    """A text of an endpoint, fit for a message: short, one line, without the key."""
    if key != _NO_KEY:
        text = text.replace(key, "<key>")
    return " ".join(text.split())[:_SHOWN_CHARACTERS]
