import numpy as np
import pytest

from empathy_jax.evaluation.metrics import copying
from empathy_jax.rl import rewards
from tests.evaluation.metrics.real_pairs import random_pairs, real_pairs


@pytest.mark.parametrize("source", ["random", "real"])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_shares_are_those_of_the_reward(source, language, request):
    if source == "random":
        pairs = random_pairs(500, 60, seed=7)
    else:
        pairs = real_pairs(request.getfixturevalue("shared_dir"))
    questions, answers = (list(side) for side in zip(*pairs, strict=True))
    places = np.arange(len(pairs))
    made = copying.Copying([*questions, *answers], language)
    expected = [rewards.echo_overlap(q, a) for q, a in pairs]
    found = made.echo(places, places + len(pairs))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.ptp(found) > 0.01
    # Each answer belongs to another question; some share a part with the one before.
    shared = [answer + answers[index - 1][-40:] for index, answer in enumerate(answers)]
    long = [index for index, text in enumerate(shared) if len(rewards.comparable(text)) >= 24]
    texts = [shared[index] for index in long]
    expected = rewards.template_overlap(
        [str(index) for index in long], texts, rewards.TEMPLATE_NGRAM[language]
    )
    found = copying.Copying(texts, language).template(np.arange(len(texts)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # By the n-grams of English, three times as long, Chinese answers share little.
    assert np.ptp(found) > (0.05 if (source, language) == ("real", "en") else 0.1)


def test_no_texts_have_no_shares():
    made = copying.Copying(["我很难过"], "zh")
    nothing = np.zeros(0, np.int64)
    assert made.echo(nothing, nothing).shape == made.template(nothing).shape == (0,)
