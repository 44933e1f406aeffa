"""Output of `runs publish`, `runs continue` and the checkpoints in `runs show`."""

import json
from pathlib import Path

import pytest

import app
from core.runs import Home
from core.training.contract.files import write_json
from tests.builders.checkpoints import WEIGHTS, add_checkpoint, add_result
from tests.builders.fake_runs import FINISHED, bare_run, write_metrics

Printed = pytest.CaptureFixture[str]
LAST_STEP, BEST_STEP = 20, 10


@pytest.fixture
def folder(home: Home) -> Path:
    """Make a finished run with two checkpoints, the first of which is the best."""
    run = bare_run(home, "run")
    write_json(run / "status.json", {**FINISHED, "epoch": 2.0, "num_train_epochs": 2.0})
    for step, loss in ((BEST_STEP, 0.5), (LAST_STEP, 0.75)):
        add_checkpoint(run, step)
        write_metrics(run, range(step, step + 1), eval_loss=loss)
    add_result(run, LAST_STEP)
    return run


def do(folder: Path, *words: str) -> int:
    home = folder.parent.parent
    return app.main(["runs", *words, "--home", str(home)])


def test_a_run_is_shown_with_its_checkpoints(folder: Path, capsys: Printed) -> None:
    assert do(folder, "show", "run") == 0
    printed = capsys.readouterr().out
    assert f"Best at step {BEST_STEP}: eval_loss 0.5." in printed
    lines = [line.split() for line in printed.splitlines()]
    assert [str(BEST_STEP), "eval_loss", "0.5", "0", "MiB", "best"] in lines
    assert [str(LAST_STEP), "eval_loss", "0.75", "0", "MiB", "the", "result"] in lines


def test_the_json_of_a_run_has_best_result_and_checkpoints(folder: Path, capsys: Printed) -> None:
    assert do(folder, "show", "run", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["best"] == {"step": BEST_STEP, "metric": "eval_loss", "value": 0.5}
    assert shown["result_step"] == LAST_STEP
    assert [(each["step"], each["value"]) for each in shown["checkpoints"]] == [
        (BEST_STEP, 0.5),
        (LAST_STEP, 0.75),
    ]


def test_a_checkpoint_is_published_and_undone(folder: Path, capsys: Printed) -> None:
    assert do(folder, "publish", "run", str(BEST_STEP)) == 0
    printed = capsys.readouterr().out
    assert f"The result is that of step {BEST_STEP}: " in printed
    assert "To undo: python app.py runs publish run original" in printed
    weights = folder / "output" / WEIGHTS
    assert weights.read_bytes() == b"weights of step %d" % BEST_STEP
    assert do(folder, "publish", "run", "original", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"id": "run", "result_step": LAST_STEP}
    assert weights.read_bytes() == b"result of the training"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("publish", "run", "7"),
            "STEP: run has no checkpoint of step 7; it has those of steps 10",
        ),
        (("publish", "run", "-1"), "STEP: "),
        (("publish", "run", "9" * 30), "is not a step; give the step of a checkpoint"),
        (("publish", "run", "٣"), "is not a step"),
        (("publish", "run"), "STEP: is missing"),
        (("publish", "nobody", "7"), "run: there is no run 'nobody'"),
        (("continue", "run", "--epochs", "two"), "--epochs: 'two' is not a number"),
        (("continue", "run", "--epochs", "0"), "epochs: 0 is not a number of epochs"),
        (("list", "--epochs", "2"), "--epochs: list has no use for it"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(
    folder: Path, capsys: Printed, words: tuple[str, ...], says: str
) -> None:
    try:
        code = do(folder, *words)
    except SystemExit as ended:  # of argparse
        code = int(str(ended.code))
        says = ""
    printed = capsys.readouterr().err
    assert code == 2
    assert says in printed
    assert printed.count("\n") == 1


def test_a_running_run_publishes_nothing(folder: Path, capsys: Printed) -> None:
    write_json(folder / "status.json", {"state": "queued"})
    write_json(folder.parent.parent / "queue.json", {"waiting": ["run"], "devices": {}})
    assert do(folder, "publish", "run", str(BEST_STEP)) == 2
    assert "run is queued" in capsys.readouterr().err


def test_checkpoints_of_pissa_are_refused_with_the_reason(home: Home, capsys: Printed) -> None:
    run = bare_run(home, "pissa", init_lora_weights="pissa")
    add_checkpoint(run, BEST_STEP)
    assert do(run, "publish", "pissa", str(BEST_STEP)) == 2
    assert "fit a changed base" in capsys.readouterr().err
