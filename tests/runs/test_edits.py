"""Changes that users make to runs: title, notes, tags, trash."""

from pathlib import Path

import pytest

from core import runs
from core.job import RunNotFound, SpecError
from core.runs import Home, Run, edits
from core.runs.records import Annotations


def test_title_notes_and_tags_change_one_by_one(finished: Run) -> None:
    edits.annotate(
        finished.home,
        finished.id,
        title=" First ",
        notes="two\nlines\t!",
        tags=["a", "b", "a", " "],
    )
    run = edits.annotate(finished.home, finished.id, title="Second")
    assert (run.name, run.about.notes, run.about.tags) == ("Second", "two\nlines\t!", ("a", "b"))
    assert run.id == finished.id


@pytest.mark.parametrize(
    "words",
    [
        {"title": "x" * 121},
        {"title": "a\nb"},
        {"notes": "\0"},
        {"tags": ["\u202e"]},
        {"tags": map(str, range(21))},
    ],
)
def test_long_or_misleading_texts_are_refused(finished: Run, words: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        edits.annotate(finished.home, finished.id, **words)  # type: ignore[arg-type]
    assert runs.read(finished.home, finished.id).about == Annotations()


def test_a_deleted_run_can_be_restored_until_the_trash_is_emptied(finished: Run) -> None:
    home = finished.home
    edits.delete(home, finished.id)
    assert runs.listing.list_runs(home) == ()
    assert edits.deleted(home) == (finished.id,)
    assert edits.restore(home, finished.id).job == finished.job
    edits.delete(home, finished.id)
    assert edits.empty_trash(home) > 1000
    assert edits.deleted(home) == ()
    with pytest.raises(RunNotFound, match="no run"):
        edits.restore(home, finished.id)


@pytest.mark.parametrize("name", ["..", "../runs", "/etc", "a/b", "", "\0"])
def test_only_a_run_in_the_trash_can_be_restored(finished: Run, name: str) -> None:
    edits.delete(finished.home, finished.id)
    with pytest.raises(RunNotFound):
        edits.restore(finished.home, name)


def test_emptying_the_trash_never_follows_a_link(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (finished.folder / "output").symlink_to(tmp_path / "kept")
    edits.delete(finished.home, finished.id)
    (finished.home.trash / "linked").symlink_to(tmp_path / "kept")
    edits.empty_trash(finished.home)
    assert (tmp_path / "kept" / "file").read_text() == "kept"


def test_a_trash_that_was_half_removed_goes_with_the_next(home: Home) -> None:
    left = home.path / ".trash.0123abcd"
    left.mkdir()
    (left / "weights").write_bytes(b"x" * 1000)
    assert edits.empty_trash(home) == 1000
    assert not left.exists()
