import html.parser

from empathy_jax.evaluation import compare, comparison_report
from tests.evaluation.small_comparison import HOSTILE, make_folder, make_pages, records


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


def test_several_runs_have_a_section_of_their_own(tmp_path):
    paths = [make_folder(tmp_path, name) for name in ("base", "copy")]
    one, two = (compare.read_system("both", path) for path in paths)
    systems = [compare.join([one, two]), compare.read_system("copy", paths[1])]
    questions = {record["id"]: record for record in records()}
    found = compare.compare(systems, questions, "zh", seed=0)
    page = comparison_report.render(found, systems, questions, seed=0)
    text = " ".join("".join(_Page(page).data).split())
    before, section = text.split("Over seeds The mean over")
    section = section.split("All measures")[0]
    assert "100.0 %, 75.0 %" in section and "87.5 %" in section
    assert "both less copy" in before and "both less copy" not in section  # one run is no pair
    assert text.count("Of several runs the first.") == 2
