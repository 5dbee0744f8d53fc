"""A hub on loopback: what the library `huggingface_hub` asks for when it uploads a folder.

Repositories live in memory. A request with another token than `TOKEN` is refused, a card whose YAML
head cannot be read too, and a large file whose digest is not the one that was announced.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_not_a_real_token"


class Hub:
    """State of the hub.

    Attributes:
      url: where it answers.
      repositories: name to {path: bytes}.
      visibility: name to what it was created with.
      requests: "METHOD path" of every request, in order.
    """

    def __init__(self):
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.requests: list[str] = []
        self._large: dict[str, bytes] = {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON value for a request that bears the token."""
        for wanted, pattern, handler in (
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("GET", r"/api/models/(.+)/tree/main", self._tree),
            ("POST", r"/api/models/(.+)/preupload/main", self._preupload),
            ("POST", r"/api/models/(.+)/commit/main", self._commit),
            ("POST", r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/large/(\w+)", self._put),
        ):
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                return handler(body, *found.groups())
        return 404, {"error": f"the fake hub knows no {method} {path}"}

    def _create(self, body: bytes) -> tuple[int, object]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        self.repositories.setdefault(name, {})
        self.visibility.setdefault(name, asked.get("visibility", "public"))
        return status, {"url": f"{self.url}/{name}"}

    def _validate(self, body: bytes) -> tuple[int, object]:
        head = json.loads(body)["content"].split("---\n")[1]
        try:
            yaml.safe_load(head)
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _tree(self, body: bytes, name: str) -> tuple[int, object]:
        held = self.repositories[name]
        return 200, [
            {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
            for path, data in held.items()
        ]

    def _preupload(self, body: bytes, name: str) -> tuple[int, object]:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}

    def _batch(self, body: bytes, name: str) -> tuple[int, object]:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.url}/large/{asked['oid']}"}}}
            for asked in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _put(self, body: bytes, oid: str) -> tuple[int, object]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "another digest"}
        self._large[oid] = body
        return 200, {}

    def _commit(self, body: bytes, name: str) -> tuple[int, object]:
        held = self.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                held[value["path"]] = self._large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del held[value["path"]]
        return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1"}


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/large/") or self.headers["Authorization"] == f"Bearer {TOKEN}":
                status, value = hub.answer(self.command, path, body)
            else:
                status, value = 401, {"error": "Invalid credentials"}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _handle

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
