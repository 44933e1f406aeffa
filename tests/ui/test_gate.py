"""The gate in front of a trivial app. In front of Gradio: test_gate_on_gradio.py."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from ui import gate
from ui.gate import Gate, GatePolicy, load_or_create_token, login_url, new_token

TOKEN = "a-token-of-forty-three-characters-for-tests-"
KIB = 1024


class Echo:
    """An app that reads its body, and keeps what it was asked."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        headers = [
            (b"content-type", b"text/html"),
            (b"cache-control", b"max-age=9"),
            (b"x-frame-options", b"ALLOW"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data of the app"})


class Visitor:
    """A client without cookies of its own, at a gate in front of an Echo, with a clock that a test moves."""

    def __init__(self, policy: GatePolicy | None = None, base_url: str = "http://127.0.0.1:7860"):
        self.now = 1e9
        self.echo = Echo()
        self.gate = Gate(self.echo, policy or GatePolicy(token=TOKEN), lambda: self.now)
        self.base_url = base_url

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate)
            async with httpx.AsyncClient(transport=transport, base_url=self.base_url) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        return self.ask(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def log_in(self) -> str:
        """The Cookie header that a browser sends after it opened the link."""
        return self.get(f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]


def open_visitor(**options: Any) -> Visitor:
    return Visitor(GatePolicy(**options))


def sent_by_gate(scope: Scope) -> list[Message]:
    """What an open gate sends on a connection that httpx would not make."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Gate(Echo(), GatePolicy())(scope, asyncio.Queue[Message]().get, send))
    return sent


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/startup-events/", "/gradio_api/heartbeat/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_without_the_token_every_route_answers_with_the_login_page(method: str, path: str) -> None:
    reply = Visitor().ask(method, path)
    assert (reply.status_code, reply.content) == (401, gate.LOGIN_PAGE)
    assert len(reply.content) < 4 * KIB


def test_gradios_check_of_itself_passes_without_the_token() -> None:
    assert Visitor().get("/gradio_api/startup-events").status_code == 200
    assert Visitor().ask("POST", "/gradio_api/startup-events").status_code == 401


def test_the_link_logs_in_and_leads_away_from_the_token() -> None:
    reply = Visitor().get(f"/?token={TOKEN}&__theme=dark")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly; SameSite=Lax" in cookie and "Path=/" in cookie and "Secure" not in cookie
    assert TOKEN not in cookie


def test_a_session_opens_every_route() -> None:
    visitor = Visitor()
    assert visitor.get("/config", cookie=f"other=1; {visitor.log_in()}; more=2").status_code == 200


def test_an_old_link_in_an_open_session_leads_home_too() -> None:
    visitor = Visitor()
    assert visitor.get("/?token=old", cookie=visitor.log_in()).status_code == 303
    assert open_visitor().get("/?token=old").status_code == 303


def test_the_cookie_is_kept_to_https_where_the_page_is() -> None:
    cookie = (
        Visitor(base_url="https://127.0.0.1:7860").get(f"/?token={TOKEN}").headers["set-cookie"]
    )
    assert cookie.startswith("__Host-") and cookie.endswith("; Secure")


def test_two_ports_of_a_host_have_two_cookies() -> None:
    assert (
        Visitor().log_in().partition("=")[0]
        != Visitor(base_url="http://127.0.0.1:7861").log_in().partition("=")[0]
    )


@pytest.mark.parametrize(
    "offered", ["", "x", TOKEN[:-1], TOKEN + "x", "%00", "%ff%fe", "\u00e9", "a" * 10_000]
)
def test_a_wrong_token_stays_outside(offered: str) -> None:
    assert Visitor().get(f"/?token={offered}").status_code == 401


def test_the_token_counts_only_at_the_root() -> None:
    assert Visitor().get(f"/config?token={TOKEN}").status_code == 401


@pytest.mark.parametrize(
    "cookie", ["", "tailor7860=", "tailor7860=x", f"tailor7860={TOKEN}", "tailor7860", "=;=;"]
)
def test_a_made_up_cookie_opens_nothing(cookie: str) -> None:
    assert Visitor().get("/", cookie=cookie).status_code == 401


def test_a_bearer_of_the_token_may_pass_without_a_session() -> None:
    visitor = Visitor()
    assert visitor.get("/config", authorization=f"Bearer {TOKEN}").status_code == 200
    assert visitor.get("/config", authorization=f"Basic {TOKEN}").status_code == 401
    assert not visitor.gate.sessions.seen


def test_a_session_ends_when_unused_for_a_day() -> None:
    visitor = Visitor()
    cookie = visitor.log_in()
    visitor.now += gate.SESSION_IDLE_SECONDS - 1
    assert visitor.get("/", cookie=cookie).status_code == 200
    visitor.now += gate.SESSION_IDLE_SECONDS + 1
    assert visitor.get("/", cookie=cookie).status_code == 401


def test_a_session_ends_after_a_week_however_busy() -> None:
    visitor = Visitor()
    cookie, answers = visitor.log_in(), []
    for _ in range(15):
        visitor.now += gate.SESSION_IDLE_SECONDS / 2
        answers.append(visitor.get("/", cookie=cookie).status_code)
    assert answers == [200] * 13 + [401] * 2


def test_sessions_are_bounded_and_kept_as_digests() -> None:
    sessions = gate.Sessions(lambda: 0.0)
    ids = [sessions.open() for _ in range(gate.MAX_SESSIONS + 1)]
    assert len(sessions.seen) == gate.MAX_SESSIONS
    assert sessions.has(ids[-1]) and not sessions.has(ids[0])
    assert not {session.encode() for session in ids} & set(sessions.seen)


def test_the_eleventh_wrong_token_in_a_minute_is_not_looked_at() -> None:
    visitor = Visitor()
    answers = [visitor.get(f"/?token=wrong{guess}").status_code for guess in range(10)]
    assert answers == [401] * 10
    late = visitor.get(f"/?token={TOKEN}")
    assert (late.status_code, late.headers["retry-after"]) == (429, "60")
    visitor.now += 61
    assert visitor.get(f"/?token={TOKEN}").status_code == 303


def test_wrong_bearers_count_as_guesses() -> None:
    visitor = Visitor()
    assert [visitor.get("/x", authorization="Bearer no").status_code for _ in range(11)] == [
        401
    ] * 10 + [429]


def test_guessing_does_not_disturb_an_open_session() -> None:
    visitor = Visitor()
    cookie = visitor.log_in()
    for guess in range(40):
        visitor.get(f"/?token={guess}")
    assert visitor.get("/", cookie=cookie).status_code == 200


def test_a_forwarded_address_does_not_make_a_new_guesser() -> None:
    visitor = Visitor()
    answers = [
        visitor.get("/?token=x", x_forwarded_for=f"10.0.0.{guess}").status_code
        for guess in range(20)
    ]
    assert answers.count(401) == 10
    assert (
        visitor.get(f"/?token={TOKEN}").status_code == 303
    )  # the owner at the machine is not locked out


def test_guessers_together_get_thirty_guesses_a_minute_and_bounded_memory() -> None:
    throttle = gate.Throttle(lambda: 0.0)
    for guesser in range(100_000):
        if not throttle.is_closed_to(f"10.0.0.{guesser}"):
            throttle.note_failure(f"10.0.0.{guesser}")
    assert len(throttle.failures) == gate.MAX_FAILURES
    assert throttle.is_closed_to("someone new")


OWN_NAMES = (
    "localhost",
    "localhost:1",
    "LOCALHOST:7860",
    "127.0.0.1",
    "127.0.0.1:65535",
    "127.8.8.8",
    "[::1]",
    "[::1]:1",
)
REBOUND_NAMES = (
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "192.168.1.7:7860",
)
MALFORMED_NAMES = (
    "127.0.0.1@evil.example",
    "localhost:1:2",
    "localhost/",
    "[::1",
    "::1",
    "[::1]x",
    "",
    "a" * 10_000,
)
UNUSUAL_NAMES = ("0.0.0.0:7860", "2130706433", "127.1", "0x7f.0.0.1")
SENT_BY_ANOTHER_SITE = (
    *(
        {"origin": origin}
        for origin in ("http://evil.example", "null", "", "http://[", "http://localhost:3000")
    ),
    *({"sec-fetch-site": site} for site in ("cross-site", "same-site")),
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
)


@pytest.mark.parametrize("host", OWN_NAMES)
def test_names_of_this_machine_are_served(host: str) -> None:
    assert open_visitor().get("/", host=host).status_code == 200


@pytest.mark.parametrize("host", (*REBOUND_NAMES, *MALFORMED_NAMES, *UNUSUAL_NAMES))
def test_other_names_are_refused_whatever_else_is_right(host: str) -> None:
    assert open_visitor().get("/", host=host).status_code == 421
    assert Visitor().get("/", host=host, authorization=f"Bearer {TOKEN}").status_code == 421


@pytest.mark.parametrize("hosts", [(), (b"localhost", b"evil.example")])
def test_no_host_and_two_hosts_are_refused(hosts: tuple[bytes, ...]) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", host) for host in hosts],
    }
    assert sent_by_gate(scope)[0]["status"] == 421


def test_the_name_that_the_page_listens_on_is_served() -> None:
    assert (
        Visitor(GatePolicy(token=TOKEN, host="MyBox.lan"))
        .get("/", host="mybox.lan:7860")
        .status_code
        == 401
    )


def test_a_page_that_listens_everywhere_answers_to_addresses_but_not_to_names() -> None:
    visitor = Visitor(GatePolicy(token=TOKEN, host="0.0.0.0"))
    answers = [
        visitor.get("/", host=host).status_code
        for host in ("192.168.1.7:7860", "[fe80::1]", "evil.example")
    ]
    assert answers == [401, 401, 421]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("headers", SENT_BY_ANOTHER_SITE)
def test_what_another_site_sends_is_refused_in_an_open_session_too(
    method: str, headers: dict[str, str]
) -> None:
    visitor = Visitor()
    cookie = visitor.log_in()
    assert visitor.ask(method, "/", headers={**headers, "cookie": cookie}).status_code == 403
    assert not visitor.echo.scopes


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_what_the_page_itself_sends_passes(site: str) -> None:
    headers = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": site}
    assert open_visitor().ask("POST", "/gradio_api/queue/join", headers=headers).status_code == 200
    assert open_visitor().get("/", sec_fetch_site=site).status_code == 200


def test_a_link_in_a_chat_window_may_lead_to_the_page_but_nowhere_else() -> None:
    click = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    visitor = open_visitor()
    answers = [
        visitor.ask(*where, headers=click).status_code
        for where in (("GET", "/"), ("POST", "/"), ("GET", "/file"))
    ]
    assert answers == [200, 403, 403]


def test_a_websocket_is_refused() -> None:
    assert sent_by_gate({"type": "websocket"}) == [{"type": "websocket.close", "code": 1008}]


def test_what_a_request_claims_of_proxies_does_not_reach_the_app() -> None:
    visitor = open_visitor()
    visitor.get(
        "/",
        x_forwarded_host="evil.example",
        forwarded="host=evil.example",
        x_gradio_server="http://evil.example",
    )
    assert b"evil" not in repr(visitor.echo.scopes[0]["headers"]).encode()


def test_a_share_link_asks_for_the_token_once_it_is_known() -> None:
    policy = GatePolicy(token=TOKEN)
    visitor = Visitor(policy)
    assert visitor.get("/", host="abc.gradio.live").status_code == 421
    policy.allow_share("https://abc.gradio.live")
    assert visitor.get("/", host="abc.gradio.live").status_code == 401
    cookie = visitor.get(f"/?token={TOKEN}", host="abc.gradio.live").headers["set-cookie"]
    assert "; Secure" in cookie
    assert (
        visitor.get("/x", host="abc.gradio.live", cookie=cookie.partition(";")[0]).status_code
        == 200
    )
    assert (b"x-forwarded-proto", b"https") in visitor.echo.scopes[0]["headers"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "mybox", ""])
def test_a_page_that_others_can_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="needs a token"):
        GatePolicy(host=host)


def test_a_page_without_a_token_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        GatePolicy().allow_share("https://abc.gradio.live")


@pytest.mark.parametrize("token", ["", "short"])
def test_a_token_that_can_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="too short"):
        GatePolicy(token=token)


async def streamed(num_kib: int) -> AsyncIterator[bytes]:
    for _ in range(num_kib):
        yield b"x" * KIB


UPLOAD, OTHER = gate.UPLOAD_PATH, "/gradio_api/queue/join"
SIZES = [
    (OTHER, 1, 200),
    (OTHER, 2, 413),
    (UPLOAD, 9, 200),
    (UPLOAD, 10, 413),
    (UPLOAD + "/", 2, 413),
]


@pytest.mark.parametrize(("path", "num_kib", "status"), SIZES)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_body_is_limited_by_its_route(
    path: str, num_kib: int, status: int, is_streamed: bool
) -> None:
    visitor = open_visitor(max_upload_bytes=8 * KIB, max_body_bytes=KIB)
    content = streamed(num_kib) if is_streamed else b"x" * KIB * num_kib
    reply = visitor.ask("POST", path, content=content)
    assert reply.status_code == status
    assert len(visitor.echo.scopes) == (
        is_streamed or status == 200
    )  # a declared size is refused unread


@pytest.mark.parametrize("declared", ["9" * 5000, "-1", "1e9", "\u00b2"])
def test_an_odd_content_length_is_no_error_of_the_gate(declared: str) -> None:
    headers = [(b"host", b"localhost"), (b"content-length", declared.encode("latin-1"))]
    assert open_visitor().ask("POST", "/", headers=headers).status_code in (200, 413)


def test_a_failure_of_the_app_is_not_hidden() -> None:
    visitor = open_visitor()
    visitor.echo.scopes = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        visitor.get()


@pytest.mark.parametrize(
    "headers", [{}, {"host": "x"}, {"origin": "null"}, {"authorization": f"Bearer {TOKEN}"}]
)
def test_every_response_carries_the_security_headers(headers: dict[str, str]) -> None:
    reply = Visitor().get("/", **headers)
    for name, value in gate.SECURITY_HEADERS.items():
        assert reply.headers.get_list(name) == [value]


def test_pages_and_data_are_never_stored() -> None:
    assert open_visitor().get("/").headers.get_list("cache-control") == ["no-store"]


def test_a_token_is_long_and_new_each_time() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000 and min(map(len, tokens)) >= 43


def test_a_token_file_is_private_and_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    token = load_or_create_token(path)
    assert load_or_create_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name != "posix"


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    (path := tmp_path / "token").write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no token"):
        load_or_create_token(path)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_token_file_that_others_can_read_or_that_leads_elsewhere_is_refused(
    tmp_path: Path,
) -> None:
    (readable := tmp_path / "readable").write_text(TOKEN)
    readable.chmod(0o644)
    (link := tmp_path / "link").symlink_to(readable)
    for path in (readable, link, tmp_path):
        with pytest.raises(ValueError, match="only you can read"):
            load_or_create_token(path)


def test_the_link_holds_the_token_only_if_there_is_one() -> None:
    assert login_url("http://127.0.0.1:7860/", TOKEN) == f"http://127.0.0.1:7860/?token={TOKEN}"
    assert login_url("http://127.0.0.1:7860/", None) == "http://127.0.0.1:7860/"
