"""What a reply is worth, and what is read from a response: pure functions, no server."""

import dataclasses
import email.utils
import json
from pathlib import Path

import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.corpus import readers
from empathy_jax.corpus.annotation import judging, prompts
from empathy_jax.corpus.annotation.judging import Limits
from empathy_jax.endpoint import client
from empathy_jax.endpoint.client import Reply

DATA = Path(__file__).parents[3] / "shared" / "data"
FIELDS = (*chain_of_empathy.LAYERS, "answer")


def _reply(text, **changes):
    return dataclasses.replace(Reply(text, "stop", "", 1, 1, 0.1), **changes)


def _judge(text, question="我很累。", **changes):
    return judging.judge(question, _reply(text, **changes), Limits())


def _text(**changes):
    layers = {name: f"{name}：这一层写得够长，说的是此人的事。" for name in chain_of_empathy.LAYERS}
    return chain_of_empathy.render(
        Chain(**{**layers, "answer": "我听见你说的了。" * 20, **changes})
    )


def test_a_chain_is_taken_and_each_fault_has_its_reason():
    assert _judge(_text()).chain == chain_of_empathy.parse(_text())
    cases = [
        (_text() + "。", "format", "text_outside", True),
        (_text(answer="好。<|im_end|>" * 20), "format", "control_token", False),
        (_text(answer="好。<｜end▁of▁sentence｜>" * 20), "format", "control_token", False),
        (_text(L2="短"), "too_short", "L2", True),
        (_text(answer="短"), "too_short", "answer", True),
        (_text(L4="长" * 1501), "too_long", "L4", True),
        ("对不起，我不能提供这类内容。", "refusal", None, False),
        ("I'm sorry, but I can't help with that.", "refusal", None, False),
        (_text(answer="As an AI, I am unable to feel. " * 5), "refusal", None, False),
        ("我想了想。", "format", "missing_think", True),
    ]
    for text, reason, detail, repairable in cases:
        found = _judge(text)
        assert (found.reason, found.detail, found.repairable) == (reason, detail, repairable), text
        assert reason in judging.REASONS
    assert _judge(_text()[:200], finish_reason="length").reason == "cut_off"
    found = _judge("<|im_end|>" + _text()[:200], finish_reason="length")
    assert (found.reason, found.detail, found.repairable) == ("format", "control_token", False)
    assert _judge(_text(), finish_reason="content_filter").reason == "refusal"
    assert _judge("", refusal="no").reason == "refusal"


def test_a_counsellor_who_cannot_decide_for_someone_does_not_refuse():
    answer = "我没办法替你做决定，也无法回答他爱不爱你，但我能陪你把这件事想清楚。" * 5
    assert _judge(_text(answer=answer)).chain is not None


def test_echo_counts_what_is_copied_however_it_is_written():
    question = "他走了以后，家里太安静，Ｉ can't sleep。"
    assert judging.echo(question, "他走了以后家里太安静！i CAN'T  sleep") == 1.0
    assert judging.echo(question, "听起来那份空落落的感觉一直在") == 0.0
    # abcd bcde cdef def?: one of the four is in the question.
    assert judging.echo("xabcdx", "abcdefg") == 0.25
    found = judging.judge("我听见你说的了。" * 20, _reply(_text()), Limits())
    assert (found.reason, found.repairable) == ("echo", True)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_chain_of_the_sample_would_be_taken(language):
    _assert_taken(readers.read_chains("sample", language)[0])


def test_every_real_chain_would_be_taken():
    path = DATA / "chains_smilechat"
    if not path.exists():
        pytest.skip("the real chains are absent")
    _assert_taken(readers.read_chains(path)[0])


def _assert_taken(records):
    assert records
    for record in records:
        text = chain_of_empathy.render(Chain(*(record[name] for name in FIELDS)))
        found = judging.judge(record["question"], _reply(text), Limits())
        assert found.chain is not None, (found, record["id"])


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_prompt_shows_a_valid_chain_and_asks_for_safety(language):
    system, user = prompts.messages("信 {0} {letter} <answer>", language)
    shown = system["content"].split("\n\n")[1].partition("\n")[2]
    assert chain_of_empathy.verdict(shown).valid
    assert chain_of_empathy.system_prompt(language) in system["content"]
    assert "信 {0} {letter} 〈answer〉" in user["content"]
    assert ("12356" if language == "zh" else "988") in system["content"]
    assert not any(tag in user["content"] for tag in chain_of_empathy.TAGS)
    for rule in chain_of_empathy.RULES:
        repair = prompts.repair_messages("信", language, "x", "format", rule)
        assert rule in repair[-1]["content"]
    for reason in set(judging.REASONS) - {"format", "refusal", "model_error"}:
        assert prompts.repair_messages("信", language, "x", reason, "L1")


def test_the_fingerprint_follows_the_words(monkeypatch):
    before = prompts.fingerprint("zh")
    assert before == prompts.fingerprint("zh") != prompts.fingerprint("en")
    monkeypatch.setitem(prompts._REPAIR, "zh", "{fault}")
    assert prompts.fingerprint("zh") != before


def test_retry_after_in_seconds_and_as_a_date():
    now = 1_700_000_000.0
    date = email.utils.formatdate(now + 90, usegmt=True)
    assert client.retry_after("2.5", now) == 2.5
    assert client.retry_after(date, now) == 90.0
    assert client.retry_after(email.utils.formatdate(now - 5, usegmt=True), now) == 0.0
    assert [client.retry_after(value, now) for value in (None, "soon", "nan")] == [None] * 3


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b"\xff",
     pytest.param(b'{"choices":' + b"[" * 100_000, id="nested too deeply"),
     b'{"choices": [{"message": {"content": 3}}]}', b'{"choices": [{"message": {"content": "\\ud83d"}}]}'],
)  # fmt: skip
def test_a_body_that_is_no_completion_is_refused(body):
    with pytest.raises(ValueError, match="not a chat completion"):
        client.read_body(body, 0.1)


def test_usage_may_be_missing_or_nonsense():
    value = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    reply = client.read_body(json.dumps(value).encode(), 0.1234567)
    assert reply == Reply("a", "stop", "", None, None, 0.123)
    value["usage"] = {"prompt_tokens": -1, "completion_tokens": "7"}
    assert client.read_body(json.dumps(value).encode(), 0.1).prompt_tokens is None
