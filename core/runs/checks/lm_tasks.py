"""Write suites as tasks of lm-evaluation-harness: YAML, JSON lines and our scoring beside them.

The folder needs nothing of Tailor: `lm_eval --include_path FOLDER --tasks tailor_NAME`.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from core.training.contract.checks.suite import Suite, SuiteTest
from core.training.contract.files import write_text

PREFIX = "tailor_"
PACKAGE = "tailor_checks"
"""Folder with the copy of our scoring."""
SCORING = '''"""Judge the answers to a suite, for lm-evaluation-harness."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tailor_checks.scoring import judge
from tailor_checks.suite import Suite, read_test


def process_results(doc, results):
    """Return {"passed": 1.0} if the answer meets all conditions of the test."""
    test, _faults = read_test(json.loads(doc["test"]), 0)
    (passed,) = judge(Suite("test", (test,)), (str(results[0]).strip(),))
    return {"passed": float(passed)}
'''
GENERATED = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {max_tokens}
process_results: !function tailor_scoring.process_results
metric_list:
  - metric: passed
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
CHOSEN = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choice
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_tasks(suite: Suite, folder: Path) -> tuple[tuple[str, ...], int]:
    """Write a suite as tasks. Return (their names, the number of tests that no task can hold).

    A task asks one question without tools; tests with choices are a task of their own. Raises
    OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scoring = Path(__file__).resolve().parents[2] / "training" / "contract" / "checks"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(scoring, folder / PACKAGE, ignore=ignored, dirs_exist_ok=True)
    write_text(folder / "tailor_scoring.py", SCORING)
    asked = [test for test in suite.tests if len(test.messages) == 1 and not test.tools]
    name = PREFIX + re.sub(r"\W+", "_", suite.name)
    names = []
    for task, layout, tests in (
        (name, GENERATED, [test for test in asked if not test.choice]),
        (f"{name}_choices", CHOSEN, [test for test in asked if test.choice]),
    ):
        if not tests:
            continue
        file = folder / f"{task}.jsonl"
        write_text(file, "".join(map(_line, tests)))
        values = {
            "name": task,
            "file": json.dumps(str(file.absolute())),
            "max_tokens": max(test.max_new_tokens for test in tests),
        }
        write_text(folder / f"{task}.yaml", layout.format(**values))
        names.append(task)
    return tuple(names), len(suite.tests) - len(asked)


def named_tasks(suites: Sequence[Suite], folder: Path) -> tuple[dict[str, tuple[str, ...]], int]:
    """Write several suites. Return (the tasks of each by its name, the tests left out)."""
    tasks, left_out = {}, 0
    for suite in suites:
        tasks[suite.name], more = write_tasks(suite, folder)
        left_out += more
    return tasks, left_out


def _line(test: SuiteTest) -> str:
    row: dict[str, object] = {
        "prompt": test.prompt,
        "expected": test.expected,
        "category": test.category,
        "test": json.dumps(test.fields),
    }
    if test.choice:
        row |= {"choice": list(test.choice), "answer": test.answer}
    return json.dumps(row) + "\n"
