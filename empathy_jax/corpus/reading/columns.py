"""The names that people give to the columns of questions and answers."""

import functools

# Role: names, the preferred first. Names are compared without case, white space, "_" and "-".
NAMES = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "对话"),
    "title": (
        "title", "question_title", "post_title", "instruction",
        "标题", "问题标题", "提问标题",
    ),
    "question": (
        "question", "question_text", "prompt", "query", "context", "input", "post",
        "问题", "提问", "求助", "咨询问题", "问题内容", "提问内容",
    ),
    # Said beside a question or a title.
    "detail": (
        "description", "question_description", "question_detail", "detail", "details",
        "描述", "问题描述", "问题详情", "详情",
    ),
    # Says nothing by its name: more of the question beside a title only.
    "body": ("body", "text", "content", "selftext", "正文", "内容"),
    "answers": ("answers", "responses", "replies", "comments"),
    "answer": (
        "answer", "answer_text", "response", "completion", "output", "reply", "best_answer",
        "回答", "答案", "回复", "回答内容", "咨询师回答", "回复内容",
    ),
    "topic": (
        "topic", "topics", "category", "subject_name", "problem_type", "tags", "tag", "keywords",
        "主题", "话题", "分类", "类别", "一级主题", "标签", "关键词",
    ),
    "subtopic": ("subtopic", "sub_topic", "subcategory", "子主题", "子话题", "二级主题", "二级分类"),
    "score": (
        "score", "upvotes", "votes", "likes", "ups", "like_count", "vote_count",
        "评分", "点赞", "点赞数", "赞同数", "赞",
    ),
    "author": (
        "author", "therapist_name", "therapist_info", "counselor", "counsellor", "therapist",
        "answerer", "nickname", "作者", "答主", "回答者", "咨询师", "心理咨询师",
    ),
}  # fmt: skip

# Of an answer inside a list of answers, where "text" is clear enough.
ANSWER_TEXT = ("text", "answer", "answer_text", "content", "body", "reply", "response", "comment")


def _folded(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in "_-\ufeff" and not c.isspace())


_ROLES = {role: tuple(map(_folded, names)) for role, names in NAMES.items()}


@functools.lru_cache(maxsize=1024)
def roles(names: tuple[str, ...]) -> dict[str, str]:
    """Which name plays which role; roles that none plays are left out.

    >>> roles(("", "questionTitle", "answerText", "views"))
    {'title': 'questionTitle', 'answer': 'answerText'}
    """
    folded = {_folded(name): name for name in reversed(names)}
    found = {}
    for role, known in _ROLES.items():
        name = next((folded[name] for name in known if name in folded), None)
        if name is not None:
            found[role] = name
    return found


@functools.lru_cache(maxsize=1024)
def answer_text(names: tuple[str, ...]) -> str | None:
    """The name of the text of an answer inside a list of answers."""
    folded = {_folded(name): name for name in reversed(names)}
    return next((folded[_folded(name)] for name in ANSWER_TEXT if _folded(name) in folded), None)


def repeated(names: tuple[str, ...]) -> list[str]:
    """Names with a role that stand more than once, so that one would hide the other."""
    return sorted({name for name in roles(names).values() if names.count(name) > 1})


def ask(names: tuple[str, ...]) -> bool:
    """Whether the columns can hold a question at all."""
    return not roles(names).keys().isdisjoint(("messages", "title", "question"))
