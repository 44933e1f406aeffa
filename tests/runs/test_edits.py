"""Changes that users make to runs: title, notes, tags, trash."""

from pathlib import Path

import pytest

from core import runs
from core.job import RunNotFound, SpecError
from core.runs import Home, Run, edits
from core.runs.files import read_json
from core.runs.records import Annotations
from core.training.contract.files import write_json
from tests.builders.fake_runs import NewRun


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


def stopped_run(home: Home, new_run: NewRun, **fields: object) -> Run:
    """Return a run that was stopped, with other fields in its job."""
    run = new_run()
    path = run.folder / "job.json"
    write_json(path, {**read_json(path), **fields})
    write_json(run.folder / "status.json", {"state": "stopped", "step": 3})
    return runs.read(home, run.id)


@pytest.mark.parametrize(("before", "after", "passes"), [(1, 2, 4), (2, 1, 16), (2, 4, 4)])
def test_a_run_keeps_the_rows_of_a_step_on_other_devices(
    home: Home, new_run: NewRun, before: int, after: int, passes: int
) -> None:
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    run = stopped_run(home, new_run, num_devices=before, parallelism="ddp", **batch)
    job = edits.change_num_devices(home, run.id, str(after)).job
    assert (job.num_devices, job.gradient_accumulation_steps) == (after, passes)
    assert job.parallelism == "ddp"


def test_a_batch_that_is_too_large_for_more_devices_is_divided(home: Home, new_run: NewRun) -> None:
    batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    run = stopped_run(home, new_run, **batch)
    job = edits.change_num_devices(home, run.id, "2").job
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == (4, 1)


@pytest.mark.parametrize(
    ("fields", "number", "said"),
    [
        ({"num_devices": 2, "parallelism": "fsdp"}, "1", "divided among devices; give 2 or more"),
        ({"num_devices": 2, "parallelism": "ddp"}, "0", "0 cannot continue this run"),
        ({"num_devices": 2, "parallelism": "ddp"}, "two", "is not a whole number"),
        ({"num_devices": 2, "parallelism": "ddp"}, "7", "7 devices cannot share the"),
    ],
)
def test_devices_that_cannot_continue_a_run_leave_it_as_it_is(
    home: Home, new_run: NewRun, fields: dict[str, object], number: str, said: str
) -> None:
    run = stopped_run(home, new_run, **fields)
    with pytest.raises(SpecError, match=said):
        edits.change_num_devices(home, run.id, number)
    assert runs.read(home, run.id).job == run.job


def test_a_finished_run_keeps_its_devices(finished: Run) -> None:
    with pytest.raises(SpecError, match="is finished"):
        edits.change_num_devices(finished.home, finished.id, 2)
