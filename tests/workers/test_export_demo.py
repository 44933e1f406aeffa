"""Train the demo by each kind of method, and export it to every form: the answers stay."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.after_training.export.tools import FOLDER_VARIABLE
from core.runs import Home
from core.runs.listing import list_runs
from ui.terminal import commands

pytestmark = [pytest.mark.slow, pytest.mark.training, pytest.mark.filterwarnings("ignore")]
FORMS = (
    ("merged", "", 16),
    ("gguf", "F16", 16),
    ("gguf", "BF16", 15),
    ("gguf", "Q8_0", 15),
    ("gguf", "Q4_K_M", 14),
    ("ollama", "Q4_K_M", 14),
    ("adapter-gguf", "", 16),
)
"""Form, type of its numbers, and how many of 16 answers must stay the same.

Of an answer in which two tokens are nearly as likely, fewer digits may change one.
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Iterator[Home]:
    """Return a home whose runs are exported with the converters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tools))
        yield Home.find(str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module", params=["full", "lora", "qlora"])
def run_id(request: pytest.FixtureRequest, trained: Home) -> str:
    """Return the id of a finished run of the demo by one method."""
    assert commands.run("train", home=str(trained.path), demo=True, method=request.param) == 0
    (run,) = [each for each in list_runs(trained) if each.job.method == request.param]
    return run.id


@pytest.mark.parametrize(("form", "quant", "same_answers"), FORMS)
def test_every_export_of_the_demo_answers_as_trained(
    form: str,
    quant: str,
    same_answers: int,
    run_id: str,
    trained: Home,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if form == "adapter-gguf" and "full" in run_id:
        pytest.skip("a whole model has no adapter")
    capsys.readouterr()
    code = commands.run(
        "export", home=str(trained.path), run=run_id, to=form, quant=quant, json=True
    )
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0
    assert Path(printed["path"]).is_dir()
    verified = printed["verified"]
    assert verified["trusted"]
    assert verified["prompt_tokens_equal"] == 16
    assert verified["same_answers"] >= same_answers
