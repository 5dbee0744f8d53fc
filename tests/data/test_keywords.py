import hypothesis
from hypothesis import strategies as st

from empathy_jax.data import keywords as keywords_lib


def test_nouns_and_verbs_of_a_chinese_question():
    found = keywords_lib.keywords("我和男朋友吵架了，妈妈让我们分手。妈妈觉得我没有时间学习。")
    assert found == ["男朋友", "吵架", "妈妈", "分手", "学习"]


def test_words_of_an_english_question():
    found = keywords_lib.keywords(
        "I really want to tell my mother about the divorce, but my mother is ill."
    )
    assert found == ["mother", "divorce"]


def test_words_of_both_languages_in_one_question():
    assert keywords_lib.keywords("我的supervisor让我改thesis，我很about焦虑") == [
        "supervisor",
        "thesis",
    ]


def test_classes():
    found = keywords_lib.keywords_by_class("妈妈和老师吵架，妈妈 cried，没有")
    assert found == {"n": ["妈妈", "老师", "妈妈"], "v": ["吵架"], "e": ["cried"]}
    assert keywords_lib.keywords_by_class("。我很！") == {}


@hypothesis.given(st.text())
def test_segments_are_the_text(text):
    assert "".join(word for word, _ in keywords_lib.segments(text)) == text


@hypothesis.given(st.text(alphabet="我妈妈学校吵架知道sad mother. \n"))
def test_keywords_stand_in_the_text_once_each(text):
    found = keywords_lib.keywords(text)
    assert len(set(found)) == len(found)
    assert all(word in text and len(word) >= 2 for word in found)
    by_class = keywords_lib.keywords_by_class(text)
    assert {word for words in by_class.values() for word in words} == set(found)
