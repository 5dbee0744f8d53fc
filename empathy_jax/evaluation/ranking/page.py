"""The raters' page: one HTML file with its style and script inside, nothing fetched from elsewhere.

Texts reach the script as JSON, in which `<`, `>` and `&` are escaped, or through the server's API;
the script puts them on the page as text nodes. The policy runs and applies only what bears this
page's nonce, and connects to the page's own server at most.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from empathy_jax.evaluation.ranking import study as studies

ASSETS = Path(__file__).with_name("assets")


def new_nonce() -> str:
    """A fresh nonce: a policy with one that was used before protects nothing."""
    return secrets.token_urlsafe(18)


def policy(nonce: str, served: bool) -> str:
    """Content-Security-Policy of the page that a server sends, or of the file that is opened."""
    connect = "'self'" if served else "'none'"
    rules = [
        "default-src 'none'",
        f"script-src 'nonce-{nonce}'",
        f"style-src 'nonce-{nonce}'",
        f"connect-src {connect}",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ]
    return "; ".join(rules + (["frame-ancestors 'none'"] if served else []))


def session(
    public: Mapping[str, Any], rater: str, stored: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the page shows to one rater: the trials in order, and the votes that are stored."""
    return {
        "study": public["study"],
        "rater": rater,
        "trials": studies.trials_of(public, rater),
        "votes": dict(stored),
    }


def render(public: Mapping[str, Any], nonce: str, session: Mapping[str, Any] | None) -> str:
    """The page as HTML.

    Args:
      public: what `study.json` holds.
      nonce: of the policy that goes with the page.
      session: the rater's session, for a page that works from a file; None for one that asks a
        server for it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    texts = json.loads((ASSETS / "texts.json").read_text(encoding="utf-8"))
    settings = {
        "title": public["title"],
        "language": public["language"],
        "dimensions": public["dimensions"],
        "texts": texts,
        "session": session,
    }
    return environment.from_string(_asset("page.html")).render(
        language="zh-CN" if public["language"] == "zh" else "en",
        title=public["title"] or texts[public["language"]]["title"],
        nonce=nonce,
        policy=policy(nonce, served=False) if session is not None else None,
        style=_asset("page.css"),
        script=_asset("page.js"),
        settings=settings,
    )


def render_offline(public: Mapping[str, Any], rater: str) -> str:
    """The page of one rater as a file that needs no server; votes are saved from it as JSON."""
    return render(public, new_nonce(), session(public, rater, {}))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
