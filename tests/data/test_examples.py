"""Examples: where the loss counts, limits, and the table on disk."""

import functools

import numpy as np
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import tokenizer as tokenizer_lib

RECORD = {
    "id": "r1", "question": "睡不着", "L1": "累", "L2": "怕", "L3": "求懂", "L4": "接住",
    "answer": "你很累，caf\u00e9。", "source": "test",
}  # fmt: skip
CHAIN = chain_of_empathy.Chain("累", "怕", "求懂", "接住", "你很累，caf\u00e9。")


@functools.cache
def _tokenizer():
    texts = [chain_of_empathy.render(CHAIN)] * 3
    return tokenizer_lib.set_chat_template(tokenizer_lib.train(texts, 300), "zh")


def test_the_loss_counts_the_completion_and_its_end_only():
    example = examples_lib.sft_example(RECORD, _tokenizer(), 1000, 1000)
    tokens, mask = example["tokens"], example["loss_mask"]
    prompt = tokenizer_lib.prompt_ids(_tokenizer(), RECORD["question"])
    assert example["id"] == "r1"
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
    assert tokens[~mask].tolist() == prompt == tokens[: len(prompt)].tolist()
    assert tokens[mask][-1] == _tokenizer().eos_token_id
    assert tokens[mask].tolist().count(_tokenizer().eos_token_id) == 1
    assert chain_of_empathy.parse(tokenizer_lib.decode(_tokenizer(), tokens[mask])) == CHAIN
    only_prompt = examples_lib.prompt_example(RECORD, _tokenizer(), 1000)
    assert only_prompt["tokens"].tolist() == prompt


def test_what_is_too_long_is_refused_by_name_and_number():
    tokenizer = _tokenizer()
    example = examples_lib.sft_example(RECORD, tokenizer, 1000, 1000)
    completion = int(example["loss_mask"].sum())
    prompt = len(example["tokens"]) - completion
    examples_lib.sft_example(RECORD, tokenizer, prompt, completion)
    with pytest.raises(
        examples_lib.Overlong,
        match=rf"completion.*'r1' has {completion} tokens.*are {completion - 1}.*"
        r"config.data.max_completion_tokens",
    ):
        examples_lib.sft_example(RECORD, tokenizer, prompt, completion - 1)
    message = rf"prompt.*'r1' has {prompt} tokens.*config.data.max_prompt_tokens"
    with pytest.raises(examples_lib.Overlong, match=message):
        examples_lib.sft_example(RECORD, tokenizer, prompt - 1, completion)
    with pytest.raises(examples_lib.Overlong, match=message):
        examples_lib.prompt_example(RECORD, tokenizer, prompt - 1)


def test_build_stops_or_lists_what_is_too_long():
    short = RECORD | {"id": "short"}
    long = RECORD | {"id": "long", "question": "睡不着" * 50}
    limit = len(tokenizer_lib.prompt_ids(_tokenizer(), "睡不着"))
    make = functools.partial(
        examples_lib.prompt_example, tokenizer=_tokenizer(), max_prompt_tokens=limit
    )
    built, rejects = examples_lib.build([short, long, short], make, overlong="reject")
    assert [example["id"] for example in built] == ["short", "short"]
    assert [reject["id"] for reject in rejects] == ["long"]
    assert "max_prompt_tokens" in rejects[0]["reason"]
    longer = RECORD | {"id": "longer", "question": "睡不着" * 60}
    count = len(tokenizer_lib.prompt_ids(_tokenizer(), longer["question"]))
    with pytest.raises(
        ValueError,
        match=rf"^2 of 3 records .*'longer' has {count} tokens, .*config\.data\.max_prompt_tokens"
        r".*config\.data\.overlong=reject",
    ):
        examples_lib.build([short, longer, long], make)
    with pytest.raises(ValueError, match=r"config.data.overlong"):
        examples_lib.build([short], make, overlong="cut")
