"""A Hugging Face Hub on loopback: repositories in memory, and the part of the API that huggingface_hub uses for models.

Made after the client: create, preupload, LFS batch and upload, commit, model info, resolve. Large files are served from
another address than the API, as by a content delivery network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files of each commit; `branches` maps names to commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that changes files (None deletes one) and return its name."""
        tree = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        tree = {name: content for name, content in tree.items() if content is not None}
        name = hashlib.sha1(repr((sorted(tree.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = tree
        self.branches[branch] = name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


class HubServer:
    """`repositories` by owner/name; `tokens` maps tokens to owners; `breaks` cuts responses with a file's content.

    `requests` lists method and path of each request, `sizes` overrides the size that the listing states, and `status`
    is returned to every request if it is set.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, str] = {"hf_owner": "owner"}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.breaks: dict[str, list[int]] = {}
        self.sizes: dict[str, int | None] = {}
        self.status: int | None = None
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering; the port is free afterwards."""
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            self.http = None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names of http.server

    def _handle(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if self.hub.status is not None:
            return self._error(self.hub.status, "", "out of order")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self._error(401, "", "Invalid credentials in Authorization header")
        owner = self.hub.tokens.get(token)
        for pattern, method, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return getattr(self, action)(owner, body, *match.groups())
        return self._error(404, "", f"no such page {path}")

    def _create(self, owner, body):
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or owner}/{wanted['name']}"
        if owner is None:
            return self._error(401, "", "Invalid username or password.")
        if not name.startswith(f"{owner}/"):
            return self._error(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repositories:
            return self._error(409, "", "You already created this model repo")
        is_private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(is_private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _validate(self, owner, body):
        text = json.loads(body)["content"]
        assert text.startswith("---\n")
        return self._json({"errors": [], "warnings": []})

    def _info(self, owner, body, name, revision="main"):
        repository, files = self._files(name, owner, revision)
        if files is None:
            return None
        siblings = [
            {"rfilename": file, "size": self.hub.sizes.get(file, len(content)), "blobId": _git_hash(content)}
            for file, content in files.items()
        ]
        commit = repository.branches.get(revision, revision)
        return self._json({"_id": "1", "id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def _preupload(self, owner, body, name, revision):
        if self._writable(name, owner) is None:
            return None
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        return self._json({"files": files})

    def _lfs_batch(self, owner, body, name):
        if self._writable(name, owner) is None:
            return None
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs-upload/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, owner, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "", "the content has another hash")
        self.hub.lfs[oid] = body
        return self._json({})

    def _commit(self, owner, body, name, revision):
        repository = self._writable(name, owner)
        if repository is None:
            return None
        changes = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changes[value["path"]] = self.hub.lfs[value["oid"]]
            elif item["key"] != "header":
                return self._error(400, "", f"unexpected {item['key']}")
        commit = repository.commit(changes, revision)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url, "pullRequestUrl": None})

    def _resolve(self, owner, body, name, revision, file):
        repository, files = self._files(name, owner, revision)
        if files is None:
            return None
        if file not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        content, commit = files[file], repository.branches.get(revision, revision)
        headers = {"X-Repo-Commit": commit}
        if not file.endswith(".safetensors"):
            return self._content(content, {**headers, "ETag": f'"{_git_hash(content)}"'}, file)
        oid = hashlib.sha256(content).hexdigest()
        self.hub.lfs[oid] = content
        self.send_response(302)
        # The same server by another name, as a content delivery network has.
        location = self.hub.url.replace("127.0.0.1", "localhost") + f"/cdn/{oid}"
        linked = {"Location": location, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        for key, value in {**headers, **linked, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()
        return None

    def _cdn(self, owner, body, oid):
        assert not self.headers.get("Authorization"), "a token was sent to another host"
        return self._content(self.hub.lfs[oid], {"ETag": f'"{oid}"'}, "model.safetensors")

    def _content(self, content, headers, file):
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if wanted else 200)
        for key, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stops = self.hub.breaks.get(file) or []
        self.wfile.write(content[start:] if not stops else content[start:start + stops.pop(0)])

    def _readable(self, name, owner):
        repository = self.hub.repositories.get(name)
        if repository is None or repository.private and not name.startswith(f"{owner}/"):
            # The Hub does not tell strangers which private repositories exist.
            self._error(404 if owner else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _files(self, name, owner, revision):
        """Return a repository and its files in a revision; None for the files after an error was sent."""
        repository = self._readable(name, owner)
        files = None if repository is None else repository.files(revision)
        if repository is not None and files is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, files

    def _writable(self, name, owner):
        repository = self._readable(name, owner)
        if repository is not None and not name.startswith(f"{owner}/"):
            self._error(403 if owner else 401, "", "You don't have write access to this repository")
            return None
        return repository

    def _json(self, value):
        self._content(json.dumps(value).encode(), {"Content-Type": "application/json"}, "")

    def _error(self, status, code, message):
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json",
                           "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"/api/repos/create", "POST", "_create"),
    (r"/api/validate-yaml", "POST", "_validate"),
    (rf"/api/models/{_NAME}", "GET", "_info"),
    (rf"/api/models/{_NAME}/revision/(.+)", "GET", "_info"),
    (rf"/api/models/{_NAME}/preupload/(.+)", "POST", "_preupload"),
    (rf"/api/models/{_NAME}/commit/(.+)", "POST", "_commit"),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", "POST", "_lfs_batch"),
    (r"/lfs-upload/(\w+)", "PUT", "_lfs_put"),
    (r"/cdn/(\w+)", "GET HEAD", "_cdn"),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", "GET HEAD", "_resolve"),
]


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
