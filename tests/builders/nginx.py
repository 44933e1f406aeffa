"""A real nginx in front of the page, under a path and a name."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
NEEDS_NGINX = pytest.mark.skipif(
    NGINX is None and not os.environ.get("TAILOR_REQUIRE_NGINX"),
    reason="needs nginx (apt install nginx)",
)
CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location {path}/ {{
      proxy_pass http://127.0.0.1:{page_port}/;
      proxy_set_header Host $http_host;
      proxy_http_version 1.1;
      proxy_buffering off;
      client_max_body_size 600m;
    }}
  }}
}}
"""


@contextmanager
def nginx_in_front(page_port: int, port: int, path: str, folder: Path) -> Iterator[None]:
    """Serve the page at `page_port` under a path of another port."""
    assert NGINX, "TAILOR_REQUIRE_NGINX is set, and there is no nginx"
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, page_port=page_port, path=path))
    with subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)]) as server:
        try:
            yield
        finally:
            server.terminate()
