import contextlib
import http.client
import json
import re
import socket
import threading
import time

import pytest
import uvicorn

from empathy_jax import files
from empathy_jax.evaluation.ranking import page, server, votes
from tests.evaluation.ranking.small_study import HOSTILE, SYSTEMS, make_study, make_vote

PUBLIC, KEY = make_study()
RATER, CODE = "r001", KEY["codes"]["r001"]


@contextlib.contextmanager
def serving(public, path):
    """A real server on a free loopback port."""
    log = votes.VoteLog(path, public)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(server.make_app(public, log), log_level="error", lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()
    log.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serving(PUBLIC, tmp_path_factory.mktemp("votes") / "votes.jsonl") as port:
        yield port


def ask(port, method, path, body=None, code=CODE):
    """Status, headers and body of a reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {code}"} if code else {}
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def test_the_page_has_a_fresh_nonce_and_a_strict_policy(port):
    nonces = set()
    for _ in range(2):
        status, headers, body = ask(port, "GET", "/", code=None)
        policy = headers["content-security-policy"]
        (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
        nonces.add(nonce)
        assert status == 200 and body.decode().count(f'nonce="{nonce}"') == 3
    assert len(nonces) == 2
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "code",
    [None, "", "x", CODE[:-1], KEY["codes"]["r001"].upper()],
    ids=["none", "empty", "another", "shortened", "upper case"],
)
def test_without_a_code_nothing_is_told(port, code):
    for method, path in (("GET", "/api/session"), ("POST", "/api/votes")):
        status, _, body = ask(port, method, path, b"{}", code)
        assert status == 401 and json.loads(body) == {"detail": "unknown code"}


def test_a_rater_gets_the_own_trials_only(port):
    status, _, body = ask(port, "GET", "/api/session")
    session = json.loads(body)
    assert status == 200 and session["rater"] == RATER
    own = [trial["trial"] for trial in PUBLIC["raters"][RATER]["trials"]]
    assert [trial["trial"] for trial in session["trials"]] == own
    vote = json.dumps(make_vote(PUBLIC, "r002"))
    assert ask(port, "POST", "/api/votes", vote)[0] == 422


def test_nothing_tells_which_system_wrote_what(port):
    for path in ("/", "/api/session", "/docs", "/openapi.json", "/key.json", "/study.json"):
        status, headers, body = ask(port, "GET", path)
        told = f"{headers}{body.decode()}"
        assert not any(word in told for word in (*SYSTEMS, "foil", "repeat_of", "code_sha256"))
        assert status == (200 if path in ("/", "/api/session") else 404)
    trials = json.loads(ask(port, "GET", "/api/session")[2])["trials"]
    assert all(set(trial) == {"trial", "question", "cards"} for trial in trials)
    assert all(set(card) == {"id", "text"} for trial in trials for card in trial["cards"])


def test_a_vote_is_stored_once_and_given_back(tmp_path):
    path, vote = tmp_path / "votes.jsonl", make_vote(PUBLIC, RATER)
    with serving(PUBLIC, path) as port:
        for stored in (True, False):
            status, _, body = ask(port, "POST", "/api/votes", json.dumps(vote))
            assert (status, json.loads(body)) == (200, {"stored": stored})
        other = make_vote(PUBLIC, RATER)
        other["rankings"]["overall"].reverse()
        status, _, body = ask(port, "POST", "/api/votes", json.dumps(other))
        assert status == 409 and json.loads(body)["vote"] == vote
    assert len(list(files.read_jsonl(path))) == 1
    with serving(PUBLIC, path) as port:  # another process, the next day
        session = json.loads(ask(port, "GET", "/api/session")[2])
        assert session["votes"] == {vote["trial"]: vote}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b"[" * 60_000, 422),
        (b" " * 70_000, 413),
        (json.dumps(make_vote(PUBLIC, RATER) | {"seconds": float("inf")}).encode(), 422),
    ],
)
def test_bad_bodies_are_refused(port, body, status):
    assert ask(port, "POST", "/api/votes", body)[0] == status


def test_a_full_disk_is_told_and_the_server_lives(port, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    vote = json.dumps(make_vote(PUBLIC, RATER, place=2))
    with monkeypatch.context() as patch:
        patch.setattr(votes.VoteLog, "_append", full)
        assert ask(port, "POST", "/api/votes", vote)[0] == 507
    assert ask(port, "POST", "/api/votes", vote)[0] == 200


def test_hostile_texts_cannot_leave_their_json():
    public, _ = make_study(tuple(f"{HOSTILE}{n}" for n in range(3)))
    public = public | {"title": HOSTILE}
    plain, _ = make_study()
    for session in (None, page.session(public, RATER, {})):
        html = page.render(public, "n", session)
        tame = page.render(plain | {"title": "x"}, "n", session and page.session(plain, RATER, {}))
        assert re.findall(r"<[a-zA-Z!/]+", html) == re.findall(r"<[a-zA-Z!/]+", tame)
        data = re.search(r'id="settings" nonce="n">(.*)</script>\n<script', html, re.DOTALL)[1]
        assert not set("<>&\u2028\u202e\x00") & set(data)
        assert json.loads(data)["title"] == HOSTILE
    assert sorted(
        card["text"] for trial in json.loads(data)["session"]["trials"] for card in trial["cards"]
    )[0].endswith(HOSTILE + "0")


def test_the_offline_file_connects_to_nothing():
    html = page.render_offline(PUBLIC, RATER)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "connect-src &#39;none&#39;" in policy and "default-src &#39;none&#39;" in policy
    assert not re.search(r"https?://|url\(|@import|src=|innerHTML", html)
    assert not any(name in html for name in SYSTEMS) and "12356" in html
    assert KEY["codes"][RATER] not in html


def test_interface_texts_are_whole_in_both_languages():
    texts = json.loads((page.ASSETS / "texts.json").read_text(encoding="utf-8"))
    assert texts["zh"].keys() == texts["en"].keys()
    assert all("12356" in texts[language]["crisis"] for language in texts)
    script = (page.ASSETS / "page.js").read_text(encoding="utf-8")
    said = set(re.findall(r'(?:say|tell)\("(\w+)"', script))
    assert said <= texts["en"].keys()
