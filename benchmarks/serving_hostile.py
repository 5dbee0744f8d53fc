"""Requests that mean no good, by the thousand: never a 5xx, never a row that stays taken.

    PYTHONPATH=. python benchmarks/serving_hostile.py --model=DIR --requests=10000

Starts a server of a model and sends it what hypothesis makes of its own OpenAPI schema (values that fit
and values that do not), broken JSON, bodies too large, invalid UTF-8, control tokens, raw bytes, and
clients that are slow or hang up. Every so many requests, and at the end, a good one must be answered
and nothing may be running. Prints one JSON line. tests/serving/test_hostile.py sends a few hundred.
"""

import argparse
import collections
import dataclasses
import json
import socket
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import hypothesis
from hypothesis import strategies as st

ODD_TEXTS = (
    "", " ", "\0", "<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "<answer>", "</empathy_think>",
    "\ud800", "\ufffe", "\u202e", "é" * 40, "字" * 300, "{{ messages }}", "{% raw %}", "' OR 1=1 --",
    "../../etc/passwd", "%00", "<script>alert(1)</script>",
)  # fmt: skip
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    2**31,
    2**63,
    -(2**63),
    10**40,
)
ODD_HEADERS = (
    b"Content-Length: -1", b"Content-Length: 5\r\nContent-Length: 6", b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Authorization: Bearer \xff\xfe",
    b"Content-Type: text/plain", b"Content-Type: application/json; charset=utf-16", b"Connection: close",
    b"Upgrade: websocket\r\nConnection: Upgrade", b"X: " + b"a" * 9000, b"Range: bytes=0-1",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Attack:
    """Bytes to send.

    Attributes:
      kind: for counts.
      raw: what goes over the wire.
      patience: seconds to wait for an answer; 0: hang up at once.
    """

    kind: str
    raw: bytes
    patience: float


def fetch(url: str) -> Any:
    """The JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.loads(response.read())


def attacks(schema: Mapping[str, Any], model: str) -> st.SearchStrategy[Attack]:
    """All kinds of attack.

    Args:
      schema: the server's openapi.json.
      model: a name that it knows.
    """
    bodies = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                fitting = _values(content["application/json"]["schema"], schema)
                named = fitting.map(lambda value: {**value, "model": model})
                bodies.append((method.upper(), path, named | fitting))
    junk = _junk()
    posts = st.sampled_from(bodies)

    def fits(post: tuple) -> st.SearchStrategy[tuple[str, str, Any]]:
        method, path, values = post
        return st.tuples(st.just(method), st.just(path), values)

    def broken(post: tuple) -> st.SearchStrategy[tuple[str, str, Any]]:
        method, path, values = post
        changed = st.tuples(values, junk).map(
            lambda found: {**found[0], **_one_of(found[0], found[1])}
        )
        return st.tuples(st.just(method), st.just(path), changed | junk)

    valid = posts.flatmap(fits).map(lambda r: Attack("fits the schema", http(*r), 30))
    invalid = posts.flatmap(broken).map(lambda r: Attack("breaks the schema", http(*r), 30))
    texts = posts.flatmap(fits).map(lambda r: (r[0], r[1], json.dumps(r[2]).encode()))
    cut = st.tuples(texts, st.integers(0, 400), st.binary(max_size=6)).map(
        lambda f: Attack(
            "broken JSON or UTF-8",
            http(*f[0][:2], f[0][2][: f[1]] + f[2] + f[0][2][f[1] + 1 :]),
            30,
        )
    )
    large = st.sampled_from(bodies).map(
        lambda post: Attack("too large", http(post[0], post[1], b'"' + b"a" * 300_000 + b'"'), 30)
    )
    stated = st.sampled_from([b"99999999999", b"262145", b"9" * 400]).map(
        lambda size: Attack(
            "too large",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: "
            + size
            + b"\r\n\r\n{",
            30,
        )
    )
    wild = st.tuples(
        st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"HEAD", b"X" * 50, b"\x16\x03\x01"]),
        st.sampled_from(
            [b"/", b"/v1/chat/completions", b"/%00", b"/v1/../metrics", b"/" + b"a" * 9000]
        ),
        st.sampled_from(ODD_HEADERS),
        st.binary(max_size=40),
    ).map(
        lambda f: Attack(
            "raw bytes",
            f[0] + b" " + f[1] + b" HTTP/1.1\r\nHost: a\r\n" + f[2] + b"\r\n\r\n" + f[3],
            0.3,
        )
    )
    leaving = st.tuples(posts.flatmap(fits).map(lambda r: http(*r)), st.integers(0, 2000)).map(
        lambda f: Attack("hangs up", f[0][: f[1]], 0)
    )
    slow = st.tuples(posts.flatmap(fits).map(lambda r: http(*r)), st.integers(1, 200)).map(
        lambda f: Attack("stops in the middle", f[0][: -f[1]], 0.05)
    )
    return st.one_of(valid, invalid, cut, large | stated, wild, leaving, slow)


def http(method: str, path: str, body: Any) -> bytes:
    """A request as bytes; what is not bytes yet becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def _one_of(value: Mapping[str, Any], junk: Any) -> dict[str, Any]:
    """Junk in place of one of the values, which one the junk decides."""
    names = sorted(value)
    return {names[len(repr(junk)) % len(names)]: junk} if names else {}


def _junk() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.sampled_from(ODD_NUMBERS)
        | st.sampled_from(ODD_TEXTS)
        | st.text()
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
    )


def _values(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a JSON schema, near the edges; numbers of things stay small."""
    if "$ref" in schema:
        target: Any = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return _values(target, root)
    if "anyOf" in schema:
        return st.one_of([_values(one, root) for one in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "object":
        fields = {n: _values(s, root) for n, s in schema.get("properties", {}).items()}
        needed = {n: fields.pop(n) for n in schema.get("required", ())}
        return st.fixed_dictionaries(needed, optional=fields)
    if kind == "array":
        least = schema.get("minItems", 0)
        return st.lists(_values(schema["items"], root), min_size=least, max_size=least + 2)
    if kind == "string":
        least = schema.get("minLength", 0)
        whole = [t for t in ODD_TEXTS if least <= len(t) <= schema.get("maxLength", 1000)]
        return st.sampled_from(whole) | st.text(min_size=least, max_size=least + 8)
    if kind == "integer":
        least = schema.get("minimum", 0)
        return st.integers(least, min(least + 3, schema.get("maximum", least + 3)))
    if kind == "number":
        return st.floats(schema.get("exclusiveMinimum", schema.get("minimum", 0)) + 0.01,
                         schema.get("maximum", 2.0))  # fmt: skip
    return {"boolean": st.booleans(), "null": st.none()}[kind]


def send(port: int, attack: Attack) -> int | None:
    """The status that the server answers with; None: it answers nothing, or nobody waits for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(attack.raw)
            if not attack.patience:
                return None
            connection.settimeout(attack.patience)
            answer = connection.recv(4096)
        except (TimeoutError, ConnectionError):
            return None
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) == 3 and words[1].isdigit() else None


def good_request(port: int, model: str) -> int | None:
    """The status of a request as it should be."""
    messages = [{"role": "user", "content": "我最近总是睡不着。"}]
    body = {"model": model, "messages": messages, "max_tokens": 4}
    return send(port, Attack("good", http("POST", "/v1/chat/completions", body), 60))


def settled(url: str, seconds: float = 60.0) -> bool:
    """Whether nothing runs and nothing waits, at last."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        health = fetch(f"{url}/health")
        if not (health["running"] or health["waiting"]):
            return True
        time.sleep(0.05)
    return False


def run(port: int, count: int, every: int) -> dict[str, Any]:
    """Sends `count` attacks, and a good request after each `every` of them."""
    url = f"http://127.0.0.1:{port}"
    model = fetch(f"{url}/v1/models")["data"][0]["id"]
    statuses: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    sent = 0

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )
    @hypothesis.given(attacks(fetch(f"{url}/openapi.json"), model))
    def check(attack: Attack) -> None:
        nonlocal sent
        status = send(port, attack)
        kinds[attack.kind] += 1
        statuses[str(status)] += 1
        assert status is None or status < 500, (status, attack)
        sent += 1
        if sent % every == 0:
            assert settled(url), "something is still running"
            assert good_request(port, model) == 200

    check()
    assert settled(url), "something is still running"
    assert good_request(port, model) == 200
    return {"requests": sent, "statuses": dict(statuses), "kinds": dict(kinds)}


def main() -> None:
    from benchmarks import serving_process

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="directory or hub id")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500, help="attacks between good requests")
    parser.add_argument(
        "--field", action="append", default=[], help="config.NAME=VALUE of the server"
    )
    arguments = parser.parse_args()
    with serving_process.start(arguments.model, arguments.field) as server:
        began = time.monotonic()
        found = run(server.port, arguments.requests, arguments.every)
        found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps({"benchmark": "serving_hostile", **found, "exit_status": server.exit_status}))


if __name__ == "__main__":
    main()
