"""Hub on this machine for tests of imports: the few addresses that a dataset's files have."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
Files = Mapping[str, bytes]


class Hub(BaseHTTPRequestHandler):
    """Handler of one request; `datasets` and `gated` belong to the server."""

    protocol_version = "HTTP/1.1"
    datasets: Mapping[str, Files]
    gated: str

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        name = "/".join(parts[is_api + 1 : is_api + 3])
        rest = parts[is_api + 3 :]
        if name == self.gated:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name not in self.datasets:
            self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            self.answer_api(name, rest)
        else:
            self.answer_file(name, "/".join(rest[2:]))

    do_HEAD = do_POST = do_GET

    def answer_api(self, name: str, rest: list[str]) -> None:
        files = self.datasets[name]
        if rest[:1] == ["tree"]:
            self.answer_json(entries(files, "/".join(rest[2:])))
        elif rest[:1] == ["paths-info"]:
            wanted = json.loads(self.body())["paths"]
            self.answer_json([each for each in entries(files, "") if each["path"] in wanted])
        else:
            siblings = [{"rfilename": path} for path in files]
            info = {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}
            self.answer_json(info)

    def answer_file(self, name: str, path: str) -> None:
        content = self.datasets[name].get(path)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self.answer(404, b"{}", headers)
        else:
            tag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def entries(files: Files, folder: str) -> list[dict[str, Any]]:
    """Return the folders and files below a folder, as the Hub lists them."""
    folders = set()
    for path in files:
        folders |= {path.rsplit("/", depth)[0] for depth in range(1, path.count("/") + 1)}
    found: list[dict[str, Any]] = []
    for path in sorted(folders):
        found.append({"type": "directory", "path": path, "oid": "0"})
    for path, content in files.items():
        found.append({"type": "file", "path": path, "size": len(content), "oid": "0"})
    return [each for each in found if not folder or each["path"].startswith(f"{folder}/")]


@contextmanager
def fake_hub(datasets: Mapping[str, Files], gated: str = "") -> Iterator[str]:
    """Serve {owner/name: {path: content}} and yield the address; `gated` is refused."""
    handler = type("OneHub", (Hub,), {"datasets": datasets, "gated": gated})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
