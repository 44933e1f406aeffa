"""The page behind a proxy: the addresses that --public-url names, and no others."""

import pytest

from tests.builders.gate_visitor import TOKEN, Visitor
from ui.gate import GatePolicy, PublicUrl

NAME = "pod-7960.example.net"
ROOT_URL = f"https://{NAME}"
LAB_URL = "https://lab.example.org:8443/user/jo@example.org/proxy/7860"
LAB = {"host": "lab.example.org:8443"}
PREFIX = "/user/jo@example.org/proxy/7860"


def visitor_behind(*urls: str) -> Visitor:
    return Visitor(GatePolicy(token=TOKEN, public_urls=tuple(PublicUrl.parse(url) for url in urls)))


def cookie_of(visitor: Visitor, path: str, **headers: str) -> str:
    answer = visitor.get(f"{path}?token={TOKEN}", **headers)
    return answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "text, url",
    [
        ("https://Pod.example.net/", "https://pod.example.net"),
        ("http://box:8080/a/b/", "http://box:8080/a/b"),
        ("https://box:443", "https://box"),
        ("https://[fe80::1]:7860/x", "https://[fe80::1]:7860/x"),
        (LAB_URL, LAB_URL),
    ],
)
def test_an_address_is_read(text: str, url: str) -> None:
    assert PublicUrl.parse(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "box",
        "box/path",
        "ftp://box",
        "https://",
        "https://box:port",
        "https://box/?token=x",
        "https://box/#top",
        "https://me@box",
        "https://box/a b",
        'https://box/"><script>',
        "https://box//evil.example",
        "https://[::1",
        "https://box/%0d%0a x",
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"public-url: .*give an address such as"):
        PublicUrl.parse(text)


def test_the_name_is_served_and_the_token_asked() -> None:
    visitor = visitor_behind(ROOT_URL)
    assert visitor.get("/", host=NAME).status_code == 401
    assert visitor.get("/", host="other.example.net").status_code == 421


def test_a_name_that_was_not_given_is_told_the_option() -> None:
    answer = Visitor().get("/", host=NAME)
    assert f"--public-url https://{NAME}" in answer.text


def test_this_machine_asks_for_the_token_too() -> None:
    assert visitor_behind(ROOT_URL).get("/").status_code == 401


def test_a_public_address_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        GatePolicy(public_urls=(PublicUrl.parse(ROOT_URL),))


def test_a_public_address_lets_no_account_in_without_the_token() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        GatePolicy(TOKEN, public_urls=(PublicUrl.parse(ROOT_URL),), is_own=lambda a, b: True)


def test_the_link_leads_to_the_public_path() -> None:
    answer = visitor_behind(LAB_URL).get(f"/?token={TOKEN}", **LAB)
    assert answer.headers["location"] == f"{PREFIX}/"


def test_the_cookie_belongs_to_the_public_path() -> None:
    cookie = cookie_of(visitor_behind(LAB_URL), "/", **LAB)
    assert cookie.startswith("__Secure-tailor")
    assert f"Path={PREFIX};" in cookie
    assert cookie.endswith("; Secure")


def test_the_cookie_of_a_name_without_a_path_is_the_hosts_own() -> None:
    assert cookie_of(visitor_behind(ROOT_URL), "/", host=NAME).startswith("__Host-tailor")


@pytest.mark.parametrize("path", ["/config", f"{PREFIX}/config"])
def test_a_proxy_may_keep_the_path_or_remove_it(path: str) -> None:
    visitor = visitor_behind(LAB_URL)
    cookie = cookie_of(visitor, "/", **LAB).partition(";")[0]
    assert visitor.get(path, cookie=cookie, **LAB).status_code == 200
    assert visitor.echo.scopes[0]["path"] == "/config"
    assert visitor.echo.scopes[0]["raw_path"] == b"/config"


def test_gradio_is_told_the_public_address() -> None:
    visitor = visitor_behind(LAB_URL)
    cookie = cookie_of(visitor, "/", **LAB).partition(";")[0]
    visitor.get("/config", cookie=cookie, x_gradio_server="http://evil.example", **LAB)
    headers = visitor.echo.scopes[0]["headers"]
    assert [value for name, value in headers if name == b"x-gradio-server"] == [LAB_URL.encode()]


def test_the_path_without_a_slash_leads_to_the_one_with_it() -> None:
    answer = visitor_behind(LAB_URL).get(PREFIX, **LAB)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PREFIX}/")


def test_the_login_page_sends_the_token_to_the_public_path() -> None:
    answer = visitor_behind(LAB_URL).get("/", **LAB)
    assert f'<form action="{PREFIX}/">' in answer.text


@pytest.mark.parametrize("host", ["lab.example.org:8443", "lab.example.org"])
def test_the_public_page_itself_may_send(host: str) -> None:
    # a proxy may leave the port out of Host
    visitor = visitor_behind(LAB_URL)
    cookie = cookie_of(visitor, "/", host=host).partition(";")[0]
    headers = {"origin": "https://lab.example.org:8443", "cookie": cookie, "host": host}
    answer = visitor.ask("POST", "/gradio_api/queue/join", headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://lab.example.org:8443", "https://lab.example.org", "https://evil.example", "null"],
)
def test_another_origin_may_not_send_to_the_public_page(origin: str) -> None:
    answer = visitor_behind(LAB_URL).ask("POST", "/x", headers={**LAB, "origin": origin})
    assert answer.status_code == 403


def test_the_longest_path_of_a_host_is_meant() -> None:
    urls = [PublicUrl.parse(f"https://box{path}") for path in ("", "/a", "/a/b")]
    policy = GatePolicy(TOKEN, public_urls=tuple(urls))
    found = [policy.public_url_of("box", path) for path in ("/a/b/config", "/a/c", "/config")]
    assert found == [urls[2], urls[1], urls[0]]


def test_a_proxy_on_this_machine_may_name_a_given_host() -> None:
    answer = visitor_behind(LAB_URL).get("/", x_forwarded_host="lab.example.org:8443")
    assert f'<form action="{PREFIX}/">' in answer.text


def test_a_forwarded_host_that_was_not_given_is_not_believed() -> None:
    answer = visitor_behind(LAB_URL).get("/", x_forwarded_host="evil.example")
    assert '<form action="/">' in answer.text
    assert Visitor().get("/", host="evil.example", x_forwarded_host="localhost").status_code == 421


def test_a_proxy_on_this_machine_may_say_that_it_speaks_https() -> None:
    visitor = Visitor()
    cookie = cookie_of(visitor, "/", x_forwarded_proto="https")
    assert cookie.startswith("__Host-tailor")
    visitor.get("/x", cookie=cookie.partition(";")[0], x_forwarded_proto="https")
    assert (b"x-forwarded-proto", b"https") in visitor.echo.scopes[0]["headers"]
