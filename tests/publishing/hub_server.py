"""A server that speaks the part of the Hugging Face hub's protocol that uploads and downloads of models need.

Files go in by `preupload`, for large ones git-lfs's batch and a PUT, and one commit; they come out by the list of a
revision's files and by `resolve`. Repositories are in memory. `fail` answers with a status instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repositories of a server, and what was asked of it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        """Content by SHA-256, put before the commit that names it."""
        self.seen: list[tuple[str, str]] = []
        self.fail = 0
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content of the answer to a request."""
        self.seen.append((method, path))
        if self.fail:
            return self.fail, {"X-Error-Message": "You may not write here."}, b'{"error": "You may not write here."}'
        path = path.partition("?")[0]
        for pattern, reply in (
            ("POST /api/repos/create", self.create),
            (r"POST /api/models/(.+)/preupload/main", self.preupload),
            (r"POST /(.+)\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /large/(.+)", self.put),
            (r"POST /api/models/(.+)/commit/main", self.commit),
            (r"GET /api/models/(.+)/revision/main", self.revision),
            (r"GET /api/models/([^/]+/[^/]+)/tree/[^/]+", self.tree),
            (r"GET /api/models/([^/]+/[^/]+)", self.revision),
            (r"(?:HEAD|GET) /(.+)/resolve/[^/]+/(.+)", self.resolve),
            ("POST /api/validate-yaml", lambda _: {"errors": [], "warnings": []}),
        ):
            if match := re.fullmatch(pattern, f"{method} {path}"):
                found = reply(body, *match.groups())
                return found if isinstance(found, tuple) else (200, {}, json.dumps(found).encode())
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.files.setdefault(name, {})
        self.is_private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def preupload(self, body: bytes, _repo: str) -> Any:
        def mode(file: dict[str, Any]) -> str:
            return "lfs" if file["path"].endswith(".safetensors") else "regular"

        files = json.loads(body)["files"]
        return {
            "files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False, "oid": None} for f in files]
        }

    def batch(self, body: bytes, _repo: str) -> Any:
        objects = [
            {**one, "authenticated": True, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def put(self, body: bytes, digest: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == digest
        self.large[digest] = body
        return {}

    def commit(self, body: bytes, repo: str) -> Any:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][line["value"]["path"]] = self.large[line["value"]["oid"]]
        url = f"{self.url}/{repo}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}

    def revision(self, _body: bytes, repo: str) -> Any:
        if repo not in self.files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        names = [{"rfilename": name} for name in self.files[repo]]
        return {"id": repo, "sha": COMMIT, "private": self.is_private[repo], "siblings": names}

    def tree(self, _body: bytes, repo: str) -> Any:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files[repo].items()
        ]

    def resolve(self, _body: bytes, repo: str, name: str) -> Any:
        content = self.files.get(repo, {}).get(name)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, content


@contextmanager
def serve(hub: Hub):
    """Serve the hub on a free port of this machine within the context; sets `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, headers, content = hub.answer(self.command, self.path, self.rfile.read(length))
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = reply

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
