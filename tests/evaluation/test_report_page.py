"""The pages of reports in a real browser: wide and on a phone, light, dark and printed."""

import pytest

from empathy_jax import files
from tests.evaluation.small_comparison import HOSTILE, make_pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name to the file of a page whose texts are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {}
    for name, page in make_pages(folder).items():
        paths[name] = folder / f"{name}.html"
        files.write_text(paths[name], page)
    return paths


VIEWS = ((1200, "light", "screen"), (360, "dark", "screen"), (800, "dark", "print"))


def _visit(browser, path, width, scheme, media):
    """A tab with the page, and everything that it asked for, said or ran into."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    seen = []
    context.on("console", lambda line: seen.append(line.text))
    context.on("weberror", lambda error: seen.append(str(error.error)))
    context.on("dialog", lambda dialog: seen.append(dialog.message))
    context.on("request", lambda request: seen.append(request.url))
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.emulate_media(media=media)
    return tab, seen


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_opens_from_disk_and_fits(browser, pages, name):
    colours = set()
    for width, scheme, media in VIEWS:
        tab, seen = _visit(browser, pages[name], width, scheme, media)
        assert seen == [pages[name].as_uri()]  # nothing ran, nothing was fetched
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        colours.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        # Plots have the colour of the page's letters.
        letters = tab.evaluate("getComputedStyle(document.body).color")
        drawn = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert drawn == letters
        assert HOSTILE in tab.inner_text("body").replace("\n", " ")
        if media == "print":  # what is folded up on the screen is printed
            hidden = "[...document.querySelectorAll('details table')].filter(t => !t.offsetHeight)"
            assert tab.evaluate(f"{hidden}.length") == 0
        tab.context.close()
    assert colours == {"rgb(255, 255, 255)", "rgb(20, 23, 28)"}
