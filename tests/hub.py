"""A model hub on loopback: as much of the hub's HTTP interface as huggingface_hub and datasets ask for to read.

Repositories are dictionaries of files by commit. What is gated, missing or of no such revision is answered with the
status and the X-Error-Code that the hub gives: 401 to strangers, 403 or 404 to who brings a token.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repo:
    """refs: names of commits; commits: their files."""

    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, files: Files, *refs: str) -> str:
        digest = hashlib.sha1(json.dumps(sorted((n, _etag(b)) for n, b in files.items())).encode()).hexdigest()
        self.commits[digest] = files
        self.refs |= dict.fromkeys(refs, digest)
        return digest


@dataclass
class Hub:
    """models and datasets by id; asked: what was asked, as 'METHOD path'."""

    models: dict[str, Repo] = field(default_factory=dict)
    datasets: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_CALLS = "revision|tree|paths-info|auth-check"
_API = re.compile(rf"/api/(models|datasets)/([^/]+/[^/]+)(?:/({_CALLS})(?:/([^/]+)(?:/(.+))?)?)?$")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class _Error(Exception):
    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing: a test reads `asked`."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            if found := _FILE.match(path):
                commit, files = self._files("datasets" if found[1] else "models", found[2], found[3])
                self._file(commit, files, found[4])
            elif found := _API.match(path):
                self._api(found[1], found[2], found[3] or "revision", found[4] or "main", found[5] or "", body)
            else:
                raise _Error(404, "", "not found")
        except _Error as error:
            self._send(error.status, b"{}", {name: value for name, value in error.headers.items() if value})

    def _files(self, kind: str, name: str, revision: str, content: bool = True) -> tuple[str, Files]:
        """content: what a gated repository keeps back; what it is and what its files are called it tells everybody."""
        repos = self.hub.models if kind == "models" else self.hub.datasets
        known = "Authorization" in self.headers
        if name not in repos:
            raise _Error(404 if known else 401, "RepoNotFound", "Repository not found")
        repo = repos[name]
        if repo.gated and content:
            raise _Error(403 if known else 401, "GatedRepo", f"Access to {kind} {name} is restricted.")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    def _file(self, commit: str, files: Files, name: str) -> None:
        if name not in files:
            raise _Error(404, "EntryNotFound", "Entry not found", commit)
        content, status, headers = files[name], 200, {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": commit}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[start : end + 1], 206
        self._send(status, content, headers)

    def _api(self, kind: str, name: str, what: str, revision: str, path: str, body: str) -> None:
        commit, files = self._files(kind, name, revision, content=what == "auth-check")
        if what == "auth-check":
            return self._json({})
        entries: list[dict[str, Any]] = [
            {"type": "file", "oid": _etag(b), "size": len(b), "path": n} for n, b in sorted(files.items())
        ]
        folders = sorted({n.rsplit("/", i)[0] for n in files for i in range(1, n.count("/") + 1)})
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
        if what == "tree":
            deep = "recursive=true" in urlsplit(self.path).query.lower()
            inside = [e for e in entries if not path or e["path"].startswith(f"{path}/")]
            if path and not inside:
                raise _Error(404, "EntryNotFound", "Entry not found")
            return self._json([e for e in inside if deep or "/" not in e["path"][len(path) :].lstrip("/")])
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            return self._json([e for e in entries if e["path"] in wanted])
        return self._json(
            {
                "_id": "0" * 24, "id": name, "sha": commit, "private": False, "gated": False, "disabled": False,
                "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": n} for n in sorted(files)],
            }
        )  # fmt: skip

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """`hub` at its `url`, on a free port of loopback, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
