"""Exported GGUF files as sides of a chat, answered by a package that stands for llama.cpp."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.after_training.chat import (
    AnswerPiece,
    AnswerSettings,
    Chat,
    ChatError,
    FinishedAnswer,
    find_side,
    plan_chat,
    sides_of,
)
from core.after_training.chat import plan as chat_plan
from core.after_training.export.tools import FOLDER_VARIABLE
from core.device import this_machine
from core.runs import Home, Run
from tests.builders.chat_runs import add_gguf, finish
from tests.builders.fake_runs import NewRun
from tests.builders.nvml import MIB, show_machine

FAKE_LLAMA = Path(__file__).parents[2] / "builders" / "fake_llama"
SETTINGS = AnswerSettings(temperature=0.5, seed=7, max_tokens=100)
EXPORT = "gguf-Q8_0"


@pytest.fixture
def run(new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "no-tools"))
    return finish(new_run(model="demo", dataset="demo"))


@pytest.fixture
def with_llama(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the run on a machine with llama.cpp."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(FAKE_LLAMA))
    return run


@pytest.fixture
def chat(home: Home, with_llama: Run) -> Iterator[Chat]:
    add_gguf(with_llama)
    started = Chat(home, plan_chat([find_side(home, f"{with_llama.id}@{EXPORT}")]), 60)
    yield started
    started.end()


def ask(chat: Chat, text: str, settings: AnswerSettings = SETTINGS) -> tuple[str, str]:
    """Return (answer, how it ended)."""
    answer = ending = ""
    for each in chat.ask([[{"role": "user", "content": text}]], settings):
        if isinstance(each, AnswerPiece):
            answer += each.text
        else:
            ending = each.ending
    return answer, ending


def test_an_exported_file_is_a_side(home: Home, with_llama: Run) -> None:
    file = add_gguf(with_llama)
    key = f"{with_llama.id}@{EXPORT}"
    assert [side.key for side in sides_of(with_llama)][-1] == key
    assert find_side(home, key).gguf == file


def test_an_adapter_alone_is_no_side(with_llama: Run) -> None:
    add_gguf(with_llama, "adapter-gguf")
    assert not [side for side in sides_of(with_llama) if side.gguf]


def test_without_llama_a_file_is_listed_with_what_to_install(home: Home, run: Run) -> None:
    add_gguf(run)
    side = find_side(home, f"{run.id}@{EXPORT}")
    assert side.label.endswith(f"as {EXPORT} (needs `make export`)")
    with pytest.raises(ChatError, match=r"llama.cpp, which is not installed; run `make export`"):
        plan_chat([side])


def test_an_unknown_export_is_refused_with_the_known_ones(home: Home, with_llama: Run) -> None:
    add_gguf(with_llama)
    with pytest.raises(ChatError, match=f"exported GGUF file gguf-x; choose .*@{EXPORT}"):
        find_side(home, f"{with_llama.id}@gguf-x")


def test_a_file_beside_the_result_is_no_second_model_to_load(with_llama: Run) -> None:
    add_gguf(with_llama)
    _base, result, exported = sides_of(with_llama)
    plan = plan_chat((result, exported))
    assert len(plan.models) == 2
    assert plan.num_loaded == 1
    assert plan.notes == ()


def test_a_file_that_does_not_fit_into_memory_is_refused(
    home: Home, with_llama: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_gguf(with_llama)
    machine = replace(this_machine(), gpus=(), ram_available_bytes=100 * MIB)
    show_machine(monkeypatch, machine)
    monkeypatch.setattr(chat_plan, "this_machine", lambda: machine)
    with pytest.raises(ChatError, match=f"as {EXPORT} needs about .* 100.0 MiB is free|0.1 GiB"):
        plan_chat([find_side(home, f"{with_llama.id}@{EXPORT}")])


@pytest.mark.training
def test_a_file_streams_its_answer_with_the_settings(chat: Chat) -> None:
    assert ask(chat, "who are you") == ("who are you t=0.5 seed=7 ", "complete")
    largest = replace(SETTINGS, seed=2**32 - 1)  # which would ask for another one each time
    assert ask(chat, "who", largest) == ("who t=0.5 seed=0 ", "complete")
    short = replace(SETTINGS, max_tokens=2)
    assert ask(chat, "who are you", short) == ("who are ", "limit")


@pytest.mark.training
def test_an_answer_of_a_file_can_be_stopped(chat: Chat) -> None:
    asked = chat.ask(
        [[{"role": "user", "content": "endless words"}]], replace(SETTINGS, max_tokens=5000)
    )
    next(asked)
    chat.stop()
    (finished,) = [each for each in asked if isinstance(each, FinishedAnswer)]
    assert finished.ending == "stopped"
    assert ask(chat, "who")[1] == "complete"


@pytest.mark.training
def test_templates_and_lengths_of_a_file_are_refused_in_words(chat: Chat) -> None:
    with pytest.raises(ChatError, match=r"template in m.gguf refuses .*roles must alternate"):
        ask(chat, "refused")
    with pytest.raises(ChatError, match=r"template in m.gguf takes longer than 3 seconds"):
        ask(chat, "slow template")
    with pytest.raises(ChatError, match=r"has 20,000 tokens, but this chat holds 2,048"):
        ask(chat, "word " * 20_000)


@pytest.mark.training
def test_a_file_that_llama_cannot_read_is_said(home: Home, with_llama: Run) -> None:
    add_gguf(with_llama, content="broken")
    plan = plan_chat([find_side(home, f"{with_llama.id}@{EXPORT}")])
    with pytest.raises(ChatError, match=r"llama.cpp cannot read m.gguf; export it again"):
        Chat(home, plan, 60)
