"""A small Hub: the routes of huggingface.co that a download uses, with the faults that a test plants.

`/api/models/ID/revision/REV` describes a repository. `/ID/resolve/REV/FILE` has a small file itself, and for a file in
Git LFS redirects to another host, as the Hub does to its network of caches; `localhost` plays that host.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hub_cache import COMMIT, digest_of

DEV = "HiDream-ai/HiDream-I1-Dev"
LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"
TOKEN = "hf_accepted"


@dataclass
class Repository:
    """Files by path at each commit, and the commit of each branch."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False
    licence: str = "mit"
    sizes: dict[str, int] = field(default_factory=dict)  # what is announced instead of the truth
    digests: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str
    range: str
    authorization: str
    sent: int = 0  # bytes of the body


class Hub(ThreadingHTTPServer):
    """The server; `requests` is what was requested, `bodies` the GETs of files among it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.cuts: dict[str, list[int]] = {}  # by path: after how many bytes the next GETs end
        self.held: dict[str, int] = {}  # by path: after how many bytes the next GET waits for `released`
        self.released = threading.Event()
        self.statuses: dict[str, list[int]] = {}  # by path: what the next GETs are answered with; 0 is as usual
        self.replaced: dict[str, bytes] = {}  # by path: what is sent instead of the content
        self.etags: dict[str, str] = {}  # by path: what the headers say instead of the digest
        self.description: bytes | None = None  # what is sent instead of the description of a repository

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repository: str, files: dict[str, bytes | Path], **options) -> Repository:
        content = {path: each.read_bytes() if isinstance(each, Path) else each for path, each in files.items()}
        self.repositories[repository] = Repository({COMMIT: content}, **options)
        return self.repositories[repository]

    def bodies(self, ending: str) -> list[Request]:
        return [each for each in self.requests if each.method == "GET" and each.path.endswith(ending) and each.sent]


@contextmanager
def running():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *arguments):
        pass

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        headers = self.headers
        self.request_seen = Request(self.command, path, headers.get("Range", ""), headers.get("Authorization", ""))
        with self.server.lock:
            self.server.requests.append(self.request_seen)
        if path.startswith("api/models/"):
            repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
            self.describe(repository, revision or "main")
        elif path.startswith("cdn/"):
            repository, _, rest = path.removeprefix("cdn/").partition("/resolve/")
            commit, _, file = rest.partition("/")
            self.send_file(file, self.server.repositories[repository].commits[commit][file], {})
        else:
            repository, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.resolve(repository, revision, file)

    def found(self, name: str, revision: str):
        """The repository and the commit, or None after an error."""
        repository = self.server.repositories.get(name)
        if repository is None:
            self.refuse(401 if not self.headers.get("Authorization") else 404, "RepoNotFound")
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self.refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def describe(self, name: str, revision: str):
        if found := self.found(name, revision):
            repository, commit = found
            siblings = [self.sibling(repository, *each) for each in repository.commits[commit].items()]
            gated = "manual" if repository.gated else False
            data = {"id": name, "modelId": name, "sha": commit, "gated": gated, "private": False}
            card = {"cardData": {"license": repository.licence}, "siblings": siblings}
            described = self.server.description or json.dumps(data | card).encode()
            self.send(200, described, {"Content-Type": "application/json"})

    def sibling(self, repository: Repository, path: str, content: bytes):
        size = repository.sizes.get(path, len(content))
        digest = repository.digests.get(path) or digest_of(path, content)
        found = {"rfilename": path, "size": size, "blobId": digest[:40]}
        lfs = {"lfs": {"sha256": digest, "size": size, "pointerSize": 130}}
        return found | lfs if len(digest) == 64 else found

    def resolve(self, name: str, revision: str, file: str):
        found = self.found(name, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return
        if file not in repository.commits[commit]:
            self.refuse(404, "EntryNotFound")
            return
        content = repository.commits[commit][file]
        digest = self.server.etags.get(file) or repository.digests.get(file) or digest_of(file, content)
        common = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if len(digest) == 64:
            size = str(repository.sizes.get(file, len(content)))
            location = f"http://localhost:{self.server.server_address[1]}/cdn/{name}/resolve/{commit}/{file}"
            linked = {"X-Linked-Size": size, "X-Linked-Etag": f'"{digest}"', "Location": location}
            self.send(302, b"", common | linked)
        else:
            self.send_file(file, content, common)

    def send_file(self, file: str, content: bytes, headers: dict[str, str]):
        if (statuses := self.server.statuses.get(file)) and (status := statuses.pop(0)):
            self.send(status, b"busy", {})
            return
        content = self.server.replaced.get(file, content)
        first = int(self.request_seen.range.removeprefix("bytes=").rstrip("-") or 0)
        status, size = (206, len(content)) if first else (200, len(content))
        if first:
            headers = headers | {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
        self.send(status, content[first:], headers | {"Accept-Ranges": "bytes"}, file)

    def refuse(self, status: int, code: str):
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, body: bytes, headers: dict[str, str], file: str = ""):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        if file in self.server.held:
            count = self.server.held.pop(file)
            self.write(body[:count])
            self.server.released.wait(60)
            self.close_connection = True
        elif self.server.cuts.get(file):
            self.write(body[: self.server.cuts[file].pop(0)])
            self.close_connection = True
        else:
            self.write(body)

    def write(self, body: bytes):
        self.request_seen.sent += len(body)
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:  # the client is gone
            self.close_connection = True


def python(code: str, environ: dict[str, str]) -> str:
    """What a program of Python prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout


def on_terminal(hidream, terminal: int, *typed: str) -> subprocess.Popen:
    """Start `hidream` with a terminal as its standard input."""
    command = [sys.executable, "-m", "hidream.cli", *typed]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=hidream.environ, stdin=terminal, **pipes)
