import time

import numpy as np
import pytest

from empathy_jax.evaluation.metrics import manner

SENTENCES = {
    "question": (
        "你现在最担心的是什么？", "这种感觉持续多久了呢", "你愿意多说一些吗", "他知道你的想法吗？”",
        "What happened after that?", "How long have you felt this way?",
    ),
    "reflection": (
        "听起来你这段时间真的很累。", "我能感受到你的无助。", "你一定承受了很大的压力。",
        "失去他以后，你感到非常孤独。", "似乎你一直在等一个解释。", "看得出来你很在乎这段关系。",
        "对你来说，这个家已经不再安全。", "你既想离开，又舍不得他。", "可以想象你当时有多难过。",
        "It sounds like you have been carrying this alone.", "You feel torn between two people.",
        "I can hear how much you miss her.", "That must have been frightening.",
        "Part of you wants to leave.",
    ),
    "advice": (
        "建议你先和老师谈一谈。", "不妨给自己放个假。", "你可以试着把它写下来。", "别再责怪自己了。",
        "请拨打当地的心理援助热线。", "多和朋友聊聊天。", "首先，要学会拒绝。", "你应该去看医生。",
        "You could talk to someone you trust.", "Try to write it down.", "Don't blame yourself.",
        "I would suggest a walk every morning.", "Take one small step today.",
        "It might help to set a time for worrying.",
    ),
    "": (
        "谢谢你的来信。", "很多人在这个年纪会经历同样的事。", "关系是两个人的事。", "祝好！",
        "Thank you for writing.", "Grief has no timetable.", "Anxiety is common among students.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sentence"), [(kind, text) for kind, texts in SENTENCES.items() for text in texts]
)
def test_sentences_are_what_they_say(kind, sentence):
    assert manner.kinds_of(sentence) == ({kind} if kind else set())


@pytest.mark.parametrize(
    "sentence", ["要不要试试写日记？", "你可以先休息一下吗？", "Have you tried writing it down?"]
)
def test_a_question_that_proposes_is_both(sentence):
    assert manner.kinds_of(sentence) == {"question", "advice"}


def test_a_text_is_counted_sentence_by_sentence():
    text = "谢谢你的来信。听起来你很累。……你睡得好吗？\n建议你早点休息！你可以试试冥想吗？"
    assert manner.count(text) == manner.Manner(5, questions=2, reflections=1, advice=2)
    assert manner.count("。。。\n") == manner.Manner()
    np.testing.assert_array_equal(
        manner.tally([text, "", "What now?"]), [[5, 2, 1, 2], [0, 0, 0, 0], [1, 1, 0, 0]]
    )
    assert manner.tally([]).shape == (0, 4)


@pytest.mark.parametrize("part", ["你", "感受到", "you are ", "可以，", "听起来", "i can hear "])
def test_hostile_repetition_takes_linear_time(part):
    def seconds(times):
        began = time.process_time()
        manner.count(part * times)
        return time.process_time() - began

    small = min(seconds(3000) for _ in range(3))
    assert min(seconds(12_000) for _ in range(3)) < 10 * small + 0.05
