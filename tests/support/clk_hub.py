"""A hub on this machine: the parts of the Hugging Face hub's HTTP API that fetching a model uses.

``GET /api/models/OWNER/NAME[/revision/R]?blobs=true`` lists files with sizes and digests;
``GET /OWNER/NAME/resolve/COMMIT/FILE`` gives bytes, from any byte on (``Range``), after a redirect
to another path, as the hub sends readers of large files to its storage.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """``large`` files are those of Git LFS: they have a SHA-256. ``gated`` needs the token."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    large: tuple[str, ...] = (".gguf", ".safetensors")
    gated: bool = False
    token: str = ""


@dataclass
class Hub:
    """What the server has and does. ``requests`` are (path, Range header, Authorization).

    ``stop_after``: bytes of a file after which the connection breaks (or, with ``stall``, nothing
    more comes until ``go_on`` is set), as often as ``breaks`` says. ``corrupt`` changes what is
    sent. ``ignore_range`` answers with the whole file.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    stop_after: int | None = None
    breaks: int = 0
    stall: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    corrupt: bool = False
    ignore_range: bool = False
    status: int = 0
    url: str = ""

    def downloads(self) -> list[tuple[str, str]]:
        """Files that were read, with the range that was asked for."""
        return [
            (path.partition("/storage/")[2], range_)
            for path, range_, _ in self.requests
            if "/storage/" in path
        ]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "")
        self.hub.requests.append((path, self.headers.get("Range", ""), token))
        if self.hub.status:
            return self._json(self.hub.status, {"error": "the hub has its own trouble"})
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = (parts[2:] if api else parts) + ["", ""]
        repository = self.hub.repositories.get(f"{owner}/{name}")
        rest = [part for part in rest if part]
        if repository is None:
            return self._error(404, "RepoNotFound")
        if repository.gated and token != f"Bearer {repository.token}":
            return self._error(403 if token else 401, "GatedRepo")
        named = rest[1] if rest and rest[0] in ("revision", "resolve") else "main"
        if named not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound")
        if api:
            return self._json(200, self._listing(f"{owner}/{name}", repository))
        file = "/".join(rest[2:] if rest[0] == "resolve" else rest[1:])
        if file not in repository.files:
            return self._error(404, "EntryNotFound")
        if rest[0] == "resolve":
            return self._redirect(f"/{owner}/{name}/storage/{file}")
        return self._send(repository.files[file])

    def _listing(self, repo: str, repository: Repository) -> dict[str, Any]:
        siblings = []
        for path, content in repository.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if path.endswith(repository.large):
                sha256 = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(row)
        return {
            "_id": "1", "id": repo, "modelId": repo, "sha": repository.commit, "private": False,
            "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": siblings,
        }  # fmt: skip

    def _send(self, content: bytes) -> None:
        start = 0
        range_ = self.headers.get("Range", "")
        if range_ and not self.hub.ignore_range:
            start = int(range_.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        piece = content[start:]
        if self.hub.corrupt:
            piece = piece[:-1] + bytes([piece[-1] ^ 1])
        if self.hub.stop_after is not None and self.hub.breaks and len(piece) > self.hub.stop_after:
            self.hub.breaks -= 1
            self.wfile.write(piece[: self.hub.stop_after])
            self.wfile.flush()
            if self.hub.stall:
                self.hub.stalled.set()
                self.hub.go_on.wait(60)
            self.close_connection = True
            return
        self.wfile.write(piece)

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _error(self, status: int, code: str) -> None:
        self._json(status, {"error": code}, {"X-Error-Code": code})

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
