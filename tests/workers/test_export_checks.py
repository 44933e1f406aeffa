"""Check exports with the real llama.cpp: a file answers suites as the model that it was made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.after_training.export import Export, launch
from core.after_training.export.forms import Quant
from core.after_training.export.plan import plan_export
from core.after_training.export.records import ExportRequest
from core.after_training.export.serve import serve_lines
from core.after_training.export_checks import check_export
from core.models import DEMO_DIR
from core.runs import Run
from core.runs.checks import find_suite, folders_of
from core.runs.results import checking
from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.job import Job
from core.training.loop.checks import Examinee
from core.workers.checks.gguf import GgufExaminee
from core.workers.export.llama import write_gguf
from core.workers.export.task import ExportTask
from core.workers.llama_server import LlamaServer
from core.workers.trained_model import load_trained

pytestmark = [pytest.mark.slow, pytest.mark.training, pytest.mark.filterwarnings("ignore")]
F32 = Quant("F32", 0, 32, True)
CHOICES: list[dict[str, object]] = [
    {"prompt": "What colour is the sky?", "choice": ["green", "blue", "loud"], "answer": 1},
    {"prompt": "What is two and two?", "choice": ["five", "four"], "answer": "four"},
    {"prompt": "Say it", "choice": ["é", "🍓", "ñandú", "日本"], "answer": 0},
    {"prompt": "Who are you?", "choice": ["I am a small language model.", "No"], "answer": 1},
]


def choices() -> Suite:
    """Return a suite with choices, of which some begin inside a character."""
    return parse_suite("\n".join(map(json.dumps, CHOICES)).encode(), "choices")


def who_suite() -> Suite:
    """Return a suite of the question in the lines to copy."""
    test = {"prompt": "Who are you?", "contains": "I", "max_new_tokens": 128}
    return parse_suite(json.dumps(test).encode(), "who")


def test_a_file_answers_as_its_model_and_finds_the_same_choices(
    tmp_path: Path, tools: Path
) -> None:
    (tmp_path / "task").mkdir()
    request = ExportRequest("gguf", "gguf", "trained", "", "", tools=str(tools))
    write_gguf(ExportTask(tmp_path / "task", request), DEMO_DIR, F32, tmp_path / "m.gguf")
    demo = load_trained(Job(model=str(DEMO_DIR), dataset=""), None)
    model = Examinee(demo.model, demo.tokenizer, 8)
    suites = (find_suite("capabilities", folders_of(True)), choices())
    file = GgufExaminee.load(
        tmp_path / "m.gguf",
        str(tools),
        suites,
        has_template=True,
        on_progress=lambda _done, _of: None,
    )
    for suite in suites:
        assert file.answers(suite) == model.answers(suite)


def exported(run: Run, form: str, quant: str) -> Export:
    """Return an export, made now."""
    name = launch.start(run, plan_export(run, form, quant=quant))
    assert launch.wait(run, name, lambda _status: None).state == "finished"
    return launch.result_of(run, name)


def answer_of_lines(export: Export) -> str:
    """Return what the lines for transformers print, as a person runs them."""
    lines = dict(serve_lines(export))["transformers"]
    command = [sys.executable, "-c", lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def answer_of_server(export: Export, tools: Path) -> str:
    """Return what llama.cpp's server answers to a chat, by the template in the file."""
    server = LlamaServer(str(tools), str(export.gguf), 512)
    messages = [{"role": "user", "content": "Who are you?"}]
    found = server.ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=128)
    return str(found["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("form", "quant"), [("gguf", "BF16"), ("merged", "")])
def test_an_exact_export_costs_nothing(run: Run, tools: Path, form: str, quant: str) -> None:
    export = exported(run, form, quant)
    suites = checking.find_suites(run, ["capabilities"])
    report = check_export(run, export, [*suites, who_suite()])
    if form == "merged":  # in 16 bits, where the check takes 32: the words may differ
        assert answer_of_lines(export)
    else:
        assert answer_of_server(export, tools) == report.suites[1].outcomes[0].after
    result = report.suites[0]
    (as_trained,) = [each for each in checking.results_of(run) if each.name == result.name]
    assert result.before == as_trained.after
    assert len(result.lost) + len(result.gained) <= 1
