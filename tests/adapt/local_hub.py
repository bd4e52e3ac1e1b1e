"""A server on this machine that answers as the Hugging Face hub does: what a repository holds, and its files.

The parts of its interface that `huggingface_hub` calls for a snapshot: `/api/models/NAME[/revision/REVISION]` (the
commit), `/api/models/NAME/tree/COMMIT` (names and sizes), `/NAME/resolve/REVISION/FILE` (bytes, with `ETag` and
`X-Repo-Commit`). Weights lie elsewhere, behind a redirect with `X-Linked-ETag` and `X-Linked-Size`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """Repositories by OWNER/NAME, each a folder; all have one commit, to which `main` and `v1` point.

    Attributes:
        cut: repositories whose weights break off in the middle, at every try.
        gated: repositories whose terms were not accepted. broken: those for which it answers 503.
        asked: what was asked for, as "METHOD path".
    """

    repositories: dict[str, Path]
    cut: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process that knows this hub only, and keeps what it downloads under `home`."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}


@contextmanager
def serving_this_process(hub: Hub, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Lets `huggingface_hub` of this process know this hub only, with a cache of its own; gives the patch."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, serving(hub):
        patch.setenv("NO_PROXY", "*")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield patch


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answers on a free port until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
        elif parts[0] == "elsewhere":
            return self._bytes("/".join(parts[1:3]), "/".join(parts[3:]), elsewhere=True)
        else:
            name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.hub.broken:
            return self._send(503, b"")
        if name in self.hub.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        if name not in self.hub.repositories:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if len(rest) >= 2 and rest[1] not in ("main", "v1", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        match rest[:1]:
            case [] | ["revision"]:
                return self._json({"id": name, "modelId": name, "sha": COMMIT, "tags": [], "siblings": []})
            case ["tree"]:
                return self._json([_entry(one) for one in sorted(self.hub.repositories[name].iterdir())])
            case ["resolve"]:
                return self._bytes(name, "/".join(rest[2:]))
        return self._send(404, b"")

    def _bytes(self, name: str, file: str, *, elsewhere: bool = False) -> None:
        path = self.hub.repositories[name] / file
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if path.suffix in _LARGE and not elsewhere:
            # Another host: the client must not follow with its token, and reads size and tag off this answer.
            there = f"http://localhost:{urlsplit(self.hub.endpoint).port}/elsewhere/{name}/{file}"
            linked = {"X-Linked-ETag": etag, "X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
            return self._send(302, b"", {"Location": there, **linked})
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        shown = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            shown["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = len(content) // 2 if elsewhere and name in self.hub.cut else len(content)
        self._send(206 if start else 200, content[start:], shown, cut=max(0, cut - start))

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    said: dict[str, Any] = {
        "type": "file", "path": path.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest(),
    }  # fmt: skip
    if path.suffix in _LARGE:
        said["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return said
