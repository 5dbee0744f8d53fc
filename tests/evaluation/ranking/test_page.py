"""The page in a real browser."""

import contextlib
import json
import re
import time

import pytest

from empathy_jax import files
from empathy_jax.evaluation.ranking import page
from tests.evaluation.ranking.small_study import HOSTILE, SYSTEMS, make_study
from tests.evaluation.ranking.test_server import serving

RATER = "r001"


@contextlib.contextmanager
def visit(browser, errors, **options):
    """A context whose pages' errors and blocked loads are collected."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 1000}, **options})
    context.set_default_timeout(60_000)
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on(
        "console",
        lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None,
    )
    yield context
    context.close()


@pytest.fixture
def study(tmp_path):
    """Port, public study, key and the file of votes."""
    public, key = make_study()
    with serving(public, tmp_path / "votes.jsonl") as port:
        yield port, public, key, tmp_path / "votes.jsonl"


def enter(context, port, code):
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{port}/#{code}")
    tab.click("#agree")
    return tab


def order(tab):
    return [grip.get_attribute("data-card") for grip in tab.query_selector_all("#list .grip")]


def confirm_all(tab):
    for _ in range(5):
        tab.click("#confirm")


def drag(tab, start, target):
    """Moves the row at `start` onto the row at `target` with the mouse."""
    boxes = [grip.bounding_box() for grip in tab.query_selector_all("#list .grip")]
    x = boxes[start]["x"] + 20
    tab.mouse.move(x, boxes[start]["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(x, boxes[target]["y"] + 10, steps=12)
    tab.mouse.up()


def stored(path):
    return list(files.read_jsonl(path))


def wait_stored(tab, path, count):
    """Until the server has stored so many votes."""
    deadline = time.monotonic() + 60
    while len(stored(path)) < count and time.monotonic() < deadline:
        tab.wait_for_timeout(20)
    assert len(stored(path)) == count


def test_ranking_by_mouse_keyboard_and_buttons(browser, study):
    port, public, key, path = study
    with visit(browser, errors := []) as context:
        tab = enter(context, port, key["codes"][RATER])
        shown = [card for card, _ in public["raters"][RATER]["trials"][0]["cards"]]
        a, b, c = shown
        assert tab.url == f"http://127.0.0.1:{port}/"  # without the code
        assert order(tab) == shown and tab.is_disabled("#submit")
        drag(tab, 0, 2)
        assert order(tab) == [b, c, a]
        tab.click("#confirm")  # identification: by keyboard
        tab.focus(f'.grip[data-card="{c}"]')
        tab.keyboard.press("ArrowUp")
        assert order(tab) == [a, c, b]
        tab.keyboard.press("1")
        assert order(tab) == [c, a, b]
        assert "1" in tab.inner_text("#announce")
        tab.click("#confirm")  # comforting: by buttons
        tab.click("#list li:first-child .step:nth-of-type(3)")
        assert order(tab) == [b, a, c]
        for _ in range(3):
            tab.click("#confirm")
        tab.click("#submit")
        wait_stored(tab, path, 1)
    (vote,) = stored(path)
    assert vote["rankings"] == {
        "fluency": [b, c, a],
        "identification": [c, a, b],
        "comforting": [b, a, c],
        "suggestion": shown,
        "overall": shown,
    }
    assert not errors


def test_ranking_by_touch_at_phone_width(browser, tmp_path):
    public, key = make_study(tuple(f"{name} 是一段很长的回答。" * 40 for name in "甲乙丙"))
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    path = tmp_path / "votes.jsonl"
    with serving(public, path) as port, visit(browser, errors := [], **phone) as context:
        tab = enter(context, port, key["codes"][RATER])
        wide = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
        tab.locator("#list").scroll_into_view_if_needed()
        before = order(tab)
        boxes = [grip.bounding_box() for grip in tab.query_selector_all("#list .grip")]
        assert all(box["height"] >= 24 for box in boxes)
        touch = context.new_cdp_session(tab)
        x, y = boxes[2]["x"] + 30, boxes[2]["y"] + 15
        touch.send("Input.dispatchTouchEvent", _touch("touchStart", x, y))
        for step in range(1, 13):
            at = y + (boxes[0]["y"] - boxes[2]["y"]) * step / 12
            touch.send("Input.dispatchTouchEvent", _touch("touchMove", x, at))
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert order(tab) == [before[2], before[0], before[1]]
    assert not errors


def _touch(kind, x, y):
    return {"type": kind, "touchPoints": [{"x": x, "y": y}]}


def test_a_closed_tab_resumes_where_it_was(browser, study):
    port, _, key, path = study
    with visit(browser, errors := []) as context:
        tab = enter(context, port, key["codes"][RATER])
        confirm_all(tab)
        tab.click("#submit")
        tab.click("#confirm")
        tab.focus("#list li:nth-child(3) .grip")
        tab.keyboard.press("1")
        draft = order(tab)
        wait_stored(tab, path, 1)
        tab.close()
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{port}/")  # the code is remembered, and so is the consent
        tab.wait_for_selector("#list")
        assert order(tab) == draft
        assert tab.inner_text("#count").startswith("1 /")
    assert len(stored(path)) == 1 and not errors


def test_votes_wait_for_a_server_that_is_away(browser, tmp_path):
    public, key = make_study()
    path = tmp_path / "votes.jsonl"
    with visit(browser, []) as context, serving(public, path) as port:
        tab = enter(context, port, key["codes"][RATER])
        context.set_offline(True)
        confirm_all(tab)
        tab.click("#submit")
        tab.wait_for_selector("#message:not([hidden])")
        assert stored(path) == []
        context.set_offline(False)
        wait_stored(tab, path, 1)
        tab.wait_for_selector("#message[hidden]", state="attached")


def test_a_whole_session_tells_no_system_and_asks_nobody_else(browser, study):
    port, public, key, path = study
    seen = []
    with visit(browser, errors := []) as context:
        context.on("request", lambda request: seen.append((request.url, request.post_data)))
        tab = enter(context, port, key["codes"][RATER])
        for _ in public["raters"][RATER]["trials"]:
            confirm_all(tab)
            tab.click("#submit")
        tab.wait_for_selector("#done")
        wait_stored(tab, path, len(public["raters"][RATER]["trials"]))
        html = tab.content()
    assert (
        len(stored(path))
        == len(public["raters"][RATER]["trials"])
        == len({line["trial"] for line in stored(path)})
    )
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url, _ in seen)
    told = json.dumps(seen) + html
    assert not any(name in told for name in SYSTEMS)
    assert not any(key["codes"][RATER] in url.split("#")[0] for url, _ in seen)
    assert not errors


def test_two_tabs_do_not_overwrite_each_other(browser, study):
    port, _, key, path = study
    with visit(browser, []) as one, visit(browser, []) as two:
        first, second = (enter(context, port, key["codes"][RATER]) for context in (one, two))
        confirm_all(first)
        first.click("#submit")
        wait_stored(first, path, 1)
        second.focus("#list li:nth-child(3) .grip")
        second.keyboard.press("1")
        confirm_all(second)
        second.click("#submit")
        second.wait_for_selector("#message:not([hidden])")
        second.click("#previous")  # what was stored is shown, not what this tab had
        assert order(second) == stored(path)[0]["rankings"]["fluency"]
        second.click("#next")
        confirm_all(second)
        second.click("#submit")
        wait_stored(second, path, 2)
        second.wait_for_selector("#message[hidden]", state="attached")


def test_an_unknown_code_is_told(browser, study):
    with visit(browser, []) as context:
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{study[0]}/#wrong")
        tab.wait_for_selector("#message:not([hidden])")
        tab.click("#language")
        assert "not known" in tab.inner_text("#message")
        tab.fill("#code", study[2]["codes"][RATER])
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#agree")
        assert "12356" in tab.inner_text("#main")


def test_hostile_texts_are_shown_and_do_nothing(browser, tmp_path):
    huge = "长" * 300_000
    public, key = make_study((HOSTILE + "a", HOSTILE + "b", huge))
    public["title"] = HOSTILE
    offline = tmp_path / "offline.html"
    offline.write_text(page.render_offline(public, RATER), encoding="utf-8")
    with serving(public, tmp_path / "votes.jsonl") as port, visit(browser, errors := []) as context:
        for url in (f"http://127.0.0.1:{port}/#{key['codes'][RATER]}", offline.as_uri()):
            tab = context.new_page()
            tab.goto(url)
            tab.click("#agree")
            tab.wait_for_selector("#list")
            texts = [text.text_content() for text in tab.query_selector_all(".answer .text")]
            assert sorted(len(text) for text in texts)[-1] > 300_000
            assert sum(HOSTILE in text for text in texts) == 2
            assert tab.evaluate("window.hacked") is None
            assert tab.query_selector_all("img, svg, iframe, a") == []
            tab.close()
    assert not errors


def test_the_policy_blocks_what_is_injected(browser, study):
    """Were a text ever to become markup, it could still run and load nothing."""
    with visit(browser, []) as context:
        tab = enter(context, study[0], study[2]["codes"][RATER])
        tab.evaluate(
            """() => { window.blocked = [];
            addEventListener('securitypolicyviolation', (event) =>
              window.blocked.push(event.effectiveDirective)) }"""
        )
        for attempt in (
            "document.body.innerHTML = '<img src=x onerror=\"window.hacked = 1\">'",
            "document.body.setAttribute('onclick', 'window.hacked = 1')",
            "document.createElement('script').text = 'window.hacked = 1'",
        ):
            outcome = tab.evaluate(f"() => {{ try {{ {attempt} }} catch (e) {{ return e.name }} }}")
            assert outcome == "TypeError", attempt
        tab.evaluate(
            "() => { new Image().src = '/x.png'; fetch('http://127.0.0.1:9/').catch(() => 0) }"
        )
        tab.wait_for_function("window.blocked.length >= 4")
        assert {"img-src", "connect-src"} <= set(tab.evaluate("window.blocked"))
        assert tab.evaluate("window.hacked") is None


def test_the_offline_file_keeps_votes_and_saves_them(browser, tmp_path):
    public, _ = make_study()
    path = tmp_path / "rater.html"
    path.write_text(page.render_offline(public, RATER), encoding="utf-8")
    with visit(browser, errors := [], accept_downloads=True) as context:
        tab = context.new_page()
        tab.goto(path.as_uri())
        tab.click("#agree")
        confirm_all(tab)
        tab.click("#submit")
        tab.close()
        tab = context.new_page()
        tab.goto(path.as_uri())
        for _ in public["raters"][RATER]["trials"][1:]:
            confirm_all(tab)
            tab.click("#submit")
        with tab.expect_download() as download:
            tab.click("#download")
        download.value.save_as(tmp_path / "votes.json")
    from empathy_jax.evaluation.ranking import votes

    found = votes.read([tmp_path / "votes.json"], public)
    assert {trial for _, trial in found} == {
        trial["trial"] for trial in public["raters"][RATER]["trials"]
    }
    assert not errors


def test_light_and_dark_and_both_languages(browser, study):
    pages = {}
    for scheme in ("light", "dark"):
        with visit(browser, [], color_scheme=scheme) as context:
            tab = enter(context, study[0], study[2]["codes"][RATER])
            pages[scheme] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert "流畅" in tab.inner_text("#ranking")
            tab.click("#language")
            assert "Fluency" in tab.inner_text("#ranking")
            assert tab.evaluate("document.documentElement.lang") == "en"
            assert re.search("12356", tab.inner_text("#crisis"))
    assert pages["light"] != pages["dark"]
