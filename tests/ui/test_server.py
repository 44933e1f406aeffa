"""Test `python app.py` with its flags: who can open the page."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

import app
from core.runs import Home
from tests.builders.paths import ROOT
from ui.server import policy_for

EVIL = {
    "GRADIO_SHARE": "True",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_NUM_WORKERS": "2",
    "GRADIO_MCP_SERVER": "True",
}
"""Settings of Gradio that would let others in, were they obeyed."""


LAST_LINE = {"--share": "public link", "--public-url": "On this machine"}
"""First flag -> what the last line about links holds."""
PROXIES = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
"""Proxies that do not answer."""
ASK = """
import encodings.idna, os, socket, sys  # nothing can be imported as another account
os.setuid(54321)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as page:
    page.sendall(b"GET / HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    print(page.recv(100).decode())
"""


@contextmanager
def served(home: Home, *flags: str) -> Iterator[list[str]]:
    """Run `python app.py`. Yield the lines that it prints up to the last link."""
    command = [sys.executable, "app.py", "--no-browser", "--home", str(home.path), *flags]
    environment = os.environ | EVIL | PROXIES
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        lines: list[str] = []
        wanted = LAST_LINE.get(next(iter(flags), ""), "Tailor is at")
        while not lines or wanted not in lines[-1]:
            lines.append(next(process.stdout))
        try:
            yield lines
        finally:
            process.send_signal(2)
            try:
                process.wait(20)
            finally:
                process.kill()  # or leaving the block would wait for it forever


def link_in(lines: list[str]) -> str:
    (link,) = re.findall(r"Tailor is at (\S+)", "".join(lines))
    return str(link)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a page for this computer only. Return its link."""
    with served(Home.find(str(tmp_path_factory.mktemp("home")))) as lines:
        yield link_in(lines)


def test_the_page_is_for_this_computer_and_needs_no_token(link: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", link)
    assert httpx.get(link).status_code == 200
    assert httpx.get(link, headers={"Host": "evil.example"}).status_code == 421
    other_site = {"Origin": "http://evil.example"}
    assert httpx.post(f"{link}gradio_api/upload", headers=other_site).status_code == 403


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can act as another account"
)
def test_another_account_of_this_computer_needs_the_token(link: str) -> None:
    port = link.rsplit(":", 1)[1].strip("/")
    answer = subprocess.run([sys.executable, "-c", ASK, port], stdout=subprocess.PIPE, text=True)
    assert " 401 " in answer.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells accounts apart")
def test_the_page_of_this_computer_knows_accounts(home: Home) -> None:
    policy = policy_for(home, "localhost")
    assert policy.is_own is not None
    assert policy.token is not None


@pytest.mark.parametrize(
    "asked",
    [
        {"host": "127.0.0.1", "always_asks": True},
        {"host": "127.0.0.1", "public_urls": ["https://box/tailor"]},
        {"host": "0.0.0.0"},
    ],
)
def test_a_page_that_others_may_reach_asks_everyone(asked: dict[str, Any], home: Home) -> None:
    assert policy_for(home, **asked).asks_everyone


def test_a_page_behind_a_proxy_prints_its_public_link(home: Home) -> None:
    with served(home, "--public-url", "https://box.example.net/tailor") as lines:
        link = link_in(lines)
        assert link.startswith("https://box.example.net/tailor/?token=")
        here = re.findall(r"On this machine: (\S+)/\?token=", lines[-1])[0]
        assert httpx.get(here).status_code == 401


def test_a_page_for_the_network_answers_nothing_without_its_token(home: Home) -> None:
    with served(home, "--host", "0.0.0.0") as lines:
        link = link_in(lines).replace("0.0.0.0", "127.0.0.1")
        base, _, token = link.partition("/?token=")
        assert len(token) > 40
        for route in ("", "config", "gradio_api/info", "gradio_api/queue/join", "theme.css"):
            answer = httpx.get(f"{base}/{route}")
            assert answer.status_code == 401
            assert "JobSpec" not in answer.text
            assert "learning_rate" not in answer.text
        with httpx.Client() as visitor:
            assert visitor.get(link, follow_redirects=True).status_code == 200
            assert "learning_rate" in visitor.get(f"{base}/config").text


def test_without_a_tunnel_the_page_says_so_and_stays_on_this_computer(home: Home) -> None:
    with served(home, "--share") as lines:
        assert "No public link" in lines[-1]
        base = link_in(lines).partition("/?token=")[0]
        assert base.startswith("http://127.0.0.1:")
        assert httpx.get(base).status_code == 401


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--home", "/dev/null/home"), "home"),
        (("--port", "79990"), "port: 79990 is not a port"),
        (("--port", "IN USE"), "port: cannot listen on 127.0.0.1:"),
        (
            ("--host", "no.such.host.invalid"),
            "host: no.such.host.invalid is not an address of this machine",
        ),
        (("--host", "203.0.113.1"), "host: 203.0.113.1 is not an address of this machine"),
    ],
)
def test_a_page_that_cannot_open_says_why_in_one_line_and_exits_2(
    flags: tuple[str, ...], message: str, link: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    in_use = link.rsplit(":", 1)[1].strip("/")
    given = [flag.replace("IN USE", in_use) for flag in flags]
    assert app.main(["--no-browser", "--home", str(home.path), *given]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1


def test_a_home_that_cannot_be_written_to_is_one_line(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.path / "empty").write_text("no folder can be made here")
    assert app.main(["--no-browser", "--home", str(home.path)]) == 2
    line = f"home: {home.path / 'empty'}: File exists; name a folder that you can write to\n"
    assert capsys.readouterr().err == line
