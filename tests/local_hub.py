"""A server on this machine that answers as the Hugging Face hub does: what a repository holds, and its files.

Repositories can be made and written, too: `/api/repos/create`, `preupload`, the batch interface of Git LFS, `commit`.

The parts of its interface that `huggingface_hub` calls for a snapshot: `/api/models/NAME[/revision/REVISION]` (the
commit), `/api/models/NAME/tree/COMMIT` (names and sizes), `/NAME/resolve/REVISION/FILE` (bytes, with `ETag` and
`X-Repo-Commit`). Weights lie elsewhere, behind a redirect with `X-Linked-ETag` and `X-Linked-Size`.
"""

from __future__ import annotations

import base64
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
        root: where new repositories are made. tokens: that may write. private: repositories that are.
        stored: sha256 -> bytes of large files that were sent. committed: name, message and files of each commit.
        asked: what was asked for, as "METHOD path".
    """

    repositories: dict[str, Path]
    cut: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    root: Path | None = None
    tokens: set[str] = field(default_factory=lambda: {"right"})
    private: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    committed: list[tuple[str, str, list[str]]] = field(default_factory=list)
    endpoint: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process that knows this hub only, and keeps what it downloads under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*",
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip


@contextmanager
def serving_this_process(hub: Hub, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Lets `huggingface_hub` of this process know this hub only, with a cache of its own; gives the patch."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, serving(hub):
        patch.setenv("NO_PROXY", "*")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Uploads go to this hub by Git LFS, not to the stores of another protocol.
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
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

    def do_POST(self) -> None:
        self._take(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = self.path.rpartition("/")[2]
        is_whole = hashlib.sha256(content).hexdigest() == name
        if is_whole:
            self.hub.stored[name] = content
        self._send(200 if is_whole else 400, b"")

    def _take(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            return self._send(401 if not token else 403, b"{}")
        content = [json.loads(line) for line in body.splitlines()]
        if path == "/api/repos/create":
            return self._create(content[0])
        name = path.removeprefix("/api/models/").removeprefix("/").partition(".git")[0]
        name, _, rest = "/".join(name.split("/")[:2]), "", path
        if name not in self.hub.repositories:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if "/preupload/" in rest:
            large = {one["path"] for one in content[0]["files"] if one["path"].endswith(_LARGE)}
            modes = [
                {"path": one["path"], "shouldIgnore": False, "uploadMode": "lfs" if one["path"] in large else "regular"}
                for one in content[0]["files"]
            ]
            return self._json({"files": modes})
        if rest.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/storage/{one['oid']}", "header": {}}}}
                for one in content[0]["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if "/branch/" in rest:
            return self._send(201, b"")
        return self._commit(name, content)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        address = json.dumps({"url": f"{self.hub.endpoint}/{name}", "name": name}).encode()
        if name in self.hub.repositories:
            return self._send(409, address)
        assert self.hub.root is not None
        folder = self.hub.root / name.replace("/", "--")
        folder.mkdir()
        self.hub.repositories[name] = folder
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        self._send(200, address)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        written = []
        for line in lines:
            value = line["value"]
            if line["key"] in ("file", "lfsFile"):
                path = self.hub.repositories[name] / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                is_large = line["key"] == "lfsFile"
                path.write_bytes(self.hub.stored[value["oid"]] if is_large else base64.b64decode(value["content"]))
                written.append(value["path"])
        self.hub.committed.append((name, lines[0]["value"]["summary"], sorted(written)))
        self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

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
                about = {"private": name in self.hub.private, "tags": [], "siblings": []}
                return self._json({"id": name, "modelId": name, "sha": COMMIT, **about})
            case ["tree"]:
                root = self.hub.repositories[name]
                return self._json([_entry(one, root) for one in sorted(root.rglob("*")) if one.is_file()])
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
        if self.command != "HEAD":
            self.wfile.write(content[:cut])


def _entry(path: Path, root: Path) -> dict[str, Any]:
    content = path.read_bytes()
    said: dict[str, Any] = {
        "type": "file",
        "path": path.relative_to(root).as_posix(),
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if path.suffix in _LARGE:
        said["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return said
