"""Cut examples are whole chains, made of the records' own sentences, the same ones every time."""

from empathy_jax import chain_of_empathy
from empathy_jax.corpus import sample
from empathy_jax.data import examples, tokenizer


def test_cut_examples_are_valid_chains_of_the_records_sentences():
    for language in ("zh", "en"):
        records = sample.sample_chains(language)[:6]
        learnt = tokenizer.train([record["L1"] for record in records], 300, chain_of_empathy.TAGS)
        tokenizer.set_chat_template(learnt, language)
        made = examples.cut_examples(records, learnt, variants=2)
        assert len(made) == 12
        for index, example in enumerate(made):
            chain = chain_of_empathy.parse(tokenizer.decode(learnt, example["tokens"]))
            record = records[index % 6]
            assert record["L2"].startswith(chain.L2) or chain.L2.startswith(record["L2"])
            assert example["loss_mask"].all()
            assert example["tokens"][-1] == learnt.eos_token_id
        again = examples.cut_examples(records, learnt, variants=2)
        assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(made, again, strict=True))
        assert len({len(example["tokens"]) for example in made}) > 6
