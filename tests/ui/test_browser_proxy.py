"""Test the page in a real browser behind a real nginx, under a name and a path."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from core.runs import Home, queue
from tests.builders.browser import BROWSER_TESTS, App, points_of, wait_for_points
from tests.builders.fake_runs import NEVER_END, NewRun
from tests.builders.nginx import NEEDS_NGINX, nginx_in_front
from tests.builders.ports import free_port

pytestmark = [*BROWSER_TESTS, NEEDS_NGINX]
PATH = "/user/jo@example.org/proxy/7860"
ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}'


@pytest.fixture
def link(home: Home, tmp_path: Path) -> Iterator[str]:
    """Return the link with the token to a page behind nginx."""
    port = free_port()
    url = f"http://tailor.localhost:{port}{PATH}"
    app = App(home.path, "--public-url", url)
    with nginx_in_front(app.port, port, PATH, tmp_path):
        yield f"{url}/?token={(home.path / 'token').read_text().strip()}"
    app.end()


@pytest.mark.slow
def test_the_page_works_behind_nginx_under_a_path(
    link: str, page: Page, new_run: NewRun, tmp_path: Path
) -> None:
    refused: list[str] = []
    page.on("response", lambda reply: refused.append(reply.url) if reply.status >= 400 else None)
    run = new_run(seed=NEVER_END)
    page.goto(link.partition("?")[0])
    expect(page.get_by_label("Token")).to_be_visible()
    refused.clear()

    page.goto(link)
    assert page.url == link.partition("?")[0]
    expect(page.locator("#estimate .verdict")).to_contain_text("Fits")
    rows = tmp_path / "my rows.jsonl"
    rows.write_text(f"{ROW}\n" * 3)
    page.locator("#upload input[type=file]").set_input_files(rows)
    expect(page.locator("#data-line")).to_contain_text("3 rows")

    queue.submit(run.home, run)
    page.reload()
    wait_for_points(page, "loss", 5)
    seen = points_of(page, "loss")
    wait_for_points(page, "loss", seen + 5)

    page.get_by_role("button", name="Files").click()
    with page.expect_download() as download:
        page.locator(f"a[href$='{run.id}.zip']").click()
    assert download.value.path().stat().st_size > 1000
    assert refused == []
