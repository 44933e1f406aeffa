"""Test the command line with data: `check`, and rows that `train` refuses or warns of."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from core import runs
from core.dataset.preview import Preview
from core.job import PreviewError, Problem
from core.runs import Home
from tests.builders.dataset_files import rows_in
from tests.builders.model_folders import copy_of_demo
from tests.builders.paths import DATA

pytestmark = pytest.mark.training  # a program of its own reads rows as a model does
Printed = pytest.CaptureFixture[str]


def test_a_broken_dataset_is_refused_before_training_with_its_line(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n{"text": 7}\n')
    assert tailor("train", "--dataset", file) == 2
    assert "line 2" in capsys.readouterr().err
    assert tailor("check", file) == 2


def test_rows_that_would_lose_their_answers_are_refused(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path, home: Home, fake_program: None
) -> None:
    rows = [{"prompt": "Say it. " * words, "completion": "Yes"} for words in (1, 1, 90)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))  # an array is measured like lines
    asked = ("train", "--demo", "--dataset", tmp_path / "rows.json", "--max-length", "32")
    assert tailor(*asked) == 2
    message = capsys.readouterr().err
    assert "the whole answer of 1 of 3 rows" in message
    assert "allow it with max_lost_answers" in message
    assert runs.listing.list_runs(home) == ()
    assert tailor(*asked, "--max-lost-answers", "0.5") == 0


def test_a_broken_line_of_a_mixed_file_is_refused_before_training(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path, home: Home
) -> None:
    sound, broken = tmp_path / "sound.jsonl", tmp_path / "broken.jsonl"
    sound.write_text('{"text": "fine"}\n')
    broken.write_text('{"text": "fine"}\n{"text": 7}\n')
    assert tailor("train", "--demo", "--dataset", sound, "--mix", broken) == 2
    message = capsys.readouterr().err
    assert message.startswith("mix: broken.jsonl, line 2, text: is a number")
    assert runs.listing.list_runs(home) == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("--mix", "long.jsonl = 2"), "the whole answer of 2 of 12 rows"),
        (("--mix", "long.jsonl = 2", "--max-lost-answers", "0.2"), ""),
        (
            ("--dataset", "long.jsonl", "--mix", "short.jsonl = 0.5", "--max-rows", "6"),
            "the whole answer of 1 of 6 rows",
        ),
        (("--dataset", "mostly.jsonl"), "the whole answer of 9 of 10 rows"),
        (("--dataset", "mostly.jsonl", "--max-rows", "1"), "cut off the answer of every row"),
    ],
)
def test_lost_answers_are_counted_among_the_rows_that_are_trained_on(
    tailor: Callable[..., int],
    capsys: Printed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: None,
    fields: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lengths in {"short": [1] * 10, "long": [90], "mostly": [90] * 9 + [1]}.items():
        rows = ({"prompt": "Say it. " * words, "completion": "Yes"} for words in lengths)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (
        "train",
        "--demo",
        "--dataset",
        "short.jsonl",
        "--max-length",
        "32",
        "--eval-fraction",
        "0",
    )
    assert tailor(*asked, *fields) == (2 if says else 0)
    assert says in capsys.readouterr().err


def test_rows_that_cannot_be_measured_are_trained_with_a_message(
    tailor: Callable[..., int],
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: None,
) -> None:
    def all_lengths(*_arguments: object, **_options: object) -> None:
        raise PreviewError(Problem("dataset", "the preview stopped", "try again"))

    monkeypatch.setattr(Preview, "all_lengths", all_lengths)
    assert tailor("train", "--demo") == 0
    assert "The rows are not measured: the preview stopped" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("train", "--demo"), ("check", "demo")])
def test_a_tokenizer_that_cannot_be_used_is_refused_before_the_start(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path, home: Home, command: Sequence[str]
) -> None:
    model = copy_of_demo(tmp_path / "model")
    (model / "tokenizer_config.json").unlink()  # it names the end token
    assert tailor(*command, "--model", model) == 2
    assert "has no token that could pad" in capsys.readouterr().err
    assert not list(home.path.glob("runs/*"))


def test_a_check_with_a_model_without_weights_says_so(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    model = copy_of_demo(tmp_path / "model")
    (model / "model.safetensors").unlink()
    assert tailor("check", "demo", "--model", model) == 2
    assert "has no weights in its folder" in capsys.readouterr().err


def test_the_demo_data_is_usable(tailor: Callable[..., int], capsys: Printed) -> None:
    assert tailor("check", "demo", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == report["valid_rows"] > 200
    assert report["format"] == "conversational"


@pytest.fixture
def leaking_files(tmp_path: Path) -> tuple[Path, Path]:
    """Write training and evaluation rows. Line 2 of the evaluation rows is in both."""
    files = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    for path, answers in zip(files, ("ab", "ca"), strict=True):
        rows = [json.dumps({"prompt": "Say it.", "completion": answer}) for answer in answers]
        path.write_text("\n".join(rows))
    return files


LEAK = "The evaluation data has 1 row (line 2) that the training data has too"


def test_check_warns_of_evaluation_rows_in_the_data(
    tailor: Callable[..., int], capsys: Printed, leaking_files: tuple[Path, Path]
) -> None:
    train, held_out = leaking_files
    assert tailor("check", train, "--eval", held_out) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(LEAK)


def test_check_of_a_model_says_in_json_why_it_cannot_start(
    tailor: Callable[..., int], capsys: Printed, leaking_files: tuple[Path, Path]
) -> None:
    train, _held_out = leaking_files
    assert tailor("check", train, "--eval", train, "--model", "demo", "--json") == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem["field"] == "eval_dataset"


def test_check_counts_evaluation_rows_in_json(
    tailor: Callable[..., int], capsys: Printed, leaking_files: tuple[Path, Path]
) -> None:
    train, held_out = leaking_files
    tailor("check", train, "--eval", held_out, "--json")
    assert json.loads(capsys.readouterr().out)["leaked"] == 1


def test_check_names_an_evaluation_file_that_is_not_there(
    tailor: Callable[..., int], capsys: Printed
) -> None:
    assert tailor("check", "demo", "--eval", "none.jsonl") == 2
    assert "there is no file none.jsonl" in capsys.readouterr().err


def test_a_run_that_trains_on_evaluation_rows_starts_with_a_warning(
    tailor: Callable[..., int],
    capsys: Printed,
    leaking_files: tuple[Path, Path],
    fake_program: None,
) -> None:
    train, held_out = leaking_files
    assert tailor("train", "--demo", "--dataset", train, "--eval-dataset", held_out) == 0
    assert f"train.jsonl: {LEAK}" in capsys.readouterr().err


def test_columns_are_mapped_before_training(
    tailor: Callable[..., int], capsys: Printed, home: Home, fake_program: None
) -> None:
    flags = ("--dataset", DATA / "two_columns.jsonl", "--columns", "question=frage,answer=antwort")
    assert tailor("train", "--demo", *flags) == 0
    assert "Columns: frage became question" in capsys.readouterr().err
    (run,) = runs.listing.list_runs(home)
    (row,) = rows_in(run.folder / "data" / "train.jsonl")
    assert row.keys() == {"question", "answer"}


def test_plain_text_is_trained_on_as_it_is_split(
    tailor: Callable[..., int], capsys: Printed, home: Home, fake_program: None
) -> None:
    flags = ("--stage", "cpt", "--dataset", DATA / "tale.txt", "--split-text", "whole")
    assert tailor("train", "--demo", *flags) == 0
    (run,) = runs.listing.list_runs(home)
    (row,) = rows_in(run.folder / "data" / "train.jsonl")
    assert row["text"].startswith("Chapter one\n\nThe fox")


def test_a_table_that_cannot_be_imported_names_its_line(
    tailor: Callable[..., int], capsys: Printed, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n\n1\n")
    assert tailor("train", "--demo", "--dataset", tmp_path / "rows.csv") == 2
    assert "line 4, row: the row that ends here has 1 cell" in capsys.readouterr().err


@pytest.fixture
def file_with_images(tmp_path: Path) -> Path:
    """Write rows with a column of pictures, which are not read."""
    file = tmp_path / "birds.jsonl"
    row = {"question": "Which bird is this?", "answer": "A duck.", "images": ["duck.png"]}
    file.write_text(json.dumps(row) + "\n")
    return file


def test_what_is_not_read_stops_a_start_until_it_is_accepted(
    tailor: Callable[..., int], capsys: Printed, fake_program: None, file_with_images: Path
) -> None:
    train = ("train", "--demo", "--dataset", file_with_images)
    assert tailor(*train) == 2
    assert "images (1 row, first on line 1)" in capsys.readouterr().err
    assert tailor(*train, "--accept-unread") == 0


def test_check_of_a_model_refuses_what_the_start_refuses(
    tailor: Callable[..., int], capsys: Printed, file_with_images: Path
) -> None:
    check = ("check", file_with_images, "--model", "demo", "--json")
    assert tailor(*check) == 2
    report = json.loads(capsys.readouterr().out)
    assert "images (1 row" in report["problems"][0]["message"]
    assert tailor(*check, "--accept-unread") == 0
