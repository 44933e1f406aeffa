"""Test the gate in front of a trivial app: login, sessions, guesses, limits and token files.

test_gate_hosts.py tests which hosts and sites may ask, test_gate_on_gradio.py the gate with Gradio.
"""

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.builders.gate_visitor import TOKEN, Visitor, open_visitor
from ui import gate
from ui.gate import GatePolicy, load_or_create_token, login_url, new_token, sessions

KIB = 1024


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/startup-events/", "/gradio_api/heartbeat/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_without_the_token_every_route_answers_with_the_login_page(method: str, path: str) -> None:
    reply = Visitor().ask(method, path)
    assert (reply.status_code, reply.content) == (401, gate.LOGIN_PAGE.encode())
    assert len(reply.content) < 4 * KIB


def test_gradios_check_of_itself_passes_without_the_token() -> None:
    assert Visitor().get("/gradio_api/startup-events").status_code == 200
    assert Visitor().ask("POST", "/gradio_api/startup-events").status_code == 401


def test_the_link_logs_in_and_leads_away_from_the_token() -> None:
    reply = Visitor().get(f"/?token={TOKEN}&__theme=dark")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly; SameSite=Lax" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie


def test_a_session_opens_every_route() -> None:
    visitor = Visitor()
    assert visitor.get("/config", cookie=f"other=1; {visitor.log_in()}; more=2").status_code == 200


def test_an_old_link_in_an_open_session_leads_home_too() -> None:
    visitor = Visitor()
    assert visitor.get("/?token=old", cookie=visitor.log_in()).status_code == 303
    assert open_visitor().get("/?token=old").status_code == 303


def test_the_cookie_of_a_page_on_https_stays_on_https() -> None:
    reply = Visitor(base_url="https://127.0.0.1:7860").get(f"/?token={TOKEN}")
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith("__Host-")
    assert cookie.endswith("; Secure")


def test_two_ports_of_a_host_have_two_cookies() -> None:
    first = Visitor(base_url="http://127.0.0.1:7860").log_in()
    second = Visitor(base_url="http://127.0.0.1:7861").log_in()
    assert first.partition("=")[0] != second.partition("=")[0]


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
    visitor.now += sessions.SESSION_IDLE_SECONDS - 1
    assert visitor.get("/", cookie=cookie).status_code == 200
    visitor.now += sessions.SESSION_IDLE_SECONDS + 1
    assert visitor.get("/", cookie=cookie).status_code == 401


def test_a_session_ends_after_a_week_however_busy() -> None:
    visitor = Visitor()
    cookie, answers = visitor.log_in(), []
    for _ in range(15):
        visitor.now += sessions.SESSION_IDLE_SECONDS / 2
        answers.append(visitor.get("/", cookie=cookie).status_code)
    assert answers == [200] * 13 + [401] * 2


def test_sessions_are_bounded_and_kept_as_digests() -> None:
    opened = sessions.Sessions(lambda: 0.0)
    ids = [opened.open() for _ in range(sessions.MAX_SESSIONS + 1)]
    assert len(opened.seen) == sessions.MAX_SESSIONS
    assert opened.has(ids[-1])
    assert not opened.has(ids[0])
    assert not {session.encode() for session in ids} & set(opened.seen)


def test_the_eleventh_wrong_token_in_a_minute_has_to_wait() -> None:
    visitor = Visitor()
    answers = [visitor.get(f"/?token=wrong{guess}").status_code for guess in range(10)]
    assert answers == [401] * 10
    late = visitor.get("/?token=wrong")
    assert (late.status_code, late.headers["retry-after"]) == (429, "60")
    visitor.now += 61
    assert visitor.get("/?token=wrong").status_code == 401


def test_wrong_tokens_never_shut_out_the_right_one() -> None:
    visitor = Visitor()
    for guess in range(2 * sessions.MAX_FAILURES):
        visitor.get(f"/?token={guess}")
    assert visitor.get(f"/?token={TOKEN}").status_code == 303
    assert visitor.get("/x", authorization=f"Bearer {TOKEN}").status_code == 200


def test_wrong_bearers_count_as_guesses() -> None:
    visitor = Visitor()
    answers = [visitor.get("/x", authorization="Bearer no").status_code for _ in range(11)]
    assert answers == [401] * 10 + [429]


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
    # The owner, who sits at this machine, is not locked out.
    assert visitor.get(f"/?token={TOKEN}").status_code == 303


def test_guessers_together_get_thirty_guesses_a_minute_and_bounded_memory() -> None:
    throttle = sessions.Throttle(lambda: 0.0)
    for guesser in range(100_000):
        if not throttle.is_closed_to(f"10.0.0.{guesser}"):
            throttle.note_failure(f"10.0.0.{guesser}")
    assert len(throttle.failures) == sessions.MAX_FAILURES
    assert throttle.is_closed_to("someone new")


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
    # A body whose size is declared too large is refused before the app reads it.
    reaches_app = is_streamed or status == 200
    assert len(visitor.echo.scopes) == int(reaches_app)


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
    assert len(tokens) == 1000
    assert min(map(len, tokens)) >= 43


def test_a_token_file_is_private_and_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    token = load_or_create_token(path)
    assert load_or_create_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name != "posix"


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no token"):
        load_or_create_token(path)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_token_file_that_others_can_read_or_a_link_is_refused(tmp_path: Path) -> None:
    readable = tmp_path / "readable"
    readable.write_text(TOKEN)
    readable.chmod(0o644)
    link = tmp_path / "link"
    link.symlink_to(readable)
    for path in (readable, link, tmp_path):
        with pytest.raises(ValueError, match="only you can read"):
            load_or_create_token(path)


def test_the_link_holds_the_token_only_if_there_is_one() -> None:
    assert login_url("http://127.0.0.1:7860/", TOKEN) == f"http://127.0.0.1:7860/?token={TOKEN}"
    assert login_url("http://127.0.0.1:7860/", None) == "http://127.0.0.1:7860/"
