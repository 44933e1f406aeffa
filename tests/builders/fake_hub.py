"""A Hub on this machine for the tests of fetching: the few addresses that a dataset's files are read from."""

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


@contextmanager
def fake_hub(datasets: Mapping[str, Files], gated: str = "") -> Iterator[str]:
    """Serves {owner/name: {path: content}}; the dataset named `gated` is refused. Yields the address."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = parts[0] == "api"
            name = "/".join(parts[is_api + 1 : is_api + 3])
            rest = parts[is_api + 3 :]
            if name == gated:
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif name not in datasets:
                self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif is_api and rest[:1] == ["tree"]:
                self.answer_json(self.tree(datasets[name], "/".join(rest[2:])))
            elif is_api and rest[:1] == ["paths-info"]:
                wanted = json.loads(self.body())["paths"]
                self.answer_json(
                    [each for each in self.tree(datasets[name], "") if each["path"] in wanted]
                )
            elif is_api:
                siblings = [{"rfilename": path} for path in datasets[name]]
                self.answer_json(
                    {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}
                )
            elif (path := "/".join(rest[2:])) in datasets[name]:
                self.answer_file(datasets[name][path])
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        do_HEAD = do_POST = do_GET

        def tree(self, files: Files, folder: str) -> list[dict[str, Any]]:
            folders = {
                path.rsplit("/", depth)[0]
                for path in files
                for depth in range(1, path.count("/") + 1)
            }
            found = [{"type": "directory", "path": path, "oid": "0"} for path in sorted(folders)]
            found += [
                {"type": "file", "path": path, "size": len(content), "oid": "0"}
                for path, content in files.items()
            ]
            return [each for each in found if not folder or each["path"].startswith(f"{folder}/")]

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer_file(self, content: bytes) -> None:
            tag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'})

        def answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
