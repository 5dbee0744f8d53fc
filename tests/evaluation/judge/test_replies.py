"""A judge's reply is read strictly: anything but the form that was asked for is a fault."""

import json

import pytest

from empathy_jax.endpoint.client import Reply
from empathy_jax.evaluation.judge import replies
from empathy_jax.evaluation.ranking import DIMENSIONS

PAIR = {"reason": "A is warmer.", **dict.fromkeys(DIMENSIONS, "A"), "suggestion": "tie"}
LIST = {"reason": "", **{name: ["B", "C", "A"] for name in DIMENSIONS}}


def reply(text, finish="stop", refusal=""):
    return Reply(text, finish, refusal, 1, 1, 0.1)


def test_a_pair_and_a_list():
    found = replies.parse(reply(" \n" + json.dumps(PAIR)), "pairwise", 2)
    assert found.reason == "A is warmer."
    assert found.orders["overall"] == [[0], [1]] and found.orders["suggestion"] == [[0, 1]]
    swapped = json.dumps(PAIR | {"overall": "B"})
    assert replies.parse(reply(swapped), "pairwise", 2).orders["overall"] == [[1], [0]]
    found = replies.parse(reply(json.dumps(LIST)), "listwise", 3)
    assert found.orders["fluency"] == [[1], [2], [0]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not_json"),
        ("A", "not_json"),
        ('"A"', "not_json"),
        ("```json\n" + json.dumps(PAIR) + "\n```", "not_json"),
        (json.dumps(PAIR) + " Done.", "not_json"),
        (json.dumps([PAIR]), "not_json"),
        ("[" * 5000, "not_json"),
        (json.dumps({k: v for k, v in PAIR.items() if k != "fluency"}), "keys"),
        (json.dumps({k: v for k, v in PAIR.items() if k != "reason"}), "keys"),
        (json.dumps(PAIR | {"score": 9}), "keys"),
        (json.dumps(PAIR)[:-1] + ', "overall": "B"}', "keys"),
        (json.dumps(PAIR | {"overall": "a"}), "values"),
        (json.dumps(PAIR | {"overall": "C"}), "values"),
        (json.dumps(PAIR | {"overall": ["A"]}), "values"),
        (json.dumps(PAIR | {"overall": None}), "values"),
        (json.dumps(PAIR | {"reason": 1}), "values"),
    ],
)
def test_faults_of_pairs(text, fault):
    assert replies.parse(reply(text), "pairwise", 2) == fault and fault in replies.FAULTS


STRANGE_LISTS = (
    "B",
    ["A", "B"],
    ["A", "B", "B"],
    ["A", "B", "D"],
    ["A", "B", "C", "C"],
    [0, 1, 2],
    [["A"], "B", "C"],
)


@pytest.mark.parametrize("value", STRANGE_LISTS)
def test_faults_of_lists(value):
    assert replies.parse(reply(json.dumps(LIST | {"overall": value})), "listwise", 3) == "values"


def test_refusals_and_cut_replies():
    whole = json.dumps(PAIR)
    assert replies.parse(reply(whole, "length"), "pairwise", 2) == "cut_off"
    assert replies.parse(reply(whole, "content_filter"), "pairwise", 2) == "refusal"
    assert replies.parse(reply("", refusal="no"), "pairwise", 2) == "refusal"
