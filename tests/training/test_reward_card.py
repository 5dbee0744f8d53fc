"""The card of a reward model, from calibration figures chosen so that the text is plain to see."""

import jax
import pytest

from empathy_jax import sharding
from empathy_jax.corpus import sample
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation import probes
from empathy_jax.models import encoder
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import reward_card, reward_model
from empathy_jax.training.common import Model
from empathy_jax.training.scorer import Scorer
from tests.training import run_folders

EMBEDDING = Embedding("cls", 320, query_prompt='来信"\n')


def entry(beats: float) -> dict[str, float]:
    return {"beats": beats, "error": 0.0125, "ties": 0.0, "mean_gain": -0.5, "questions": 200}


CALIBRATION = run_folders.CALIBRATION | {
    "probes": {
        "cosine": {"echo": entry(0.05), "empty": entry(0.051), "same_topic_answer": entry(0.3)}
    }
}


def test_scoring_names_prompts_and_limit():
    card = reward_card.render(EMBEDDING, CALIBRATION)
    assert 'puts `"来信\\"\\n"` before a question' in card
    assert "`encode_document` nothing before an answer" in card
    assert "cut at 320 tokens" in card
    assert "score_head" not in card
    with_head = reward_card.render(Embedding("mean", 64, has_head=True), CALIBRATION)
    assert "`kernel[0] @ a + kernel[1] @ (q * a)`" in with_head


def test_scale_is_that_of_the_calibration():
    card = reward_card.render(EMBEDDING, CALIBRATION)
    assert "on 340 held-out questions" in card
    assert "at a cosine of 0.432 (balanced accuracy 0.938)" in card
    assert "- 90 % of the own answers reach a cosine of 0.250." in card
    assert "Among 100 answers, the others to questions drawn at random, the own one" in card
    assert "for 0.925 ± 0.014 of the questions" in card
    assert "to the nearest questions, the own one is first for 0.875 ± 0.018" in card
    assert "| 5 % | 25 % | 50 % | 75 % | 95 % |" in card
    assert "| -0.200 | 0.000 | 0.250 | 0.500 | 0.700 |" in card


def test_what_wins_too_often_is_bold():
    card = reward_card.render(EMBEDDING, CALIBRATION)
    assert "| the question itself | 5.0 ± 1.2 % |" in card
    assert "| an empty text | **5.1 ± 1.2 %** |" in card
    assert "| a human answer to a similar question | 30.0 ± 1.2 % |" in card
    assert "prefers an echo" not in card
    found = {"cosine": {"echo": entry(0.9)}}
    card = reward_card.render(EMBEDDING, CALIBRATION | {"probes": found})
    assert "| the question itself | **90.0 ± 1.2 %** |" in card
    assert "**This reward prefers an echo of the question to a real answer in 90.0 %" in card


@pytest.mark.parametrize("calibrated", [None, CALIBRATION])
def test_limits_are_always_told(calibrated):
    card = reward_card.render(EMBEDDING, calibrated)
    assert "never calibrated" in card or calibrated is not None
    for part in ("No measure of good counselling", "can be gamed", "```python"):
        assert part in card


def test_the_phase_measures_all_that_the_card_tells():
    records = sample.sample_questions("zh")[:6]
    tokenizer = tokenizers.train([record["question"] for record in records], 512)
    architecture = run_folders.REWARD_ENCODER
    params = encoder.init_params(jax.random.key(0), architecture)
    model = Model(architecture, {"params": params}, tokenizer, embedding=Embedding("mean", 64))
    config = run_folders.tiny_config("reward_model")
    scorer = Scorer(model.variables, model, {}, sharding.make_layout(config.mesh))
    card = reward_card.render(
        model.embedding, reward_model.calibrate(config, records, scorer, limit=3)
    )
    for probe in probes.PROBES.values():
        assert f"| {probe.meaning} |" in card
