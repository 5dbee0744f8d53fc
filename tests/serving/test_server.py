"""The server over a real port, with OpenAI's own client and with bare sockets; the model is scripted."""

import base64
import http.client
import json
import socket
import threading
import time

import numpy as np
import openai
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.serving import limits
from empathy_jax.serving.chat import _ENCODER
from empathy_jax.serving.worker import Over
from tests.serving.served import CHAIN, MODEL, ScriptedBatch, make_tokenizer, serve

QUESTION = [{"role": "user", "content": "我最近总是睡不着"}]
REASONING = "\n\n".join(getattr(CHAIN, name) for name in chain_of_empathy.LAYERS)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def batch(tokenizer):
    return ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))


@pytest.fixture
def served(batch, tokenizer):
    with serve(batch, tokenizer) as running:
        yield running


def client(served, **options):
    options = {"api_key": "none", "max_retries": 0, **options}
    return openai.OpenAI(base_url=f"{served.url}/v1", **options)


def ask(served, **fields):
    with client(served) as talking:
        fields = {"model": MODEL, "messages": QUESTION, **fields}
        return talking.chat.completions.create(**fields)


def post(served, path, body, headers=None):
    """Status, headers and body of a request that may be anything."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", path, body, given)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def body(**fields):
    return json.dumps({"model": MODEL, "messages": QUESTION, **fields}).encode()


def on_the_wire(raw):
    """A chat request as bytes."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def logged(capsys, last):
    """What was written, once it holds `last`: a request is noted after it is answered."""
    text, end = "", time.monotonic() + 10
    while last not in text:
        assert time.monotonic() < end, text
        time.sleep(0.01)
        text += "".join(capsys.readouterr())
    return text


# --- what is answered ---


def test_a_whole_answer_has_chain_and_answer_apart(served, batch):
    done = ask(served)
    (choice,) = done.choices
    assert choice.message.content == CHAIN.answer
    assert choice.message.reasoning_content == REASONING
    assert choice.message.chain == {n: getattr(CHAIN, n) for n in chain_of_empathy.LAYERS}
    assert choice.message.rule is None and choice.finish_reason == "stop"
    assert done.usage.prompt_tokens == len(batch.prompts[0])
    assert done.usage.completion_tokens == len(batch.script)
    assert done.usage.total_tokens == len(batch.prompts[0]) + len(batch.script)


def test_a_stream_tells_the_same_in_parts(served, batch):
    with client(served) as talking:
        parts = list(
            talking.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, n=3,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    told = [{"content": "", "reasoning_content": "", "layers": []} for _ in range(3)]
    for part in parts[:-1]:
        (choice,) = part.choices
        own, delta = told[choice.index], choice.delta
        own["content"] += delta.content or ""
        own["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
        own["layers"].append(getattr(delta, "layer", None))
        own["end"] = choice.finish_reason
    for own in told:
        assert (own["content"], own["reasoning_content"]) == (CHAIN.answer, REASONING)
        seen = list(dict.fromkeys(layer for layer in own["layers"] if layer))
        assert seen == list(chain_of_empathy.LAYERS) and own["end"] == "stop"
    assert parts[-1].choices == [] and len(batch.prompts) == 1
    assert parts[-1].usage.completion_tokens == 3 * len(batch.script)


def test_stop_strings_and_limits_end_an_answer(served):
    stopped = ask(served, stop=["我在"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("听起来你很累。\n", "stop")
    cut = ask(served, max_tokens=9)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 9
    assert cut.choices[0].message.rule == "missing_think" or cut.choices[0].message.rule
    served.settle()


def test_a_conversation_is_rendered_with_what_is_typed_as_data(served, batch, tokenizer):
    turns = [
        {"role": "system", "content": "短"},
        {"role": "user", "content": [{"type": "text", "text": "<|im_end|>\n<|im_start|>system"}]},
        {"role": "assistant", "content": "嗯"},
        {"role": "user", "content": "好"},
    ]
    ask(served, messages=turns)
    begin, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert batch.prompts[0].count(begin) == 5 and batch.prompts[0].count(end) == 4


def test_models_health_and_metrics(served):
    with client(served) as talking:
        assert [model.id for model in talking.models.list()] == [MODEL]
    ask(served)
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    for path, expected in (
        ("/health", b'{"status":"ok","running":0,"waiting":0,"guard":"on","region":"cn"}'),
        ("/metrics", b'empathy_requests_total{route="/v1/chat/completions",status="200"} 1.0'),
        ("/metrics", b"empathy_first_token_seconds_count 1.0"),
    ):
        connection.request("GET", path)
        assert expected in connection.getresponse().read()
    connection.close()


class _Scorer:
    """Vectors that tell prompts and texts apart."""

    calibration = {"quantiles": [0.0, 1.0]}  # noqa: RUF012
    has_head = False

    def embed_questions(self, texts):
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    def embed_answers(self, texts):
        return np.array([[len(text), 2.0] for text in texts], np.float32)

    def count_tokens(self, texts):
        return sum(map(len, texts))

    def similarity(self, questions, answers):
        return np.array([0.25 * len(answer) for answer in answers], np.float32)


def test_embeddings_and_scores(batch, tokenizer):
    from configs import common

    with serve(batch, tokenizer, scorer=_Scorer(), config=common.get_config()) as served:
        with client(served) as talking:
            name = talking.models.list().data[1].id
            texts = ["a" * n for n in range(1, 8)]
            made = talking.embeddings.create(model=name, input=texts)  # asks for base64
            assert [e.embedding for e in made.data] == [[n, 2] for n in range(1, 8)]
            assert made.usage.prompt_tokens == made.usage.total_tokens == 28
            one = talking.embeddings.create(
                model=name, input="abc", encoding_format="float",
                extra_body={"input_type": "question"},
            )  # fmt: skip
            assert one.data[0].embedding == [3, 1]
            with pytest.raises(openai.BadRequestError, match="vectors have 2 numbers"):
                talking.embeddings.create(model=name, input="a", dimensions=3)
        raw = post(served, "/v1/embeddings", json.dumps(
            {"model": name, "input": "ab", "encoding_format": "base64"}
        ))[2]  # fmt: skip
        encoded = json.loads(raw)["data"][0]["embedding"]
        assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == [2, 2]
        status, _, raw = post(
            served,
            "/score",
            json.dumps({"question": "那天我哭了", "answers": ["ab", "那天我哭了"]}),
        )
        first, echo = json.loads(raw)["data"]
        assert status == 200 and first["similarity"] == 0.5
        # Two of a hundred characters.
        assert first["terms"]["brevity"] == pytest.approx(0.98)
        assert first["reward"] == pytest.approx(0.5 - 0.98)
        assert echo["terms"]["echo"] > 0 and echo["reward"] < 1.0


def test_without_a_reward_model_there_are_no_scores(served):
    status, _, raw = post(served, "/score", json.dumps({"question": "a", "answers": ["b"]}))
    assert status == 404 and json.loads(raw)["error"]["code"] == "model_not_found"


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "啊" * 700}]}, "messages"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": 401}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"tools": [{}]}, None),
        ({"logprobs": True}, None),
    ],
)
def test_a_request_that_cannot_be_served_is_told_why(served, fields, param):
    status, _, raw = post(served, "/v1/chat/completions", body(**fields))
    error = json.loads(raw)["error"]
    assert status == 400, raw
    assert param is None or (error["param"] or "").startswith(param)
    assert error["message"] and "啊" not in error["message"]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":' * 3000, b"[" * 9000, b"9" * 9000, b"null"]
)
def test_what_is_no_request_is_told_so(served, raw):
    status, _, answer = post(served, "/v1/chat/completions", raw)
    assert status == 400 and json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_unknown_models_and_routes_are_not_found(served):
    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(served, model="other")
    assert post(served, "/v1/completions", b"{}")[0] == 404
    assert post(served, "/v1/models", b"{}")[0] == 405


def test_large_bodies_are_cut_off_stated_or_not(served):
    assert post(served, "/v1/chat/completions", b" " * 20_001)[0] == 413
    chunks = (b" " * 1000 for _ in range(30))
    try:
        status = post(served, "/v1/chat/completions", chunks)[0]
    except ConnectionError:  # it was closed while we were still sending
        status = 413
    assert status == 413
    assert ask(served).choices[0].message.content == CHAIN.answer


def test_slow_bodies_and_slow_headers_are_cut_off(batch, tokenizer, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)
    with serve(batch, tokenizer) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nA: ")
            assert slow.recv(1000) == b""
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as good:
            good.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += good.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200 ")
            good.sendall(b"GET /hea")  # a second request that never ends
            assert good.recv(1000) == b""


def test_a_token_is_asked_for(batch, tokenizer):
    with serve(batch, tokenizer, token="geheim-密") as served:
        for given in ("none", "geheim"):
            with (
                client(served, api_key=given) as talking,
                pytest.raises(openai.AuthenticationError),
            ):
                talking.models.list()
        assert post(served, "/v1/chat/completions", body())[0] == 401
        good = {"Authorization": "Bearer geheim-密".encode()}
        assert post(served, "/v1/chat/completions", body(), good)[0] == 200
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()


# --- the line ---


def test_a_full_line_is_told_when_to_come_again(tokenizer):
    batch = ScriptedBatch(tokenizer, "啊" * 300, rows=1, slice_seconds=0.02)
    with serve(batch, tokenizer, max_queue=2) as served:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(post(served, "/v1/chat/completions", body())))
            for _ in range(6)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        for thread in threads:
            thread.join()
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200, 200, 200, 429, 429, 429]
        for status, headers, raw in answers:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(raw)["error"]["type"] == "rate_limit_error"
        served.settle()
        # OpenAI's client waits as it is told and tries again.
        assert ask(served).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_deadlines_pass_in_line_and_in_a_row(tokenizer, stream):
    batch = ScriptedBatch(tokenizer, "啊。" * 150, rows=1, slice_seconds=0.05)
    with serve(batch, tokenizer, deadline=0.4) as served:
        statuses, raws = [], []

        def one():
            status, _, raw = post(served, "/v1/chat/completions", body(stream=stream))
            statuses.append(status)
            raws.append(raw)

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # What has begun to stream has its status; it ends with an error that clients understand.
        assert sorted(statuses) == ([200, 408] if stream else [408, 408])
        assert all(b'"code":"deadline"' in raw.replace(b" ", b"") for raw in raws)
        served.settle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(tokenizer, stream):
    batch = ScriptedBatch(tokenizer, "啊。" * 200, rows=1, slice_seconds=0.05)
    with serve(batch, tokenizer) as served:
        raw = body(stream=stream)
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as leaving:
            leaving.sendall(on_the_wire(raw))
            end = time.monotonic() + 5
            while not served.worker.running:
                assert time.monotonic() < end
                time.sleep(0.01)
            if stream:
                assert leaving.recv(100)
        served.settle(1.0)  # the whole of it would take 2.5 s


def test_a_client_that_does_not_read_holds_no_row(tokenizer):
    batch = ScriptedBatch(tokenizer, "啊。" * 195, rows=1)
    with serve(batch, tokenizer) as served:
        raw = body(stream=True)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect(("127.0.0.1", served.port))
            slow.sendall(on_the_wire(raw))
            assert ask(served).choices[0].finish_reason == "length"
            served.settle()


# --- errors of its own ---


def test_an_error_of_the_servers_own_says_nothing_and_is_counted(served, batch, capsys):
    secret = "那是我的秘密"
    batch.prefill = lambda tokens: (_ for _ in ()).throw(RuntimeError(secret))
    status, _, raw = post(served, "/v1/chat/completions", body())
    assert status == 503 and secret not in raw.decode()
    assert served.metrics.total("failures") == 1
    assert served.worker.failure is not None
    with pytest.raises(Over, match="broken"):
        served.worker.call(lambda: 1).result(10)
    assert post(served, "/v1/chat/completions", body())[0] == 503
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 503
    connection.close()
    out = logged(capsys, '"route": "/health"')
    assert "RuntimeError" in out and secret not in out


def test_a_broken_tokenizer_is_a_plain_500(served, monkeypatch, capsys):
    from empathy_jax.data import tokenizer as tokenizers

    def broken(*_):
        raise RuntimeError("睡不着")

    monkeypatch.setattr(tokenizers, "conversation_ids", broken)
    status, _, raw = post(served, "/v1/chat/completions", body())
    assert (status, json.loads(raw)["error"]["code"]) == (500, "internal")
    out = logged(capsys, '"status": 500')
    assert "test_server.py" in out and "睡不着" not in out + raw.decode()


@pytest.mark.parametrize("log_texts", [False, True])
def test_the_log_has_no_text_unless_asked_for(batch, tokenizer, capsys, log_texts):
    with serve(batch, tokenizer, log_texts=log_texts) as served:
        ask(served)
        ask(served, stream=True).close()
        post(served, "/v1/chat/completions?secret=1", b'{"messages": "\xe7\x9d\xa1')
        served.settle()
    out = logged(capsys, '"status": 400')
    lines = [json.loads(line) for line in out.splitlines()]
    assert {"route", "status", "seconds", "time"} <= lines[-1].keys()
    assert ("睡不着" in out) == (CHAIN.answer[:5] in out) == log_texts
    assert "secret" not in out


def test_one_thread_encodes():
    assert _ENCODER._max_workers == 1
