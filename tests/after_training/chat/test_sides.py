"""Sides of a chat: what can answer of a run, how it is named, and what fits on a device."""

from dataclasses import replace

import pytest

from core.after_training.chat import ChatError, ChatSide, find_side, plan_chat, sides_of
from core.after_training.chat import plan as chat_plan
from core.device import this_machine
from core.job import JobSpec, ModelNotFound
from core.memory.answering import memory_to_answer
from core.models import find_model, gpus
from core.runs import Home, Run
from tests.builders.chat_runs import add_checkpoint, finish
from tests.builders.fake_runs import NewRun
from tests.builders.nvml import MIB, show_machine


@pytest.fixture
def trained(new_run: NewRun) -> Run:
    run = new_run(model="demo", dataset="demo")
    add_checkpoint(run, 40)
    return finish(run)


def test_a_run_answers_before_after_and_at_each_checkpoint(trained: Run) -> None:
    keys = [side.key for side in sides_of(trained)]
    assert keys == [f"{trained.id}@base", trained.id, f"{trained.id}@40"]


def test_a_side_is_found_by_its_key(home: Home, trained: Run) -> None:
    for side in sides_of(trained):
        assert find_side(home, side.key) == side


def test_a_run_is_named_as_for_a_check(home: Home, trained: Run) -> None:
    for name in ("latest", trained.id[:-1], str(trained.folder)):
        assert find_side(home, name).key == trained.id
        assert find_side(home, f"{name}@40").key == f"{trained.id}@40"


def test_a_run_without_a_result_answers_with_its_newest_checkpoint(
    home: Home, new_run: NewRun
) -> None:
    run = new_run()
    with pytest.raises(ChatError, match=f"{run.id} has no result yet; choose {run.id}@base"):
        find_side(home, run.id)
    add_checkpoint(run, 20)
    assert find_side(home, run.id).key == f"{run.id}@20"


def test_an_unknown_step_is_refused_with_the_known_ones(home: Home, trained: Run) -> None:
    with pytest.raises(ChatError, match=f"has no checkpoint 7; choose .*{trained.id}@40"):
        find_side(home, f"{trained.id}@7")


def test_a_reward_model_does_not_chat(home: Home, new_run: NewRun) -> None:
    run = new_run(model="demo", dataset="demo", stage="reward")
    with pytest.raises(ChatError, match="scores answers and writes none"):
        find_side(home, run.id)


def test_a_model_is_found_by_its_name(home: Home) -> None:
    assert find_side(home, "demo").label == "Demo model"
    with pytest.raises(ModelNotFound):
        find_side(home, "no-such-model")


def test_before_and_after_are_one_model_with_its_adapter(trained: Run) -> None:
    base, result, _checkpoint = sides_of(trained)
    plan = plan_chat((base, result))
    assert len(plan.models) == 1
    assert plan.places == (0, 0)
    assert plan.notes == ()


def test_a_full_training_has_two_models(new_run: NewRun) -> None:
    run = finish(new_run(model="demo", dataset="demo", method="full"))
    plan = plan_chat(sides_of(run))
    assert len(plan.models) == 2


def test_two_models_that_do_not_fit_are_loaded_in_turn(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finish(new_run(model="demo", dataset="demo", method="full"))
    leave_free(monkeypatch, 570)
    plan = plan_chat(sides_of(run))
    assert plan.num_loaded == 1
    assert "one after the other" in plan.notes[0]


def test_a_model_that_does_not_fit_is_refused(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_free(monkeypatch, 500)
    with pytest.raises(ChatError, match=r"needs about .* to answer, 500.0 MiB is free|0.5 GiB"):
        plan_chat(sides_of(trained)[:1])


def test_less_memory_means_shorter_conversations(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: tuple[ChatSide, ...] = sides_of(trained)[:2]
    longest = plan_chat(sides).num_tokens
    leave_free(monkeypatch, 566)
    assert plan_chat(sides).num_tokens < longest


def leave_free(monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    machine = replace(this_machine(), gpus=(), ram_available_bytes=mib * MIB)
    show_machine(monkeypatch, machine)
    monkeypatch.setattr(chat_plan, "this_machine", lambda: machine)


def test_one_device_answers_for_a_model_that_several_have_trained() -> None:
    model, gpu = find_model("meta-llama/Llama-3.1-8B"), gpus()["h100"]
    assert model.shape
    fields = {"model": "meta-llama/Llama-3.1-8B", "method": "full"}
    alone = JobSpec.parse(fields)
    together = alone.model_copy(update={"num_devices": 4, "parallelism": "fsdp"})
    needed = memory_to_answer(alone, model.shape, gpu, 2048)
    assert memory_to_answer(together, model.shape, gpu, 2048) == needed
    assert needed.loaded_bytes > 2 * 8 * 10**9
