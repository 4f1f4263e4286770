"""A Hub on this machine: enough of huggingface.co's HTTP to find, fetch and upload repositories; faults on request.

What huggingface_hub sends is answered as the Hub answers it (paths, headers, status codes and error codes of its
public API); nothing of huggingface_hub is replaced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t" * 32
LARGE = 5_000  # bytes from which a file is uploaded as a large one


@dataclass
class HubRepo:
    """Commits (SHA and files) in order, and what branches and tags stand for."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        seed = json.dumps([len(self.commits), sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())])
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class LocalHub:
    """The server. `repos` by "models/ORG/NAME" or "datasets/ORG/NAME"; `seen` are requests in order."""

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.renamed: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.seen: list[str] = []
        self.refuse: dict[str, int] = {}  # status by the beginning of "METHOD path"
        self.cut_after: int | None = None  # bytes of a file, after which one connection breaks
        self.read_only = False  # the token may not write
        self.dead = False
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, folder: Path, **options: Any) -> str:
        """Commit a folder to a repository; its SHA."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        repo = self.repos.setdefault(name, HubRepo(**options))
        return repo.commit(files)

    def fetched(self) -> list[str]:
        """Files that were sent, in order."""
        sent = [line.split("/resolve/")[1] for line in self.seen if line.startswith("GET") and "/resolve/" in line]
        return [unquote(line.split("/", 1)[1]) for line in sent]

    def stop(self) -> None:
        self.dead = True
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.dead:  # on a connection that was kept
            self.close_connection = True
            self.connection.close()
            return None
        hub.seen.append(f"{self.command} {path}")
        for start, status in hub.refuse.items():
            if f"{self.command} {path}".startswith(start):
                return self._send(status, {"error": "as the test wants it"})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(found[1], found[2], found[3] or "", body)
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", path):
            return self._resolve("datasets" if found[1] else "models", found[2], found[3])
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/store/([0-9a-f]{64})", path):
            hub.stored[found[1]] = body
            return self._send(200, {})
        return self._send(404, {"error": "no such page"})

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _whoami(self) -> None:
        if self._token != TOKEN:
            return self._send(401, {"error": "Invalid username or password."})
        role = "read" if self.server_hub.read_only else "write"
        auth = {"accessToken": {"displayName": "t", "role": role}, "type": "access_token"}
        return self._send(200, {"type": "user", "name": "org", "orgs": [], "auth": auth})

    def _repo(self, kind: str, name: str) -> HubRepo | None:
        """The repository, or None where an answer was sent already."""
        hub, key = self.server_hub, f"{kind}/{name}"
        if key in hub.renamed:
            self._send(307, {}, {"Location": self.path.replace(name, hub.renamed[key], 1)})
            return None
        repo = hub.repos.get(key)
        known = self._token == TOKEN
        if repo is None or (repo.private and not known):
            said = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(404 if known else 401, {"error": "Repository not found"}, said)
            return None
        return repo

    def _api(self, kind: str, name: str, rest: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        what, _, more = rest.partition("/")
        revision = {"": "main", "revision": more, "tree": more.split("/")[0]}.get(what, "main")
        if what in ("preupload", "commit") and (self._token != TOKEN or self.server_hub.read_only):
            return self._send(403, {"error": "Forbidden: you must have write access"})
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular"} for f in asked]
            return self._send(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if what == "commit":
            return self._commit(kind, name, repo, body)
        sha = repo.at(revision)
        if sha is None:
            said = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
            return self._send(404, {"error": f"Invalid rev id: {revision}"}, said)
        files = repo.commits[sha]
        if what == "paths-info":  # asked for by huggingface_hub 1, the last for Python 3.10
            asked = parse_qs(body.decode())["paths"]
            return self._send(200, [_entry(path, files[path]) for path in asked if path in files])
        if what == "tree":
            return self._send(200, [_entry(path, data) for path, data in sorted(files.items())])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._send(
            200, {"id": name, "_id": "1", "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
        )

    def _commit(self, kind: str, name: str, repo: HubRepo, body: bytes) -> None:
        files = dict(repo.commits[repo.refs["main"]]) if "main" in repo.refs else {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.stored[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        sha = repo.commit(files)
        url = f"{self.server_hub.url}/{name}/commit/{sha}"
        self._send(200, {"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def _create(self, asked: dict[str, Any]) -> None:
        if self._token != TOKEN:
            return self._send(401, {"error": "Invalid username or password."})
        if self.server_hub.read_only:
            return self._send(403, {"error": "You don't have the rights to create a model"})
        name = f"{asked.get('organization') or 'org'}/{asked['name']}"
        key = f"{asked.get('type', 'model')}s/{name}"
        url = f"{self.server_hub.url}/{name}"
        if key in self.server_hub.repos:
            return self._send(409, {"error": "You already created this model repo", "url": url})
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        self.server_hub.repos[key] = HubRepo(private=private)
        self.server_hub.repos[key].commit({".gitattributes": b""})
        return self._send(200, {"url": url, "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        links = [
            {**item, "actions": {"upload": {"href": f"{self.server_hub.url}/store/{item['oid']}", "header": {}}}}
            for item in asked["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": links}, {"Content-Type": "application/vnd.git-lfs+json"})

    def _resolve(self, kind: str, name: str, rest: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        revision, _, path = rest.partition("/")
        sha = repo.at(revision)
        if repo.gated and self._token != TOKEN:
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
            return self._send(403, {"error": "Access is restricted"}, said)
        if sha is None or path not in repo.commits[sha]:
            code = "RevisionNotFound" if sha is None else "EntryNotFound"
            return self._send(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})
        data, start = repo.commits[sha][path], 0
        said = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        status = 200
        if found := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(found[1]), 206
            said["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(status, data[start:], said)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(data))}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server_hub.cut_after
        if cut is not None and isinstance(body, bytes) and len(data) > cut:
            self.server_hub.cut_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) > LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def at_this_hub(patch: Any, cache: Path, *, login: bool = False) -> LocalHub:
    """A server, and huggingface_hub of this process turned to it, with an empty cache.

    Args:
        patch: pytest's `MonkeyPatch`.
        login: whether the token is there.
    """
    from huggingface_hub import constants

    local = LocalHub()
    for name, value in {
        "ENDPOINT": local.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": local.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        patch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if login:
        patch.setenv("HF_TOKEN", TOKEN)
    return local
