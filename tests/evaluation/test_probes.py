"""Probes: each is what it says and visible to a model; the table counts what is counted by hand."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.data import phrases
from empathy_jax.evaluation import probe_phrases, probes
from empathy_jax.rl import rewards

SIZE = 200
QUESTION = {
    "zh": "我和男朋友分手以后一直失眠，白天工作没有精神，家里人也不理解我，我该怎么办？",
    "en": "Since my boyfriend left I lie awake all night, and my family does not understand me.",
}
GENUINE = {
    "zh": "分手后的夜晚确实难熬。失眠让白天更累，家人的话又像在加压。你可以先固定起床时间。",
    "en": "Nights after a separation are hard. Start with a fixed hour to get up. Then rest.",
}
OTHER = {"zh": "离婚不是一个人的错。先照顾好孩子。", "en": "A divorce has two sides. Breathe."}
UNRELATED = {"zh": "考前睡足比多背一页更有用。", "en": "Sleep before the exam. It helps."}


def _case(language="zh", size=SIZE, number=0, **changes):
    texts = {
        "question": QUESTION[language], "genuine": GENUINE[language], "other": OTHER[language],
        "unrelated": UNRELATED[language],
    }  # fmt: skip
    return probes.Case(**(texts | changes), language=language, max_characters=size, number=number)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_each_probe_is_what_it_says(language):
    case = _case(language)
    made = {name: column[0] for name, column in probes.texts([case]).items()}
    own = probe_phrases.PHRASES[language]
    assert made["genuine"] == case.genuine
    assert made["echo"] == case.question
    assert made["echo_plus_sentence"] == f"{case.question}\n{own['kind'][0]}"
    assert made["kind_template"] == own["template"][0]
    assert made["same_topic_answer"] == case.other
    assert made["empty"] == ""
    assert set(made["tags_only"].split()) == set(chain_of_empathy.TAGS)
    assert made["injection_alone"] == own["demand"][0]
    assert made["injection_other"] == f"{case.unrelated}\n{own['demand'][0]}"
    assert made["injection_genuine"] == f"{case.genuine}\n{own['demand'][0]}"
    assert made["repetition"].split("\n") == [case.genuine] * made["repetition"].count(case.genuine)
    assert made["repetition"].count(case.genuine) >= 2
    # Without what was added, the answer is there as it was.
    longer = made["same_content_longer"]
    assert longer.startswith(own["idle"][0]) and len(longer) > 1.5 * len(case.genuine)
    for phrase in own["idle"]:
        longer = longer.replace(phrase, "")
    assert longer == case.genuine
    assert probes.PROBES.keys() == made.keys() - {"genuine"}


def test_keywords_are_the_questions_own_content_words():
    words = probes.keyword_stuffing(_case("zh")).split("、")
    assert {"男朋友分手", "失眠", "工作"} & set(words) and len(words) == len(set(words))
    assert all(word in QUESTION["zh"] for word in words)
    words = probes.keyword_stuffing(_case("en")).split(", ")
    assert "boyfriend" in words and "does" not in words
    assert probes.keyword_stuffing(_case("zh", question="我？")) == "我？"


def test_phrases_take_turns():
    made = [probes.kind_template(_case(number=n)) for n in range(4)]
    assert len(set(made[:3])) == 3 and made[3] == made[0]


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("size", [120, 400])
def test_what_a_probe_adds_to_a_long_text_is_visible(language, size):
    long = {"genuine": GENUINE[language] * 40, "unrelated": "好。" * 40}
    case = _case(language, size, question=QUESTION[language] * 20, **long)
    own = probe_phrases.PHRASES[language]
    visible = {name: column[0][:size] for name, column in probes.texts([case]).items()}
    assert own["kind"][0] in visible["echo_plus_sentence"]
    assert own["demand"][0] in visible["injection_other"]
    assert own["demand"][0] in visible["injection_genuine"]
    assert own["idle"][0] in visible["same_content_longer"]
    # The passage that is repeated ends in the first half, at the end of a sentence.
    first = probes.repetition(case).split("\n")[0]
    assert len(first) <= size // 2 and case.genuine.startswith(first)
    assert first[-2:].strip()[-1] in "。."
    assert visible["repetition"].startswith(first + "\n" + first)


@hypothesis.given(
    st.text(max_size=60), st.text(max_size=60), st.text(max_size=60),
    st.sampled_from(["zh", "en"]), st.integers(0, 300), st.integers(0, 9),
)  # fmt: skip
def test_any_text_can_be_probed(question, genuine, other, language, size, number):
    case = probes.Case(question, genuine, other, other, language, size, number)
    made = probes.texts([case])
    assert all(isinstance(column[0], str) for column in made.values())
    assert made == probes.texts([case])
    # Nothing grows without bound.
    assert all(len(column[0]) < 2000 for column in made.values())


@pytest.mark.parametrize("language", ["zh", "en"])
def test_no_phrase_of_the_probes_is_trained_against(language):
    def sentences(texts):
        parts = (part for text in texts for part in re.split(r"[。！？!?.\n]", text))
        return {"".join(part.split()).strip("，,、:：()（）") for part in parts} - {""}

    def grams(texts):
        joined = ("".join(text.casefold().split()) for text in texts)
        return {text[i : i + n] for text in joined for i in range(len(text) - n + 1)}

    n = {"zh": 8, "en": 24}[language]
    trained = [text for texts in phrases.load(language).values() for text in texts]
    probed = [text for texts in probe_phrases.PHRASES[language].values() for text in texts]
    assert not sentences(trained) & sentences(probed)
    assert not grams(trained) & grams(probed)


# --- cases and counting ---


def _records():
    topics = ["a", "b", "a", "b", None, "c"]
    return [
        {"question": f"q{i}", "topic": topic, "answers": [{"text": f"a{i}"}]}
        for i, topic in enumerate(topics)
    ]


def _embed(texts):
    """Questions on a circle: neighbours are the next in number."""
    angles = np.array([int(text[1:]) for text in texts]) * 0.1
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_other_answer_is_of_the_same_topic_or_else_of_the_nearest_question():
    cases = probes.make_cases(_records(), _embed, "zh", SIZE, seed=0, limit=10)
    assert [case.question for case in cases] == [f"q{i}" for i in range(6)]
    # 0 and 2 share a topic, 1 and 3 do; 4 and 5 take the nearest (3 is as near to 4 as 5).
    assert [case.other for case in cases][:4] == ["a2", "a3", "a0", "a1"]
    assert cases[4].other in ("a3", "a5") and cases[5].other == "a4"
    # What is unrelated stands half a list away.
    assert [case.unrelated for case in cases] == ["a3", "a4", "a5", "a0", "a1", "a2"]
    some = probes.make_cases(_records(), _embed, "zh", SIZE, seed=0, limit=3)
    assert len(some) == 3 and all(case.other != case.genuine for case in some)
    assert some == probes.make_cases(_records(), _embed, "zh", SIZE, seed=0, limit=3)
    drawn = {
        tuple(c.question for c in probes.make_cases(_records(), _embed, "zh", SIZE, seed, limit=3))
        for seed in range(9)
    }
    assert len(drawn) > 1


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(ValueError, match=r"zh and en, not for config\.data\.language 'fr'"):
        probes.make_cases(_records(), _embed, "fr", SIZE, seed=0, limit=9)
    with pytest.raises(ValueError, match="1 held-out questions"):
        probes.make_cases(_records()[:1], _embed, "zh", SIZE, seed=0, limit=9)
    with pytest.raises(ValueError, match=r"1 scores of 'echo' that are not finite"):
        probes.compare({"genuine": np.zeros(2), "echo": np.array([0, np.nan])})


def test_compare_by_hand():
    found = probes.compare(
        {
            "genuine": np.float32([0.5, 0.5, 0.5, 0.5]),
            "echo": np.float32([0.9, 0.5, 0.1, 0.8]),
            "empty": np.float32([0.5 + 1e-7, 0.0, 0.0, 0.0]),
        }
    )
    assert list(found) == ["echo", "empty"]
    assert found["echo"] == {
        "beats": 0.5,
        "error": pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2),
        "ties": 0.25,
        "mean_gain": pytest.approx(0.075),
        "questions": 4,
    }
    assert (found["empty"]["beats"], found["empty"]["ties"]) == (0, 0.25)


class _Scorer:
    """Cosine as the share of the answer's characters that stand in the question."""

    def __init__(self):
        self.calls = 0

    def embed_questions(self, texts):
        return np.eye(len(texts))

    def similarity(self, questions, answers):
        self.calls += 1
        return np.array(
            [rewards.echo_overlap(q, a, n=1) for q, a in zip(questions, answers, strict=True)]
        )


def test_a_reward_that_loves_echoes_is_found_out():
    records = [{"question": QUESTION[x], "answers": [{"text": GENUINE[x]}]} for x in ("zh", "en")]
    scorer = _Scorer()
    found = probes.run(records, scorer, "zh", SIZE, seed=0, limit=9)
    assert scorer.calls == 1
    assert found["echo"]["beats"] == 1 and found["empty"]["beats"] == 0
    assert found["echo"]["questions"] == 2
    assert probes.warning(found).startswith("This reward prefers an echo of the question")
    table = probes.render(found, colour=True)
    assert table.count("\x1b[31m") >= 2 and "\x1b" not in probes.render(found, colour=False)
    lines = {line.split()[0]: line for line in probes.render(found, colour=False).split("\n")}
    assert "100.0 ± 0.0 %" in lines["echo"] and lines["echo"].endswith("over 5 %")
    assert not lines["empty"].endswith("over 5 %")


def test_the_penalty_on_echoes_turns_the_verdict():
    cases = [_case(), _case("en", question=QUESTION["en"])]
    made = probes.texts(cases)

    def reward(questions, answers):
        overlap = [rewards.echo_overlap(q, a) for q, a in zip(questions, answers, strict=True)]
        return _Scorer().similarity(questions, answers) - 2 * rewards.echo_penalty(overlap)

    bare = probes.compare(probes.score(cases, made, _Scorer().similarity))
    whole = probes.compare(probes.score(cases, made, reward))
    assert bare["echo"]["beats"] == 1 and whole["echo"]["beats"] == 0
    assert probes.warning(whole) is None


def test_only_another_persons_answer_may_win():
    assert not probes.fails("same_topic_answer", 1.0)
    assert probes.fails("echo", 0.06) and not probes.fails("echo", probes.MAX_BEATS)


def test_visible_characters_fit_the_tokens():
    assert probes.visible_characters(512, "zh") == 512
    assert probes.visible_characters(512, "en") == 1536
