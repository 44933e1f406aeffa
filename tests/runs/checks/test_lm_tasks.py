"""Suites as tasks of lm-evaluation-harness, and that program beside a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.job import SpecError
from core.runs import Home, read
from core.runs.checks import find_suite, folders_of, lm_tasks
from core.runs.results import lm_evaluation
from core.training.contract.checks.suite_files import parse_suite
from tests.builders.fake_runs import bare_run

LINES = b"""\
{"prompt": "Two and two?", "number": 4, "max_new_tokens": 9}
{"prompt": "The sky is", "choice": ["blue", "loud"], "answer": "blue"}
{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], \
"contains": "hi"}
"""
JUDGE = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from tailor_scoring import process_results
rows = [json.loads(line) for line in open(sys.argv[2])]
print([process_results(rows[0], [answer])["passed"] for answer in ("It is 4.", "5")])
"""
HARNESS = """\
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
side = pathlib.Path(flags["--output_path"])
assert (pathlib.Path(flags["--include_path"]) / f"{flags['--tasks']}.yaml").is_file()
side.mkdir()
score = 0.5 if "peft=" in flags["--model_args"] else 1.0
others = {"sample_len": 36, "passed_stderr,none": 0.1, "alias": "a"}
found = {flags["--tasks"]: {"passed,none": score, **others}}
(side / "results_1.json").write_text(json.dumps({"results": found}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


def test_a_suite_becomes_tasks_and_says_what_they_lack(folder: Path) -> None:
    names, left_out = lm_tasks.write_tasks(parse_suite(LINES, "my suite"), folder)
    assert names == ("tailor_my_suite", "tailor_my_suite_choices")
    assert left_out == 1
    row = json.loads((folder / "tailor_my_suite_choices.jsonl").read_text())
    assert (row["choice"], row["answer"]) == (["blue", "loud"], 0)
    assert "max_gen_toks: 9\n" in (folder / "tailor_my_suite.yaml").read_text()


def test_the_tasks_judge_as_the_suite_does_without_tailor(folder: Path) -> None:
    lm_tasks.write_tasks(parse_suite(LINES, "mine"), folder)
    script = folder / "judge.py"
    script.write_text(JUDGE)
    command = [sys.executable, "-I", str(script), str(folder), str(folder / "tailor_mine.jsonl")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1.0, 0.0]"


def test_the_capabilities_are_one_task_with_all_tests(folder: Path) -> None:
    suite = find_suite("capabilities", folders_of(False))
    assert lm_tasks.write_tasks(suite, folder) == (("tailor_capabilities",), 0)
    assert len((folder / "tailor_capabilities.jsonl").read_text().splitlines()) == 36


def test_the_harness_asks_before_and_after(home: Home, tmp_path: Path) -> None:
    (bare_run(home, "trained") / "output").mkdir()
    program = tmp_path / "harness.py"
    program.write_text(HARNESS)
    command = (sys.executable, str(program))
    scores = lm_evaluation.evaluate(read(home, "trained"), None, ["capabilities"], command)
    assert scores == ((lm_evaluation.LmScore("tailor_capabilities", "passed", 1.0, 0.5),), 0)


def test_a_path_with_a_comma_is_no_further_argument(home: Home, tmp_path: Path) -> None:
    model = str(tmp_path / "model,trust_remote_code=True")
    (bare_run(home, "trained", model=model) / "output").mkdir()
    with pytest.raises(SpecError, match="cannot be named to the harness; move it"):
        lm_evaluation.evaluate(read(home, "trained"), None, ["capabilities"], ("false",))


def test_a_harness_that_fails_is_one_sentence(home: Home, tmp_path: Path) -> None:
    (bare_run(home, "trained") / "output").mkdir()
    program = tmp_path / "harness.py"
    program.write_text("raise SystemExit('no such task')")
    with pytest.raises(SpecError, match="gave no results: no such task; see whether"):
        lm_evaluation.evaluate(
            read(home, "trained"), None, ["unknown"], (sys.executable, str(program))
        )


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_evaluation, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(
        SpecError, match=r"is not installed; install it with .* pip install lm_eval"
    ):
        lm_evaluation.require_installed()
