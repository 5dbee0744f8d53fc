"""The chat page in a real browser, before a real server; the model is scripted."""

import contextlib
import dataclasses
import json
import re
import threading

import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import LAYERS, Chain
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.serving.worker import SLICE
from tests.evaluation.ranking.small_study import HOSTILE
from tests.serving.served import CHAIN, MODEL, ScriptedBatch, make_tokenizer, serve

QUESTION = "我最近总是睡不着。\n\n他们说我没用。"
TEXT = chain_of_empathy.render(CHAIN)
PHONE = {"viewport": {"width": 375, "height": 667}, "is_mobile": True, "has_touch": True}
IDLE = "#send:not([hidden])"
URGENT = {"code": "urgent", "message": "你的安全最重要。\n请打 12356。", "held_back": []}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@contextlib.contextmanager
def visit(browser, served, errors=None, **options):
    """A tab on the page of a server; errors of its scripts and blocked loads are collected."""
    context = browser.new_context(**{"locale": "zh-CN", **options})
    context.set_default_timeout(30_000)
    if errors is not None:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on(
            "console",
            lambda line: errors.append(line.text) if "Security Policy" in line.text else None,
        )
    tab = context.new_page()
    tab.goto(served.url)
    yield tab
    context.close()


def send(tab, question):
    tab.fill("#text", question)
    tab.click("#send")


def ask(tab, question):
    send(tab, question)
    tab.wait_for_selector(IDLE)


def answers(tab):
    return [answer.text_content() for answer in tab.query_selector_all(".answer")]


def opened(tab):
    """Names of the layers of the last turn that are unfolded."""
    found = tab.query_selector_all(".turn:last-child details[open] summary")
    return [summary.text_content().split()[0] for summary in found]


class SteppedBatch(ScriptedBatch):
    """A slice is decoded when the test says so."""

    def __init__(self, tokenizer, text):
        super().__init__(tokenizer, text)
        self.text = text
        self.slices = threading.Semaphore(0)

    def decode(self, steps, enough):
        if self._running:
            self.slices.acquire(timeout=30)
        return super().decode(steps, enough)

    def tell_until(self, tokenizer, part, told=0):
        """Decodes what stands before a part of the text, or a little less; how many slices in all."""
        tokens = tokenizers.completion_ids(tokenizer, self.text[: self.text.rindex(part)])
        self.slices.release(len(tokens) // SLICE - told)
        return len(tokens) // SLICE


def test_the_layers_unfold_and_then_comes_the_answer(browser, tokenizer):
    chain = dataclasses.replace(CHAIN, L2="天亮了。" * 4, answer=CHAIN.answer + "雨停了。" * 3)
    batch = SteppedBatch(tokenizer, chain_of_empathy.render(chain))
    with serve(batch, tokenizer) as served, visit(browser, served, errors := []) as tab:
        send(tab, QUESTION)
        told = batch.tell_until(tokenizer, CHAIN.L3)
        tab.wait_for_selector("details:nth-of-type(2)")
        assert opened(tab) == ["L1", "L2"]
        assert answers(tab) == [""] and "L1 情绪与处境" in tab.inner_text(".chain")
        assert "成因与信念" in tab.inner_text("#status")
        batch.tell_until(tokenizer, "雨停了。", told)
        tab.wait_for_selector(".answer span:not(:empty)")
        assert opened(tab) == []
        batch.slices.release(1000)
        tab.wait_for_selector(IDLE)
        assert answers(tab) == [chain.answer]
        told = [layer.text_content() for layer in tab.query_selector_all("details .text")]
        assert told == [getattr(chain, name) for name in LAYERS]
        # Sentences are announced whole, each once.
        assert tab.get_attribute(".answer", "aria-live") == "polite"
        spoken = tab.query_selector_all(".answer span:not([aria-hidden])")
        assert [sentence.text_content() for sentence in spoken] == [
            "听起来你很累。\n",
            "我在这里。",
            *["雨停了。"] * 3,
        ]
    assert not errors


def test_a_conversation_by_keyboard_alone(browser, tokenizer):
    batch, sent = ScriptedBatch(tokenizer, TEXT), []
    with serve(batch, tokenizer) as served, visit(browser, served) as tab:
        tab.on("request", lambda request: sent.append(request.post_data))
        while tab.evaluate("document.activeElement.id") != "text":
            tab.keyboard.press("Tab")
        for question in ("一", "二"):
            tab.keyboard.type(question)
            tab.keyboard.press("Enter")  # a line more
            tab.keyboard.press("Control+Enter")
            tab.wait_for_selector(IDLE)
        tab.keyboard.press("Shift+Tab")
        tab.keyboard.press("Enter")
        assert opened(tab) == ["L4"]
        hidden = """() => {
          const at = document.activeElement.getBoundingClientRect();
          const edge = (id) => document.getElementById(id).getBoundingClientRect();
          return at.top < edge("standing").bottom - 1 || at.bottom > edge("composer").top + 1;
        }"""
        for _ in range(8):  # back to the first layer, never behind what stays in sight
            assert not tab.evaluate(hidden)
            tab.keyboard.press("Shift+Tab")
    bodies = [json.loads(body) for body in sent if body]
    assert [body["messages"] for body in bodies] == [
        [{"role": "user", "content": "一\n"}],
        [
            {"role": "user", "content": "一\n"},
            {"role": "assistant", "content": CHAIN.answer},
            {"role": "user", "content": "二\n"},
        ],
    ]
    assert all(body["model"] == MODEL and body["stream"] for body in bodies)


def test_stop_frees_the_row_and_keeps_what_came(browser, tokenizer):
    batch = ScriptedBatch(tokenizer, "啊。" * 1500, rows=1, slice_seconds=0.05)
    with serve(batch, tokenizer, limit=9999) as served, visit(browser, served) as tab:
        send(tab, QUESTION)
        tab.wait_for_selector(".answer span:not(:empty)")
        tab.click("#stop")
        served.settle()  # the whole of it would take much longer
        tab.wait_for_selector(IDLE)
        assert 0 < len(answers(tab)[0]) < 2000
        assert "已停止" in tab.inner_text(".reply")


def test_hostile_texts_are_shown_and_do_nothing(browser, tokenizer):
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(Chain(*[HOSTILE] * 5)))
    requests = []
    with (
        serve(batch, tokenizer, limit=5000) as served,
        visit(browser, served, errors := []) as tab,
    ):
        tab.on("request", lambda request: requests.append(request.url))
        ask(tab, HOSTILE)
        shown = [text.text_content() for text in tab.query_selector_all("main .text")]
        assert shown == [HOSTILE] * 6
        assert tab.query_selector_all("main :is(img, svg, script, iframe, a)") == []
        assert tab.evaluate("window.hacked") is None and not errors
        assert requests and all(url.startswith(served.url) for url in requests)
        # Were a text ever to become markup, it could still run and load nothing.
        for attempt in (
            "document.body.innerHTML = '<b>'",
            "document.body.setAttribute('onclick', '1')",
        ):
            ran = tab.evaluate(
                f"() => {{ try {{ {attempt}; return 1 }} catch (e) {{ return e.name }} }}"
            )
            assert ran == "TypeError", attempt
        blocked = tab.evaluate("""() => new Promise((done) => {
          const blocked = new Set();
          addEventListener("securitypolicyviolation", (event) => {
            if (blocked.add(event.effectiveDirective).size === 3) done([...blocked].sort());
          });
          new Image().src = "/x.png";
          fetch("http://127.0.0.1:9/").catch(() => 0);
          document.head.append(Object.assign(document.createElement("style"), {textContent: "b{}"}));
        })""")
        assert blocked == ["connect-src", "img-src", "style-src-elem"]


# Contrast of each visible text with what is behind it, as WCAG 2 computes it; those below 4.5.
FAINT = """() => {
  const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    const color = rgba(getComputedStyle(element).backgroundColor);
    return color[3] === 0 ? behind(element.parentElement) : color;
  };
  return [...document.querySelectorAll("body *")].filter((element) => {
    if (!element.checkVisibility() || !element.textContent.trim()) return false;
    const [a, b] = [rgba(getComputedStyle(element).color), behind(element)].map(luminance);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((element) => element.outerHTML.slice(0, 100));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_both_languages(browser, tokenizer, scheme):
    batch = ScriptedBatch(
        tokenizer, chain_of_empathy.render(Chain(*["w" * 150, "一"] * 2, "w" * 150))
    )
    with (
        serve(batch, tokenizer, limit=2000) as served,
        visit(browser, served, color_scheme=scheme, **PHONE) as tab,
    ):
        answer_with(tab, URGENT)
        ask(tab, "w" * 150)
        tab.unroute_all()
        ask(tab, "w" * 150)
        tab.click("details summary")
        for language, layer, other in (("zh-CN", "情绪与处境", "en"), ("en", "Emotions", "zh-CN")):
            assert tab.get_attribute("html", "lang") == language
            assert layer in tab.inner_text(".chain")
            for told in ("12356", {"zh-CN": "不是医生", "en": "not a clinician"}[language]):
                assert told in tab.inner_text("#standing")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 375
            assert tab.evaluate(FAINT) == []
            small = [
                button.inner_text()
                for button in tab.query_selector_all("button")
                if button.is_visible() and button.bounding_box()["height"] < 40
            ]
            assert not small
            assert tab.get_attribute("#language", "lang") == other
            tab.click("#language")
        dark = (
            tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
        tab.click("#language")
        tab.on("dialog", lambda dialog: dialog.accept())
        tab.reload()
        assert tab.get_attribute("html", "lang") == "en"  # it is remembered


def answer_with(tab, guard, content="我在。", end="data: [DONE]\n\n", status=200):
    """Lets a stream with a guard's message, or an error of that status, stand for the server."""
    if status != 200:
        body = json.dumps({"error": {"code": "busy", "guard": guard}})
        headers = {"Retry-After": "7"}
    else:
        message = guard["message"]
        deltas = [
            {"role": "assistant", "content": message and f"{message}\n\n", "guard": guard},
            {"reasoning_content": "累", "layer": "L1"},
            {"content": content},
        ]
        events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        events[-1]["choices"][0]["finish_reason"] = "stop"
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
        headers = {"Content-Type": "text/event-stream"}
    tab.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=status, headers=headers, body=body
    ))  # fmt: skip


def answer_health(tab, state):
    tab.route("**/health", lambda route: route.fulfill(json=state))


def test_what_the_guard_says_stands_first(browser, tokenizer):
    with serve(ScriptedBatch(tokenizer, TEXT), tokenizer) as served:
        with visit(browser, served, **PHONE) as tab:
            answer_with(tab, URGENT)
            ask(tab, QUESTION * 20)
            banner = tab.locator(".reply > .banner.urgent[role=alert]")
            assert URGENT["message"] in banner.text_content()
            assert banner.locator("a").get_attribute("href") == "tel:12356"
            above, box, below = (
                tab.locator(place).bounding_box()
                for place in ("#standing", ".banner.urgent", "#composer")
            )
            assert above["y"] + above["height"] <= box["y"] + 1  # in sight
            assert box["y"] + box["height"] <= below["y"] + 1
            assert answers(tab) == ["我在。"]
            gentle = {"code": "gentle", "message": HOSTILE, "held_back": ["dosage"]}
            answer_with(tab, gentle)
            ask(tab, QUESTION)
            note = tab.locator(".turn:last-child .banner.gentle[role=note]")
            assert HOSTILE in note.text_content() and answers(tab)[1] == "我在。"
            assert "拦下" in tab.inner_text(".turn:last-child .reply")
            answer_with(tab, {"code": "none", "message": None, "held_back": []})
            ask(tab, QUESTION)
            assert tab.locator(".turn:last-child .banner").count() == 0
            answer_with(tab, URGENT, status=429)
            ask(tab, QUESTION)
            assert URGENT["message"] in tab.text_content("#problem .banner.urgent")
            assert "7" in tab.inner_text("#problem .problem")
        for state in ("on", "off"):
            with visit(browser, served) as tab:
                answer_health(tab, {"guard": state})
                with tab.expect_response("**/health"):
                    tab.reload()
                expected = "hidden" if state == "on" else "visible"
                tab.wait_for_selector("#unguarded", state=expected)


def test_the_conversation_is_saved_from_the_page(browser, tokenizer, tmp_path):
    with serve(ScriptedBatch(tokenizer, TEXT), tokenizer) as served, visit(browser, served) as tab:
        answer_with(tab, URGENT)
        ask(tab, "# a <b> *c*\n- d")
        tab.unroute_all()
        ask(tab, QUESTION)
        saved = {}
        for button, ending in (("#save-text", ".md"), ("#save-json", ".json")):
            with tab.expect_download() as download:
                tab.click(button)
            assert download.value.suggested_filename.endswith(ending)
            download.value.save_as(tmp_path / ending)
            saved[ending] = (tmp_path / ending).read_text(encoding="utf-8")
    told = re.sub(r"  $", "", saved[".md"], flags=re.MULTILINE)
    for part in (
        r"\# a \<b\> \*c\*" "\n" r"\- d", QUESTION, CHAIN.L1, "### L4 回应策略", CHAIN.answer,
        "> " + URGENT["message"].replace("\n", "\n> "),
    ):  # fmt: skip
        assert part in told
    record = json.loads(saved[".json"])
    first, second = record["turns"]
    assert record["model"] == MODEL and first["question"] == "# a <b> *c*\n- d"
    assert first["guard"] == URGENT and first["answer"] == "我在。"
    assert {name: second[name] for name in LAYERS} == {
        name: getattr(CHAIN, name) for name in LAYERS
    }
    assert (second["answer"], second["rule"], second["ended"]) == (CHAIN.answer, None, "stop")


def test_errors_are_told_and_lose_nothing(browser, tokenizer):
    batch = ScriptedBatch(tokenizer, TEXT)
    with serve(batch, tokenizer, max_queue=2) as served, visit(browser, served) as tab:

        def fails(question, words):
            ask(tab, question)
            assert re.search(words, tab.inner_text("#problem"))
            assert tab.input_value("#text") == question and answers(tab) == []

        fails("啊" * 700, "缩短")
        tab.context.set_offline(True)
        fails(QUESTION, "连不上")
        tab.context.set_offline(False)
        served.worker.reserve(2)
        fails(QUESTION, r"\d+ 秒后")
        served.worker.release(2)
        tab.click("#problem button")
        tab.wait_for_selector(IDLE)
        assert answers(tab) == [CHAIN.answer] and tab.input_value("#text") == ""
        answer_with(tab, {"code": "none", "message": None}, content="听起来", end="")
        ask(tab, QUESTION)
        assert "连接中断" in tab.inner_text(".turn:last-child") and answers(tab)[1] == "听起来"
        tab.unroute_all()
        tab.click(".turn:last-child button")
        tab.wait_for_selector(IDLE)
        assert answers(tab) == [CHAIN.answer] * 2
        batch.error = RuntimeError("broken")
        ask(tab, QUESTION)
        assert "故障" in tab.inner_text("#problem") and tab.input_value("#text") == QUESTION


def test_a_reply_that_is_late_keeps_what_came(browser, tokenizer):
    batch = ScriptedBatch(tokenizer, "啊。" * 1500, slice_seconds=0.05)
    with serve(batch, tokenizer, limit=9999, deadline=1.0) as served, visit(browser, served) as tab:
        ask(tab, QUESTION)
        assert answers(tab)[0].startswith("啊。啊") and "规定的时间" in tab.inner_text(".reply")


def test_the_token_is_asked_for_and_kept_in_the_tab(browser, tokenizer):
    with (
        serve(ScriptedBatch(tokenizer, TEXT), tokenizer, token="geheim-密") as served,
        visit(browser, served) as tab,
    ):
        tab.wait_for_selector("#door:not([hidden])")
        ask(tab, QUESTION)
        assert "令牌" in tab.inner_text("#problem") and tab.input_value("#text") == QUESTION
        tab.fill("#token", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#problem :text('不对')")
        tab.fill("#token", "geheim-密")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#door", state="hidden")
        tab.click("#send")
        tab.wait_for_selector(IDLE)
        assert answers(tab) == [CHAIN.answer]
        tab.reload()
        tab.wait_for_selector(f"#model:text('{MODEL}')")
        assert answers(tab) == []  # nothing of the conversation is kept
        kept = tab.evaluate("[Object.keys(sessionStorage), Object.keys(localStorage)]")
        assert kept == [["empathy_jax-token"], []]
