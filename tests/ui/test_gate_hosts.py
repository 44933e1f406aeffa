"""Test which hosts, sites and proxies may ask a page behind the gate."""

import pytest

from tests.builders.gate_visitor import TOKEN, Visitor, open_visitor, sent_by_gate
from ui.gate import GatePolicy

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
def test_other_names_are_refused_even_with_the_token(host: str) -> None:
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
    visitor = Visitor(GatePolicy(token=TOKEN, host="MyBox.lan"))
    assert visitor.get("/", host="mybox.lan:7860").status_code == 401


def test_a_page_that_listens_everywhere_answers_to_addresses_only() -> None:
    visitor = Visitor(GatePolicy(token=TOKEN, host="0.0.0.0"))
    answers = [
        visitor.get("/", host=host).status_code
        for host in ("192.168.1.7:7860", "[fe80::1]", "evil.example")
    ]
    assert answers == [401, 401, 421]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("headers", SENT_BY_ANOTHER_SITE)
def test_requests_of_another_site_are_refused_even_in_an_open_session(
    method: str, headers: dict[str, str]
) -> None:
    visitor = Visitor()
    cookie = visitor.log_in()
    assert visitor.ask(method, "/", headers={**headers, "cookie": cookie}).status_code == 403
    assert not visitor.echo.scopes


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_requests_of_the_page_itself_pass(site: str) -> None:
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


def test_proxy_headers_of_a_request_do_not_reach_the_app() -> None:
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
    cookie = cookie.partition(";")[0]
    assert visitor.get("/x", host="abc.gradio.live", cookie=cookie).status_code == 200
    assert (b"x-forwarded-proto", b"https") in visitor.echo.scopes[0]["headers"]
