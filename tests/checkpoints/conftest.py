"""A small hub: a local HTTP server that speaks the Hugging Face protocol, and can fail in every way a real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class FakeHub:
    """Repositories, and what goes wrong next.

    Attributes:
        repositories: repository -> path -> content. Files that end in .safetensors, .bin or .gguf are in large storage
            (their digest is a sha256, and they are served by redirection).
        branches: the commit each revision points to.
        gated: repositories that want the token "letmein".
        statuses: HTTP statuses to answer the next requests for files with.
        break_after: the next transfers stop after so many bytes, one entry each.
        corrupt: the number of next transfers in which a byte is wrong.
        ignore_range: send whole files even if a part is asked for.
        requests: what was asked.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    gated: set[str] = field(default_factory=set)
    statuses: list[int] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    corrupt: int = 0
    ignore_range: bool = False
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def transfers(self) -> list[Request]:
        """Requests that asked for the bytes of a file in large storage."""
        return [request for request in self.requests if request.path.startswith("/storage/")]


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".gguf"))


def make_handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def refuse(self, status: int, code: str = "", message: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            hub.requests.append(Request(self.command, self.path, self.headers.get("Range"), token))
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[0] == "storage":
                return self.send_file("/".join(parts[1:3]), "/".join(parts[3:]))
            repository = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
            if repository not in hub.repositories:
                return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            if repository in hub.gated and token != "Bearer letmein":
                return self.refuse(401, "GatedRepo", f"Access to model {repository} is restricted")
            revision = parts[5] if parts[0] == "api" else parts[3]
            if revision not in hub.branches:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if parts[0] == "api":
                return self.send_info(repository, hub.branches[revision])
            path = "/".join(parts[4:])
            if path not in hub.repositories[repository]:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            if is_large(path):
                self.send_response(302)
                # Another name of the same server: to an HTTP client it is another host.
                other = hub.url.replace("127.0.0.1", "localhost")
                self.send_header("Location", f"{other}/storage/{repository}/{path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            return self.send_file(repository, path)

        def send_info(self, repository: str, commit: str) -> None:
            siblings = []
            for path, content in hub.repositories[repository].items():
                sibling: dict[str, Any] = {"rfilename": path, "size": len(content)}
                git_name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                if is_large(path):
                    sha256 = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
                    git_name = "f" * 40
                sibling["blobId"] = git_name
                siblings.append(sibling)
            body = json.dumps({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, repository: str, path: str) -> None:
            if hub.statuses:
                return self.refuse(hub.statuses.pop(0))
            content = hub.repositories[repository][path]
            start = 0
            if (wanted := self.headers.get("Range")) and not hub.ignore_range:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    return self.refuse(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = bytearray(content[start:])
            if hub.corrupt:
                hub.corrupt -= 1
                body[len(body) // 2] ^= 0xFF
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if hub.break_after and is_large(path):
                self.wfile.write(body[: hub.break_after.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return None
            self.wfile.write(body)
            return None

        do_HEAD = do_GET

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A running hub that the library is pointed to, with an empty cache folder in $POLYFORMER_CACHE."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("polyformer.checkpoints.transfer.FIRST_WAIT_SECONDS", 0.001)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
