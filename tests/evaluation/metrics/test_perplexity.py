import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import chain_of_empathy, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation.metrics import perplexity
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from tests.training.run_folders import tiny_config

TEXTS = ["我很难过，怎么办", "慢慢来，先睡一觉。", "谢谢你", "How are you?"]


@pytest.fixture(scope="module")
def model():
    tokenizer = tokenizers.train(TEXTS, 352, chain_of_empathy.TAGS)
    config = decoder.DecoderConfig(
        vocab_size=352, width=32, mlp_width=48, num_layers=2, num_heads=2, num_kv_heads=2,
        head_dim=16, max_positions=96, tie_embeddings=True,
    )  # fmt: skip
    params = decoder.init_params(jax.random.key(0), config)
    params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)
    return params, config, tokenizer


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_layout(tiny_config("evaluate").mesh).mesh


def _by_hand(model, question, answer):
    """From the whole log-softmax of one text."""
    params, config, tokenizer = model
    context, own = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer)
    )
    ids = [tokenizer.eos_token_id, *context, *own]
    tokens = jnp.array([ids])
    hidden, _ = decoder.hidden_states(
        params, config, tokens, jnp.arange(len(ids))[None], causal_mask(jnp.ones_like(tokens))
    )
    logs = jax.nn.log_softmax(decoder.logits(params, config, hidden))[0]
    return -np.mean([logs[place - 1, ids[place]] for place in range(len(ids) - len(own), len(ids))])


def test_surprise_is_that_of_the_whole_softmax(model, mesh):
    questions = [TEXTS[0], TEXTS[2], "", TEXTS[3]]
    answers = [TEXTS[1], TEXTS[3], TEXTS[1], ""]
    with jax.set_mesh(mesh):
        found = perplexity.surprise(questions, answers, *model, mesh)
    for value, question, answer in zip(found[:3], questions, answers, strict=False):
        assert value == pytest.approx(_by_hand(model, question + "\n\n", answer), rel=1e-5)
    assert np.isnan(found[3]) and np.ptp(found[:3]) > 0.01


def test_the_rest_of_a_batch_changes_nothing(model, mesh):
    texts = [text * count for count in (1, 3, 2) for text in TEXTS]
    with jax.set_mesh(mesh):
        whole = perplexity.surprise(texts, texts[::-1], *model, mesh)
        alone = [
            perplexity.surprise([q], [a], *model, mesh)[0]
            for q, a in zip(texts[:3], texts[::-1], strict=False)
        ]
    np.testing.assert_allclose(whole[:3], alone, rtol=1e-5)


def test_a_long_question_gives_way_at_its_beginning(model):
    _, _, tokenizer = model
    ids, count = perplexity._ids(tokenizer, "a" * 200 + "b", "c" * 10, 32)
    assert len(ids) == 32 and count == 10
    assert tokenizer.decode(ids[1:]) == "a" * 18 + "b\n\n" + "c" * 10
    ids, count = perplexity._ids(tokenizer, "ab", "c" * 100, 32)
    assert count == 31 and tokenizer.decode(ids[1:]) == "c" * 31
