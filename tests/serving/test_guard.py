"""The guard over a real port, with OpenAI's own client: what comes first, what is withheld, what is noted."""

import contextlib
import http.client
import json
import threading
import time

import openai
import pytest

from configs import common
from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.safety import guard
from empathy_jax.serving import guarded
from tests.serving.served import CHAIN, MODEL, ScriptedBatch, make_tokenizer, serve

ORDINARY, GENTLE, URGENT = "我最近总是睡不着", "活着真的没什么意思", "我今晚就去跳楼"
DIAGNOSIS, METHOD = "你得了抑郁症。", "致死剂量大约是900克。"
JUDGING = Chain(
    "难过。", f"累。{DIAGNOSIS}", "想被听见。", "先接住。", f"我在。{DIAGNOSIS}你不是一个人。"
)
TELLING = Chain(
    "难过。", "累。", "想被听见。", "先接住。", f"我在。{METHOD}就这样。" + "还有呢。" * 30
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def message(text, region="cn"):
    return guard.examine([{"role": "user", "content": text}], region).message


@contextlib.contextmanager
def talking(served, **options):
    options = {"api_key": "none", "max_retries": 0, "timeout": 20, **options}
    with openai.OpenAI(base_url=f"{served.url}/v1", **options) as client:
        yield lambda text, **fields: client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], **fields
        )


def heard(parts, index=0):
    """A streamed sample: content, reasoning, every `guard`, and how it ended."""
    told, guards = {"content": "", "reasoning_content": ""}, []
    for part in parts:
        (choice,) = part.choices
        if choice.index == index:
            for name in told:
                told[name] += getattr(choice.delta, name, None) or ""
            if hasattr(choice.delta, "guard"):
                guards.append(choice.delta.guard)
            reason = choice.finish_reason
    return told["content"], told["reasoning_content"], guards, reason


def get(served, path):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read().decode()


# --- what comes first ---


@pytest.mark.parametrize(
    ("text", "code"), [(ORDINARY, "none"), (GENTLE, "gentle"), (URGENT, "urgent")]
)
def test_a_message_comes_before_the_answer(tokenizer, text, code):
    expected = message(text)
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))
    with serve(batch, tokenizer) as served, talking(served) as ask:
        whole = ask(text).choices[0].message
        parts = list(ask(text, stream=True, n=2))
    assert whole.guard == {"code": code, "message": expected, "held_back": []}
    assert (expected is None) == (code == "none")
    assert whole.content == (CHAIN.answer if expected is None else f"{expected}\n\n{CHAIN.answer}")
    for index in range(2):
        content, reasoning, guards, reason = heard(parts, index)
        assert (content, reasoning, reason) == (whole.content, whole.reasoning_content, "stop")
        assert guards == [whole.guard]  # with the first of the content
    assert all(str(expected) not in tokenizer.decode(prompt) for prompt in batch.prompts)


def test_an_urgent_message_does_not_wait_for_the_model(tokenizer):
    batch, go_on = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN)), threading.Event()
    prefill = batch.prefill
    batch.prefill = lambda ids: go_on.wait(10) and prefill(ids)
    with serve(batch, tokenizer) as served, talking(served) as ask:
        stream = iter(ask(URGENT, stream=True))
        first = next(stream).choices[0].delta
        assert first.content == message(URGENT) + "\n\n" and first.role == "assistant"
        assert first.guard["code"] == "urgent" and batch.prompts == []
        go_on.set()
        assert heard(stream)[0] == CHAIN.answer


def test_the_regions_numbers_are_given(tokenizer):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))
    with serve(batch, tokenizer, region="tw") as served, talking(served) as ask:
        found = ask(URGENT).choices[0].message.content
        assert "1925" in found and "12356" not in found
        assert json.loads(get(served, "/health"))["region"] == "tw"


def test_grading_leaves_the_event_loop_alone(tokenizer, monkeypatch):
    threads, examine = [], guard.examine
    with serve(ScriptedBatch(tokenizer, "好。"), tokenizer) as served, talking(served) as ask:

        def noted(*arguments):
            threads.append(threading.current_thread().name)
            return examine(*arguments)

        monkeypatch.setattr(guard, "examine", noted)
        ask(ORDINARY)
    assert [name.partition("_")[0] for name in threads] == ["guard"]


# --- what is withheld ---


def test_a_diagnosis_gives_way_in_the_answer_and_in_the_chain(tokenizer):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(JUDGING))
    with serve(batch, tokenizer) as served, talking(served) as ask:
        done = ask(ORDINARY).choices[0]
        content, reasoning, guards, reason = heard(ask(ORDINARY, stream=True))
        assert 'empathy_guard_held_back_total{code="diagnosis"} 4.0' in get(served, "/metrics")
    instead = "这里不下诊断；是什么情况，要请医生当面看。"
    assert done.message.content == content == f"我在。{instead}你不是一个人。"
    assert done.message.reasoning_content == reasoning and "抑郁" not in reasoning
    assert done.message.chain["L2"] == f"累。{instead}" and done.message.rule is None
    assert done.message.guard["held_back"] == ["diagnosis"] * 2
    assert [len(found["held_back"]) for found in guards] == [1, 1, 2]
    assert done.finish_reason == reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_details_of_a_method_end_the_answer_and_free_the_row(tokenizer, stream):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(TELLING), slice_seconds=0.05)
    with serve(batch, tokenizer) as served, talking(served) as ask:
        if stream:
            content, _, guards, reason = heard(ask(ORDINARY, stream=True))
            found = guards[-1]
        else:
            done = ask(ORDINARY).choices[0]
            content, found, reason = done.message.content, done.message.guard, done.finish_reason
        served.settle(1.0)  # the rest would take longer
    assert content.startswith("我在。具体的做法这里不说") and "900" not in content
    assert "120" in content and "就这样" not in content
    assert (found["held_back"], reason) == (["method"], "content_filter")


# --- what is told in errors ---


def test_a_full_line_still_tells_what_to_do(tokenizer):
    batch, go_on = ScriptedBatch(tokenizer, "好。", rows=1), threading.Event()
    prefill = batch.prefill
    batch.prefill = lambda ids: go_on.wait(10) and prefill(ids)
    with serve(batch, tokenizer, max_queue=1) as served, talking(served) as ask:
        first = ask(URGENT, stream=True)  # is in line, and has told so
        with pytest.raises(openai.RateLimitError) as caught:
            ask(URGENT)
        with pytest.raises(openai.RateLimitError) as plain:
            ask(ORDINARY)
        go_on.set()
        assert heard(first)[0].endswith("好。")
    expected = {"code": "urgent", "message": message(URGENT), "held_back": []}
    assert caught.value.body["guard"] == expected and int(
        caught.value.response.headers["retry-after"]
    )
    assert "guard" not in plain.value.body


def test_a_deadline_still_tells_what_to_do(tokenizer):
    batch = ScriptedBatch(tokenizer, "好" * 300, rows=1, slice_seconds=0.05)
    with serve(batch, tokenizer, deadline=0.4) as served, talking(served) as ask:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(URGENT)
        with pytest.raises(openai.APIError) as late:
            list(ask(URGENT, stream=True))
    assert caught.value.status_code == 408
    for error in (caught, late):
        assert error.value.body["code"] == "deadline"
        assert error.value.body["guard"]["message"] == message(URGENT)


def test_a_conversation_that_is_too_long_still_tells_what_to_do(tokenizer):
    batch = ScriptedBatch(tokenizer, "好。")
    with (
        serve(batch, tokenizer) as served,
        talking(served) as ask,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        ask(URGENT + "。" + "很累。" * 300)
    assert caught.value.body["code"] == "context_length_exceeded"
    assert caught.value.body["guard"]["code"] == "urgent"


# --- what is noted ---


def test_decisions_are_noted_and_counted_by_code_alone(tokenizer, capsys):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(JUDGING))
    with serve(batch, tokenizer) as served, talking(served) as ask:
        for text in (ORDINARY, URGENT, URGENT):
            ask(text)
        counted = get(served, "/metrics")
        out, end = "", time.monotonic() + 10
        while '"/metrics"' not in out:
            assert time.monotonic() < end, out
            time.sleep(0.01)
            out += capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines()]
    notes = [{k: v for k, v in line.items() if k != "time"} for line in lines if "guard" in line]
    decisions = [note for note in notes if "grade" in note]
    assert [note["guard"] for note in decisions] == ["none", "urgent", "urgent"]
    assert decisions[0] == {"guard": "none", "grade": 0, "about": "self"}
    withheld = [note for note in notes if "grade" not in note]
    assert withheld[::2] == withheld[1::2]
    assert withheld[::2] == [
        {"guard": code, "held_back": "diagnosis"} for code in ("none", "urgent", "urgent")
    ]
    assert not any(piece in out for piece in (ORDINARY, URGENT, "我在", "抑郁", "12356"))
    for code, count in (("none", 1.0), ("urgent", 2.0)):
        assert f'empathy_guard_decisions_total{{code="{code}"}} {count}' in counted


# --- on, off, and where ---


def test_without_the_guard_nothing_is_graded_or_withheld(tokenizer, capsys):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(JUDGING))
    with serve(batch, tokenizer, region=None) as served, talking(served) as ask:
        done = ask(URGENT).choices[0]
        content, _, guards, _ = heard(ask(URGENT, stream=True))
        health = json.loads(get(served, "/health"))
        assert served.metrics.total("guard_decisions") == 0
    assert done.message.content == content == JUDGING.answer
    assert not hasattr(done.message, "guard") and guards == []
    assert (health["guard"], health["region"]) == ("off", None)
    assert '"guard"' not in capsys.readouterr().out


def test_only_a_setting_turns_it_off_and_the_screen_says_so(capsys):
    config = common.get_config()
    assert guarded.region(config) == "cn"
    guarded.announce("serve", guarded.region(config))
    assert capsys.readouterr().out == "[serve] guard on, region cn\n"
    config.guard.on = False
    guarded.announce("serve", guarded.region(config))
    assert "WARNING: the guard is OFF (config.guard.on=False)" in capsys.readouterr().out
    config.guard.region = "fr"
    with pytest.raises(
        ValueError, match=r"config\.guard\.region is 'fr'; it must be one of cn, hk"
    ):
        guarded.region(config)


# --- rows of a file ---


def row(question, chain):
    layers = {name: getattr(chain, name) for name in (*chain_of_empathy.LAYERS, "answer")}
    completion = chain_of_empathy.render(chain)
    return {"id": "a", "question": question, "completion": completion, **layers, "rule": None}


def test_a_row_says_what_the_guard_says():
    given = row(URGENT, CHAIN)
    made = guarded.row(given, "cn")
    found = made.pop("guard")
    assert made == given and found.pop("grade") >= 3
    assert found == {
        "code": "urgent", "about": "self", "message": message(URGENT), "held_back": []
    }  # fmt: skip


def test_a_row_holds_nothing_that_is_withheld():
    made = guarded.row(row(ORDINARY, JUDGING), "us")
    assert made["guard"]["held_back"] == ["diagnosis"] * 2 and made["guard"]["message"] is None
    assert made["completion"] is None and made["L1"] == "难过。"
    assert made["answer"].startswith("我在。这里不下诊断") and "抑郁" not in str(made)
    made = guarded.row(row(ORDINARY, TELLING), "us")
    assert made["answer"].startswith("我在。具体的做法这里不说") and "911" in made["answer"]
    broken = row(ORDINARY, TELLING) | {"completion": f"<empathy_think>\n<L1>难过。{METHOD}"}
    assert "900" not in str(guarded.row(broken, "us"))
