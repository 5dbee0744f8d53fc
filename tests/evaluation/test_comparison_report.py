import html.parser

from tests.evaluation.small_comparison import HOSTILE, make_pages


class _Page(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.data = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_shows_systems_differences_and_hostile_text_as_text(tmp_path):
    page = make_pages(tmp_path)["comparison"]
    parsed = _Page(page)
    text = " ".join("".join(parsed.data).split())
    assert not {"script", "img", "link", "iframe"} & parsed.tags
    assert not {"src", "onerror"} & {name for name, _ in parsed.attributes}
    assert text.count(HOSTILE) >= 2 and "base less copy" in text
    assert "no valid chain: missing_L2" in text and "RL: reward" in page
