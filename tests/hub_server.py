"""A model hub on this machine: the part of the protocol that huggingface_hub needs to fetch a repository.

Repositories are folders `root/OWNER/NAME`, all at one revision: `main`, `v1`, or the commit itself. A name that starts
with `gated` is refused the way the hub refuses a repository whose terms were not accepted.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISIONS = ("main", "v1", "refs/pr/1")


def commit_of(folder: Path) -> str:
    """The commit the server gives to a repository: a digest of its files."""
    digest = hashlib.sha1()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root`; yields the address and a list that collects the paths of all files handed out."""
    served: list[str] = []

    class Handler(_Handler):
        pass

    Handler.root, Handler.served = root, served
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""

    def _answer(self, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:4], parts[4] if len(parts) > 4 else "revision", "/".join(parts[5:]) or "main")
        else:  # OWNER/NAME/resolve/REVISION/FILE
            self._file(parts[:2], "/".join(parts[3:-1]), parts[-1], with_body)

    def _repository(self, name: list[str], revision: str) -> Path | None:
        """The folder of a repository; None after an answer that says why there is none."""
        folder = self.root.joinpath(*name)
        if name[-1].startswith("gated"):
            return self._refuse(403, "GatedRepo")
        if not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        if revision not in (*REVISIONS, commit_of(folder)):
            return self._refuse(404, "RevisionNotFound")
        return folder

    def _api(self, name: list[str], what: str, revision: str) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        if what == "tree":
            self._send_json([_tree_entry(file) for file in sorted(folder.iterdir())])
            return
        siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
        name_and_commit = {"id": "/".join(name), "modelId": "/".join(name), "sha": commit_of(folder)}
        self._send_json({**name_and_commit, "private": False, "tags": [], "downloads": 0, "siblings": siblings})

    def _file(self, name: list[str], revision: str, file_name: str, with_body: bool) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        file = folder / file_name
        if not file.is_file():
            self._refuse(404, "EntryNotFound")
            return
        if with_body:
            self.served.append("/".join([*name, file_name]))
        body = file.read_bytes()
        etag = hashlib.sha1(body).hexdigest()
        self._send(
            200, body if with_body else b"", {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(folder)}, len(body)
        )

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code}, 0)

    def _send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self._send(200, body, {"Content-Type": "application/json"}, len(body))

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _tree_entry(file: Path) -> dict[str, object]:
    return {
        "type": "file",
        "path": file.name,
        "size": file.stat().st_size,
        "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
    }
