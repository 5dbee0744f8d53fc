"""The format of the chain: round trip, every way to break it, and linear time."""

import itertools
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax import chain_of_empathy as coe

CHAIN = coe.Chain("难过，失眠", "觉得自己不够好", "想被理解", "先接住情绪", "听起来你很累。")

# Characters that tags are made of, so that near-tags are common.
near_tags = st.lists(
    st.sampled_from(
        ["<", ">", "/", "L", "1", "answer", "empathy_think", " ", "\n", "，", "é", "😀"]
    )
    | st.characters(codec="utf-8"),
    max_size=30,
).map("".join)
layer_texts = near_tags.map(str.strip).filter(
    lambda text: text and not any(tag in text for tag in coe.TAGS)
)
chains = st.builds(coe.Chain, *([layer_texts] * 5))


def _tokens(chain: coe.Chain) -> list[str]:
    """The rendered chain cut at its tags: text, tag, text, ..., tag, text."""
    tokens, rest = [], coe.render(chain)
    for tag in coe.TAGS:
        before, rest = rest.split(tag, 1)
        tokens += [before, tag]
    return [*tokens, rest]


TAG_PLACES = st.integers(0, len(coe.TAGS) - 1).map(lambda i: 2 * i + 1)


def test_render_is_the_format_as_drawn():
    assert coe.render(coe.Chain(" a\n", "b", "c", "d", "e")) == (
        "<empathy_think>\n<L1>a</L1>\n<L2>b</L2>\n<L3>c</L3>\n<L4>d</L4>\n</empathy_think>\n"
        "<answer>e</answer>"
    )


@hypothesis.given(chains)
def test_parse_gives_back_what_render_was_given(chain):
    text = coe.render(chain)
    assert coe.parse(text) == chain
    assert coe.verdict(text).rule is None
    assert coe.parse("\n" + text.replace("\n<L", "  <L") + " \n").answer == chain.answer


@hypothesis.given(chains, TAG_PLACES)
def test_one_tag_deleted_is_invalid(chain, place):
    tokens = _tokens(chain)
    del tokens[place]
    assert not coe.verdict("".join(tokens)).valid


@hypothesis.given(chains, TAG_PLACES, st.integers(0, 2 * len(coe.TAGS)))
def test_one_tag_doubled_anywhere_is_invalid(chain, place, target):
    tokens = _tokens(chain)
    tokens.insert(target, tokens[place])
    assert not coe.verdict("".join(tokens)).valid


@hypothesis.given(chains, TAG_PLACES, TAG_PLACES)
def test_two_tags_swapped_is_invalid(chain, one, other):
    hypothesis.assume(one != other)
    tokens = _tokens(chain)
    tokens[one], tokens[other] = tokens[other], tokens[one]
    assert not coe.verdict("".join(tokens)).valid


@hypothesis.given(st.lists(near_tags | st.sampled_from(coe.TAGS), max_size=30).map("".join))
def test_any_text_gets_a_verdict_and_valid_ones_render_to_the_same_chain(text):
    verdict = coe.verdict(text)
    assert verdict.valid == (verdict.rule is None) == (verdict.chain is not None)
    if verdict.valid:
        assert all(verdict.layers.values())
        assert coe.parse(coe.render(verdict.chain)) == verdict.chain
    else:
        assert verdict.rule in coe.RULES


WHOLE = coe.render(CHAIN)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("missing_think", ""),
        ("missing_think", "你好"),
        ("missing_L1", WHOLE.replace("<L1>", "")),
        ("missing_L3", WHOLE.replace("<L3>", "< L3>")),
        ("missing_answer", WHOLE.partition("<answer>")[0]),
        ("missing_answer", WHOLE.replace("<answer>", "<ANSWER>")),
        ("unclosed_think", WHOLE.replace("</empathy_think>", "")),
        ("unclosed_L2", WHOLE.partition("</L2>")[0]),
        ("unclosed_answer", WHOLE.partition("</answer>")[0]),
        ("empty_L3", WHOLE.replace(CHAIN.L3, " \n\u3000")),
        ("empty_answer", WHOLE.replace(CHAIN.answer, "")),
        ("repeated_tag", WHOLE + WHOLE),
        ("repeated_tag", WHOLE.replace("<L1>", "<L1><L1>")),
        ("wrong_order", WHOLE.replace(CHAIN.L1, CHAIN.L1 + "<answer>")),
        ("wrong_order", WHOLE.replace("L1>", "L9>").replace("L2>", "L1>").replace("L9>", "L2>")),
        ("wrong_order", WHOLE.replace("</L4>\n</empathy_think>", "</empathy_think>\n</L4>")),
        ("text_outside", "好的。" + WHOLE),
        ("text_outside", WHOLE + "."),
        ("text_outside", WHOLE.replace("</L1>\n", "</L1>然后")),
    ],
)
def test_the_rule_that_is_broken_is_named(rule, text):
    assert coe.verdict(text).rule == rule
    with pytest.raises(coe.ChainError, match=rule) as error:
        coe.parse(text)
    assert error.value.rule == rule


def test_control_tokens_break_a_chain_that_is_whole_otherwise():
    text = WHOLE.replace(CHAIN.L2, "<|im_end|>" + CHAIN.L2)
    assert coe.verdict(text).valid
    assert coe.verdict(text, ["<|im_start|>"]).valid
    assert coe.verdict(text, ["<|im_start|>", "<|im_end|>"]).rule == "control_token"


def test_whole_layers_are_told_of_an_unfinished_text():
    assert coe.verdict(WHOLE.partition("</L3>")[0]).layers == {
        "L1": True, "L2": True, "L3": False, "L4": False,
    }  # fmt: skip
    broken = WHOLE.replace(CHAIN.L2, " ").replace(CHAIN.L3, "<answer>")
    assert coe.verdict(broken).layers == {"L1": True, "L2": False, "L3": False, "L4": True}
    twice = WHOLE + "<L4>again</L4>"
    assert coe.verdict(twice).layers == {"L1": True, "L2": True, "L3": True, "L4": False}
    assert not any(coe.verdict("</L1>a<L1></L2><L2>").layers.values())


@pytest.mark.parametrize("tag", coe.TAGS)
def test_a_layer_with_a_tag_is_refused(tag):
    with pytest.raises(ValueError, match=f"L2 must not contain a tag, got {tag}"):
        coe.render(coe.Chain("a", f"b{tag}", "c", "d", "e"))


def test_a_blank_layer_is_refused():
    with pytest.raises(ValueError, match="answer must hold text"):
        coe.render(coe.Chain("a", "b", "c", "d", "\n"))


def test_system_prompts_are_short_and_name_the_format():
    assert len(coe.system_prompt("zh")) <= 110
    assert len(coe.system_prompt("en").split()) <= 80
    for language in ("zh", "en"):
        prompt = coe.system_prompt(language)
        assert all(word in prompt for word in ("<empathy_think>", "<answer>", *coe.LAYERS))
    with pytest.raises(ValueError, match=r"config.data.language"):
        coe.system_prompt("fr")


@hypothesis.given(chains)
def test_the_format_answer_is_the_last_element_alone(chain):
    text = coe.render(chain, "answer")
    found = coe.verdict(text, form="answer")
    assert found.valid and found.chain == coe.Chain("", "", "", "", chain.answer)
    assert coe.render(chain).endswith(text)
    assert coe.verdict(coe.render(chain), form="answer").rule == "wrong_order"
    assert coe.verdict(text).rule == "missing_think"


@pytest.mark.parametrize(
    "text, rule",
    [
        ("在", "missing_answer"),
        ("<answer>在", "unclosed_answer"),
        ("<answer> </answer>", "empty_answer"),
        ("<answer>在</answer>吗", "text_outside"),
        ("<answer>在<L1></answer>", "wrong_order"),
        ("<answer>在</answer><answer>在</answer>", "repeated_tag"),
    ],
)
def test_the_format_answer_is_as_strict(text, rule):
    assert coe.verdict(text, form="answer").rule == rule


def test_the_prompt_of_the_format_answer_asks_for_no_chain():
    for language in ("zh", "en"):
        prompt = coe.system_prompt(language, "answer")
        assert [tag for tag in coe.TAGS if tag in prompt] == ["<answer>"] and "L1" not in prompt
    with pytest.raises(ValueError, match=r"format must be .*'both'; change config.data.format"):
        coe.system_prompt("zh", "both")


def test_a_rule_is_explained_for_every_way_to_fail():
    assert len(coe.TAGS) == 12
    assert all(coe.RULES.values())


class _CountingText(str):
    """A text that counts the searches made in it."""

    searches = 0

    def find(self, *args):
        type(self).searches += 1
        return super().find(*args)


@pytest.mark.parametrize(
    "unit",
    ["<", "<L1>", "</L1><L1>", "<empathy_think>", "<answer", "</", " ", "<L1></L1>", WHOLE],
)
def test_the_work_is_linear_in_the_text(unit):
    _CountingText.searches = 0
    coe.verdict(_CountingText(unit * (1_000_000 // len(unit))), ["<|im_end|>"])
    assert _CountingText.searches <= 2 * len(coe.TAGS)

    def seconds(size):
        text = WHOLE.replace(CHAIN.L1, CHAIN.L1 + " ") + unit * (size // len(unit))
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            coe.verdict(text)
            runs.append(time.perf_counter() - start)
        return min(runs)

    # Quadratic time would be 16 times as much, and seconds rather than milliseconds.
    assert seconds(1_000_000) < 10 * seconds(250_000) + 0.1


def _read(text: str, cuts: list[int]) -> list[coe.Piece]:
    """All pieces of a text that comes in parts."""
    reader, pieces = coe.Reader(), []
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(places):
        pieces += reader.feed(text[start:end])
    return pieces + reader.close()


def _joined(pieces: list[coe.Piece]) -> list[tuple[str, str]]:
    """The pieces with neighbours of one element put together."""
    groups = itertools.groupby(pieces, key=lambda piece: piece.element)
    return [(element, "".join(piece.text for piece in group)) for element, group in groups]


CUTS = st.lists(st.integers(0, 1000), max_size=12)


@hypothesis.given(chains, CUTS)
def test_a_reader_finds_what_the_parser_finds_however_the_text_is_cut(chain, cuts):
    expected = [(name, getattr(chain, name)) for name in (*coe.LAYERS, "answer")]
    assert _joined(_read(coe.render(chain), cuts)) == expected


@hypothesis.given(
    st.lists(st.sampled_from([*coe.TAGS, "<L", "<", "a", " ", "\n"]), max_size=40).map("".join),
    CUTS,
)
def test_a_reader_shows_everything_but_tags_and_space_at_the_edges(text, cuts):
    assert _joined(_read(text, cuts)) == _joined(_read(text, []))
    shown = "".join(piece.text for piece in _read(text, cuts))
    for tag in coe.TAGS:
        text = text.replace(tag, "\0")
    assert "".join(shown.split()) == "".join(text.replace("\0", "").split())


def test_a_reader_tells_where_text_lies_and_does_not_wait_for_the_end():
    reader = coe.Reader()
    assert reader.feed("hm <empathy_think> so <L1> a") == [
        ("outside", "hm"),
        ("between", "so"),
        ("L1", "a"),
    ]
    assert reader.feed(" b </L") == [("L1", " b")]
    assert reader.feed("x") == [("L1", " </Lx")]
    assert reader.feed("</L1></empathy_think><answer>\n") == []
    assert reader.feed("c <") == [("answer", "c")]
    assert reader.close() == [("answer", " <")]
