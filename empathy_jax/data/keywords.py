"""The words that say what a question is about."""

import functools

import rjieba

# Parts of speech of the segmenter: nouns and names, nouns made of verbs, verbs.
_PARTS = ("n", "v")
_ENGLISH = "eng"
_SHORTEST_ENGLISH = 4

# Nouns and verbs that fit any question.
_COMMON_CHINESE = frozenset(
    """
    没有 觉得 感觉 感到 知道 需要 想要 希望 可能 开始 成为 变成 出来 起来 下去 过来 进行 认为 以为
    发现 告诉 表示 可以 应该 不能 不会 不想 看到 听到 喜欢 想到 使得 得到 来说 有时 时候 事情 东西
    问题 样子 方面 情况 现在 今天 昨天 后来 以前 之后 大家 别人 有人 有点 办法 一下 想法 能够 愿意
    不要 不是 就是 还是 是不是 有没有 怎么办 看看 好像 作为 属于 继续 请问 谢谢 帮助 回来 之间 有些
    人家 地方 年 月 日 小时 时间 不到 无法 遇到 所有 可是 真的 老是 不知 总会 里面 心里
    """.split()
)
_COMMON_ENGLISH = frozenset(
    """
    about after again against also always another anyone anything around back because been before
    being both can't cannot come comes coming could didn don't does doesn't doing done down each even
    ever every everyone everything feel feeling feels felt find from gets getting give goes going gone
    good have haven having hasn help here herself himself into itself just keep know knows last left
    less like made make makes making many maybe mean more most much must myself never next nothing
    often once only other others over people really right said same says seem seems shall should since
    some someone something sometimes still such take tell than thank thanks that their them themselves
    then there these they thing things think this those though through told told took tried tries try
    trying under until upon used very want wanted wants well went were what when where which while
    will with without would year years your yours yourself
    """.split()
)


def is_keyword(word: str, part: str) -> bool:
    """Whether a word says what a text is about.

    Args:
      word: as `segments` gives it.
      part: its part of speech.
    """
    if part == _ENGLISH:
        return len(word) >= _SHORTEST_ENGLISH and word.lower() not in _COMMON_ENGLISH
    return len(word) >= 2 and part.startswith(_PARTS) and word not in _COMMON_CHINESE


@functools.lru_cache(maxsize=4096)
def segments(text: str) -> tuple[tuple[str, str], ...]:
    """The words of a text, Chinese or English, with their parts of speech; together they are the text."""
    return tuple(rjieba.tag(text))


def keywords(text: str) -> list[str]:
    """The nouns and verbs that say what a text is about, each once, in the order of reading."""
    found = (word for word, part in segments(text) if is_keyword(word, part))
    return list(dict.fromkeys(found))
