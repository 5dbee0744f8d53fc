"""Shuffled examples are whole chains of the records' own sentences, the same ones every time."""

import numpy as np

from empathy_jax import chain_of_empathy
from empathy_jax.corpus import sample
from empathy_jax.data import examples, tokenizer


def _learnt(records, language):
    learnt = tokenizer.train([record["L1"] for record in records], 300, chain_of_empathy.TAGS)
    return tokenizer.set_chat_template(learnt, language)


def test_shuffled_examples_are_valid_chains_of_sentences_from_anywhere():
    for language in ("zh", "en"):
        records = sample.sample_chains(language)[:6]
        learnt = _learnt(records, language)
        fields = (*chain_of_empathy.LAYERS, "answer")
        sources = {name: "".join(record[name] for record in records) for name in fields}
        made = examples.shuffled_examples(records, learnt, 10_000, variants=3)
        assert len(made) == 18
        homes = set()
        for example in made:
            chain = chain_of_empathy.parse(tokenizer.decode(learnt, example["tokens"]))
            first = examples._SENTENCE.findall(chain.L2)[0]
            homes |= {name for name, text in sources.items() if first in text}
            assert homes
            assert example["loss_mask"].all()
            assert example["tokens"][-1] == learnt.eos_token_id
        assert homes == set(fields)
        again = examples.shuffled_examples(records, learnt, 10_000, variants=3)
        assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(made, again, strict=True))


def test_long_ones_are_left_out():
    records = sample.sample_chains("zh")[:6]
    learnt = _learnt(records, "zh")
    lengths = [len(e["tokens"]) for e in examples.shuffled_examples(records, learnt, 10_000)]
    limit = int(np.median(lengths))
    kept = [len(e["tokens"]) for e in examples.shuffled_examples(records, learnt, limit)]
    assert kept == [length for length in lengths if length <= limit]
