import dataclasses

import jax
import numpy as np
import pytest

from configs import common as configs
from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation import engine
from empathy_jax.models import decoder
from empathy_jax.training import completions, overview
from empathy_jax.training.common import Model

CHAIN = Chain("累", "因", "听", "陪", "我在。")


@pytest.fixture(scope="module")
def model():
    tokenizer = tokenizers.train([chain_of_empathy.render(CHAIN)] * 5, 320)
    config = decoder.DecoderConfig(
        vocab_size=320, width=16, mlp_width=16, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, max_positions=512,
    )  # fmt: skip
    params = decoder.init_params(jax.random.key(0), config)
    return Model(config, {"params": params}, tokenizers.set_chat_template(tokenizer, "en"))


def test_a_whole_chain_is_taken_apart(model):
    ids = tokenizers.completion_ids(model.tokenizer, chain_of_empathy.render(CHAIN))
    row = completions.judge(model, np.array(ids))
    assert row["valid"] and row["rule"] is None
    assert row["chain"] == {"L1": "累", "L2": "因", "L3": "听", "L4": "陪"}
    assert row["answer"] == "我在。" and row["completion"] == chain_of_empathy.render(CHAIN)


def test_a_broken_chain_has_no_answer(model):
    text = chain_of_empathy.render(CHAIN).replace("</L2>", "")
    row = completions.judge(model, tokenizers.completion_ids(model.tokenizer, text))
    assert not row["valid"] and row["rule"] == "unclosed_L2"
    assert row["chain"] is row["answer"] is None
    assert row["layers"] == {"L1": True, "L2": False, "L3": True, "L4": True}


def test_a_model_of_answers_alone_is_judged_by_its_own_format(model):
    own = dataclasses.replace(model, form="answer")
    ids = tokenizers.completion_ids(model.tokenizer, chain_of_empathy.render(CHAIN, "answer"))
    row = completions.judge(own, ids)
    assert row["valid"] and row["answer"] == "我在。" and row["chain"] == {}
    flat = completions.flat({**row, "id": "q", "question": "?", "finished": True, "tokens": 9}, 0)
    assert flat["answer"] == "我在。" and flat["L1"] is None
    assert "我在。" in overview.describe(flat) and "L1" not in overview.describe(flat)
    assert not completions.judge(model, ids)["valid"]


def test_rows_go_with_their_questions_and_lengths(model):
    questions = [{"id": "a", "question": "q"}, {"id": "b", "question": "r"}]
    whole = tokenizers.completion_ids(model.tokenizer, chain_of_empathy.render(CHAIN))
    tokens = np.full((2, len(whole)), 7, np.int32)
    tokens[1] = whole
    done = engine.Completions(
        tokens, np.zeros(tokens.shape), np.array([2, len(whole)]), np.array([False, True])
    )
    rows = completions.judged(questions, model, done)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [row["tokens"] for row in rows] == [2, len(whole)]
    assert [row["finished"] for row in rows] == [False, True]
    assert [row["valid"] for row in rows] == [False, True]
    assert rows[0]["completion"] == tokenizers.decode(model.tokenizer, [7, 7])


def test_samples_of_a_question_lie_side_by_side(model):
    config = configs.get_config("tiny")
    config.data.max_completion_tokens = 4
    config.sampling.rows = 2
    questions = [{"id": str(i), "question": "q" * (3 - i)} for i in range(3)]
    arguments = (model.variables, model, questions, config, 2)
    rows = completions.complete(jax.random.key(0), *arguments)
    assert [row["id"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert all(1 <= row["tokens"] <= 4 for row in rows)
    assert completions.complete(jax.random.key(0), *arguments) == rows
    assert completions.complete(jax.random.key(1), *arguments) != rows


def test_sampling_follows_the_config():
    config = configs.get_config("tiny")
    config.data.max_completion_tokens = 7
    config.sampling.update({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1})
    assert completions.sampling(config) == engine.SamplingConfig(7, 0.5, 3, 0.9, 0.1)


def test_a_row_is_shown_short_and_in_one_line_a_layer(model):
    row = completions.judge(
        model, tokenizers.completion_ids(model.tokenizer, chain_of_empathy.render(CHAIN))
    ) | {"question": "很\n长" * 100}
    lines = completions.show(row).splitlines()
    assert len(lines) == 6 and lines[0].endswith("…") and lines[5].endswith("我在。")
    broken = {"valid": False, "rule": "missing_think", "question": "q", "completion": "x"}
    assert completions.show(broken).splitlines()[1].strip() == "missing_think: x"
