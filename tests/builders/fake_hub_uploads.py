"""Hub on this machine that takes uploads: repositories, files and commits."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from huggingface_hub.utils.sha import git_hash

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_test_token"
LARGE_SUFFIXES = (".safetensors", ".gguf", ".model")


@dataclass
class Received:
    """What a client has sent."""

    url: str = ""
    is_private: bool = True
    """Whether the repository is private now, whatever a client asks for."""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """Path in the repository -> content."""
    large: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content of a large file."""
    num_puts: int = 0


class UploadHub(BaseHTTPRequestHandler):
    """Handler of one request."""

    protocol_version = "HTTP/1.1"
    received: Received

    def do_GET(self) -> None:
        if "/tree/" in urlsplit(self.path).path:
            self.answer([self.info(path) for path in self.received.files])
            return
        found = {"id": "me/model", "sha": COMMIT, "siblings": [], "tags": [], "downloads": 0}
        self.answer({**found, "private": self.received.is_private})

    def do_HEAD(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        content = self.body()
        self.received.num_puts += 1
        self.received.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self.received.repositories.append(json.loads(body))
            self.answer({"url": f"{self.received.url}/me/model", "name": "me/model", "id": "1"})
        elif "/preupload/" in path:
            self.answer({"files": [_mode(each["path"]) for each in json.loads(body)["files"]]})
        elif path.endswith("/objects/batch"):
            self.answer(self.batch(json.loads(body)))
        elif "/paths-info/" in path:
            asked = parse_qs(body.decode())["paths"]
            self.answer([self.info(each) for each in asked if each in self.received.files])
        elif "/commit/" in path:
            self.commit(body)
            url = f"{self.received.url}/me/model/commit/{COMMIT}"
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self.answer({})

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return where each large file is to be put; nowhere if it is there."""
        objects = []
        for each in asked["objects"]:
            found = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.received.large:
                upload = {"href": f"{self.received.url}/put/{each['oid']}"}
                found["actions"] = {"upload": upload}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def commit(self, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.received.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.received.files[value["path"]] = self.received.large[value["oid"]]

            elif entry["key"] == "deletedFile":
                del self.received.files[value["path"]]

    def info(self, path: str) -> dict[str, Any]:
        """Return what a Hub knows of a file."""
        content = self.received.files[path]
        found = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path.endswith(LARGE_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return found

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _mode(path: str) -> dict[str, object]:
    mode = "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


@contextmanager
def upload_hub() -> Iterator[Received]:
    """Serve a Hub that takes uploads with TOKEN, and yield what it has received."""
    received = Received()
    handler = type("OneUploadHub", (UploadHub,), {"received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    received.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
