"""Test what those read who came in by the token: the home and named folders, nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs import Home
from tests.builders.browser import App
from tests.builders.edited_page import EditedPage
from tests.builders.gate_visitor import TOKEN, Visitor
from ui.gate import GatePolicy
from ui.gate.accounts import is_guest
from ui.server import find_folder

SECRET = "hf_a-token-of-the-account"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a folder `shared` of data, and a file of credentials beside it."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "shared").mkdir()
    (folder / "shared" / "rows.jsonl").write_text('{"text": "shared words"}\n')
    (folder / "credentials.json").write_text(f'[{{"text": "{SECRET}"}}]')
    return folder


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[EditedPage]:
    home = Home.find(str(tmp_path_factory.mktemp("home")))
    app = App(home.path, "--token", "--data", str(files / "shared"))
    yield EditedPage(app, (home.path / "token").read_text().strip())
    app.end()


def test_guests_cannot_use_other_files(guest: EditedPage, files: Path) -> None:
    shown = guest.fire("on_edit", "tab", dataset=str(files / "credentials.json"))
    assert "in no folder that this page may read" in str(shown["dataset"])
    assert not shown["data_line"]


@pytest.mark.parametrize("event", ["on_repair", "on_remove_rows", "on_import"])
def test_guests_cannot_rewrite_other_files(event: str, guest: EditedPage, files: Path) -> None:
    shown = guest.fire(event, "tab", dataset=str(files / "credentials.json"))
    assert "in no folder that this page may read" in str(shown["page_message"])


def test_guests_use_the_named_folders(guest: EditedPage, files: Path) -> None:
    shown = guest.fire("on_edit", "tab", dataset=str(files / "shared" / "rows.jsonl"))
    assert "1 row" in shown["data_line"]


@pytest.mark.parametrize(("is_own", "expected"), [(True, [False]), (False, [True])])
def test_the_gate_marks_who_came_in_by_the_token(is_own: bool, expected: list[bool]) -> None:
    visitor = Visitor(GatePolicy(token=TOKEN, is_own=lambda client, server: is_own))
    visitor.get("/file", authorization=f"Bearer {TOKEN}")
    headers = [{key.decode(): "" for key, _ in scope["headers"]} for scope in visitor.echo.scopes]
    assert [is_guest(each) for each in headers] == expected


def test_a_page_without_a_token_has_no_guests() -> None:
    visitor = Visitor(GatePolicy())
    visitor.get("/file")
    assert b"x-tailor-guest" not in dict(visitor.echo.scopes[0]["headers"])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        find_folder(str(tmp_path / "none"))
