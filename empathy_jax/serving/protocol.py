"""What goes over the wire: requests of the OpenAI protocol as they may be, replies as they are.

Beyond the protocol: `layer` in a part of a stream names the layer of the chain that its
`reasoning_content` belongs to; a whole message has the four layers as `chain`; `rule` names the first
rule of the format that a completion breaks, null for a valid chain; `guard` holds what the guard decided
and the message that it put before the reply, also in an error. `input_type` of an embedding tells
questions from answers, which the reward encoder reads differently.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from empathy_jax import files

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
MAX_INPUTS = 32  # texts of one request for embeddings or scores

# Fields of the protocol that would change the answer and that this server does not have: a client
# should hear of it. The values are those that ask for nothing.
_ABSENT = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "audio": (),
}


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
      status: of HTTP.
      body: the error in the form of the protocol. It repeats nothing that the client sent.
      headers: further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(code)
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error"
        )
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _whole_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text is not valid Unicode (half a surrogate pair)") from error
    return text


Text = Annotated[str, AfterValidator(_whole_unicode)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Count = Annotated[int, Field(ge=1)]


class _Request(BaseModel):
    """Types are not converted; fields that are unknown are ignored, as clients expect."""

    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(_Request):
    type: Literal["text"]
    text: Text


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class StreamOptions(_Request):
    include_usage: bool = False


class ChatRequest(_Request):
    """The body of /v1/chat/completions. What is null or absent is as the server was started with."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    @model_validator(mode="after")
    def _nothing_absent(self) -> "ChatRequest":
        for name, value in (self.model_extra or {}).items():
            if name in _ABSENT and value is not None and value not in _ABSENT[name]:
                raise ValueError(f"{name} is not supported by this server")
        return self

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class EmbeddingRequest(_Request):
    """The body of /v1/embeddings."""

    model: Text
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Literal["question", "answer"] = "answer"
    dimensions: Count | None = None

    def texts(self) -> list[str]:
        """The texts to embed."""
        return [self.input] if isinstance(self.input, str) else self.input


class ScoreRequest(_Request):
    """The body of /score: answers to one question."""

    model: Text | None = None
    question: Annotated[Text, Field(min_length=1)]
    answers: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]


def usage(prompt_tokens: int, completion_tokens: int | None = None) -> dict[str, int]:
    """Counted tokens; of an embedding there is nothing but the prompt."""
    counted = {"prompt_tokens": prompt_tokens}
    if completion_tokens is not None:
        counted["completion_tokens"] = completion_tokens
    return {**counted, "total_tokens": prompt_tokens + (completion_tokens or 0)}


def event(value: Any) -> bytes:
    """One event of a stream."""
    return f"data: {files.dumps(value)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def chunk(
    head: Mapping[str, Any], index: int, delta: Mapping[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    """A part of a streamed completion; `head` holds id, created and model."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def models(names: Sequence[str], created: int) -> dict[str, Any]:
    """The body of /v1/models."""
    owner = {"object": "model", "created": created, "owned_by": "empathy_jax"}
    return {"object": "list", "data": [{"id": name, **owner} for name in names]}


def embeddings(vectors: np.ndarray, encoding: str, model: str, tokens: int) -> dict[str, Any]:
    """The body of /v1/embeddings."""

    def encode(vector: np.ndarray) -> list[float] | str:
        if encoding == "float":
            return [float(x) for x in vector]
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")

    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage(tokens)}
