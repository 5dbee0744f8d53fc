"""The chat page: one HTML file with its style and script inside, nothing fetched from elsewhere.

What people and models write reaches the page through the server's API, and the script puts it there
as text nodes. The policy runs and applies only the one script and the one style, by their hashes,
and connects to the page's own server at most.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jinja2

from empathy_jax import chain_of_empathy

ASSETS = Path(__file__).with_name("assets")


def render(log_texts: bool) -> tuple[str, Mapping[str, str]]:
    """The page as HTML, and the headers that it must be sent with.

    Args:
      log_texts: whether the server writes conversations to its log, which the page says.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    style, script = _asset("chat.css"), _asset("conversation.js") + _asset("chat.js")
    html = environment.from_string(_asset("chat.html")).render(
        style=style,
        script=script,
        promise="logged" if log_texts else "private",
        settings={"layers": chain_of_empathy.LAYERS, "texts": json.loads(_asset("texts.json"))},
    )
    return html, {
        "Content-Security-Policy": _policy(style, script),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def _policy(style: str, script: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
