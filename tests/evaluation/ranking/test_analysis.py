import json
import subprocess
import sys

import numpy as np
import pytest

from empathy_jax import files
from empathy_jax.evaluation.ranking import __main__ as command
from empathy_jax.evaluation.ranking import analysis, report, study
from tests.conftest import ROOT
from tests.evaluation.ranking.test_study import make_questions

SYSTEMS = [f"system-{name}" for name in "abcdef"]


def vote_on(public, key, utilities, seed=0, careless=()):
    """Votes of raters who rank by utility plus Gumbel noise, put foils last, and of careless ones."""
    rng = np.random.default_rng(seed)
    found = {}
    for rater, entry in public["raters"].items():
        for trial in entry["trials"]:
            secret = key["trials"][trial["trial"]]
            cards = [card for card, _ in trial["cards"]]
            rankings = {}
            for dimension in public["dimensions"]:
                worth = [
                    rng.gumbel() + (0 if rater in careless else utilities[secret["cards"][card][0]])
                    for card in cards
                ]
                if secret["foil"] and rater not in careless:
                    worth[cards.index(secret["foil"])] = -99
                if secret["foil"] and rater in careless:
                    worth[cards.index(secret["foil"])] = 99
                rankings[dimension] = [cards[index] for index in np.argsort(worth)[::-1]]
            found[rater, trial["trial"]] = {
                "trial": trial["trial"],
                "revision": 1,
                "rankings": rankings,
                "seconds": 30,
            }
    return found


def _build(**settings):
    chosen = {"raters": 8, "raters_per_item": 8, "checks": 2, "repeats": 3} | settings
    return study.build(SYSTEMS, make_questions(32), study.Settings(**chosen))


def test_six_equal_systems_are_at_chance():
    public, key = _build()
    found = analysis.analyse(public, key, vote_on(public, key, np.zeros(6)))
    assert found["votes"] == found["votes_expected"] == 240
    for rows in found["dimensions"].values():
        wins = np.array([row["win_at_1"]["value"] for row in rows.values()])
        np.testing.assert_allclose(wins, 1 / 6, atol=4 * np.sqrt(5 / 36 / 240))
        assert wins.sum() == pytest.approx(1)
    for both in found["agreement"].values():
        assert both["kept"]["kendalls_w"]["value"] == pytest.approx(1 / 8, abs=0.05)
        assert abs(both["kept"]["krippendorff_alpha"]["value"]) < 0.06


def test_known_strengths_are_found_and_foils_and_repeats_do_not_count():
    public, key = _build()
    truth = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.5])
    found = analysis.analyse(public, key, vote_on(public, key, truth))
    rows = [found["dimensions"]["overall"][name] for name in SYSTEMS]
    for row, expected in zip(rows, truth - truth.mean(), strict=True):
        assert row["log_strength"]["value"] == pytest.approx(expected, abs=0.35)
        assert row["log_strength"]["low"] < row["log_strength"]["value"]
    share = np.exp(truth) / np.exp(truth).sum()
    assert rows[0]["win_at_1"]["low"] < share[0] < rows[0]["win_at_1"]["high"]
    assert found["agreement"]["overall"]["kept"]["kendalls_w"]["value"] > 0.5
    assert all(row["repeats"] == 3 and row["tau"] > 0 for row in found["rater_details"].values())


def test_careless_raters_are_left_out_and_agreement_shows_it():
    public, key = _build()
    cast = vote_on(public, key, np.linspace(2, -2, 6), careless=("r002", "r005"))
    found = analysis.analyse(public, key, cast)
    assert found["excluded"] == ["r002", "r005"] and found["raters"] == 6
    both = found["agreement"]["overall"]
    for measure in ("kendalls_w", "krippendorff_alpha"):
        assert both["kept"][measure]["value"] > both["everyone"][measure]["value"] + 0.05
    assert "r002, r005" in report.tables(found)


def test_a_card_of_two_systems_ties_them():
    questions = [
        study.Question(f"q{n}", f"问 {n}", (f"同 {n}", f"同 {n}", f"异 {n}")) for n in range(4)
    ]
    settings = study.Settings(raters=2, raters_per_item=2, checks=0, repeats=0)
    public, key = study.build(["a", "b", "c"], questions, settings)
    found = analysis.analyse(public, key, vote_on(public, key, np.array([9.0, 9.0, 0.0])))
    rows = found["dimensions"]["overall"]
    assert rows["a"] == rows["b"]
    assert rows["a"]["win_at_1"]["value"] == 0.5 and rows["c"]["win_at_1"]["value"] == 0
    assert rows["a"]["mean_rank"]["value"] == 1.5 and rows["c"]["mean_rank"]["value"] == 3
    assert rows["a"]["log_strength"]["value"] is None  # always before c: no finite strength


def test_the_key_of_another_study_is_refused():
    public, _ = _build()
    _, other = _build(seed=1)
    with pytest.raises(ValueError, match="key is of the study"):
        analysis.analyse(public, other, {})
    public, key = _build()
    with pytest.raises(ValueError, match="no vote on an item is left"):
        analysis.analyse(public, key, {})


def test_from_generations_to_tables_by_the_command_line(tmp_path, capsys):
    for index, system in enumerate(SYSTEMS):
        rows = [
            {"id": q.id, "question": q.text, "answer": q.answers[index], "sample": 0, "rule": None}
            for q in make_questions(12)
        ]
        files.write_jsonl(tmp_path / f"{system}.jsonl", rows)
    systems = [f"--system={name}={tmp_path / name}.jsonl" for name in SYSTEMS]
    folder = tmp_path / "study"
    command.main(["build", *systems, "--raters=3", f"--output={folder}"])
    told = capsys.readouterr().out
    assert "12 questions can be used" in told and "system-f: " in told
    public = study.read(folder / "study.json")
    key = json.loads((folder / "key.json").read_text())
    assert not any(code in told for code in key["codes"].values())

    command.main(["offline", f"--study={folder / 'study.json'}", f"--output={tmp_path / 'pages'}"])
    assert sorted(p.name for p in (tmp_path / "pages").iterdir()) == [
        "r001.html",
        "r002.html",
        "r003.html",
    ]
    cast = vote_on(public, key, np.linspace(1, -1, 6))
    lines = [{"study": public["study"], "rater": who, **vote} for (who, _), vote in cast.items()]
    files.write_jsonl(folder / "votes.jsonl", lines)
    command.main(
        [
            "analyse",
            f"--study={folder / 'study.json'}",
            f"--key={folder / 'key.json'}",
            f"--output={tmp_path / 'result'}",
            str(folder / "votes.jsonl"),
        ]
    )
    made = {path.name for path in (tmp_path / "result").iterdir()}
    assert made == {
        "analysis.json",
        "tables.md",
        "win_at_1.png",
        "mean_rank.png",
        "log_strength.png",
    }
    tables = (tmp_path / "result" / "tables.md").read_text()
    assert tables.count("| system |") == 5 and tables.count("| chance | 16.7 | 33.3 | 50.0") == 5


def test_errors_are_one_line_that_says_what_to_change(tmp_path):
    with pytest.raises(SystemExit, match="a ranking needs two systems"):
        command.main(["build", f"--system=a={tmp_path}", f"--output={tmp_path}"])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SystemExit, match="no study of this version"):
        command.main(["serve", f"--study={tmp_path / 'x.json'}"])


def test_names_of_systems_are_only_names_in_markdown():
    public, key = study.build(
        ["<b>a|b</b>", "[x](y)"],
        make_questions(4, 2),
        study.Settings(raters=2, raters_per_item=2, checks=0, repeats=0),
    )
    text = report.tables(analysis.analyse(public, key, vote_on(public, key, np.zeros(2))))
    assert "<b>" not in text and "[x]" not in text and "&#60;b&#62;a&#124;b" in text


def test_the_server_binds_to_loopback_unless_told_otherwise():
    assert command.parse(["serve", "--study=x"]).host == "127.0.0.1"
    done = subprocess.run(
        [sys.executable, "-m", "empathy_jax.evaluation.ranking", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "analyse" in done.stdout
