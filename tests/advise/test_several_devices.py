"""Test the advice on several devices: what auto chooses and why, and fixes that take more."""

import pytest

from core.advise import Fix, what_fits
from core.advise.batch import Cell
from core.job import SpecError
from core.models import gpus
from core.resolve import ResolvedJob, resolve
from core.wording import sentences_of_several_devices
from tests.builders.advice_cases import LLAMA_8B
from tests.builders.nvml import A100, machine_with

LARGE = {"model": "meta-llama/Llama-3.1-70B", "method": "qlora", "gpu": "rtx-4090"}


def resolved(**fields: object) -> ResolvedJob:
    return resolve({**LARGE, **fields})


def planned(**fields: object) -> ResolvedJob:
    """Return a job of which the profile chooses what it may."""
    return resolve({**LARGE, "profile": "fastest", **fields}, set_by_user=frozenset())


def sentences(job: ResolvedJob, ram_bytes: int = 0) -> str:
    return " ".join(sentences_of_several_devices(job.sharing(), job.estimate(), ram_bytes))


def test_a_division_says_that_a_copy_is_too_large() -> None:
    assert "a copy is too large for one: 40.7 of 24.0 GiB" in planned(num_devices=4).division


def test_a_copy_says_that_one_card_holds_the_job() -> None:
    division = planned(num_devices=4, gpu="h100").division
    assert "Each of 4 devices holds a copy, since one holds the job" in division


def test_a_job_that_cannot_be_divided_says_why() -> None:
    division = resolved(num_devices=4, optim="paged_adamw_8bit").division
    assert "dividing it fails: paged_adamw_8bit cannot update weights" in division


def test_a_division_that_auto_chooses_takes_an_optimizer_that_works() -> None:
    found = resolved(num_devices=4)  # custom, of a method whose own optimizer cannot be divided
    assert (found.job.parallelism, found.job.optim) == ("fsdp", "adamw_torch_fused")
    assert found.estimate().verdict == "fits"
    assert "paged_adamw_8bit, the usual one here" in found.plan.choices[0].reason


@pytest.mark.parametrize("fields", [{}, {"num_devices": 4, "gpu": "h100"}])
def test_what_is_not_divided_keeps_the_optimizer_of_its_method(fields: dict[str, object]) -> None:
    found = resolved(**fields)
    assert found.job.optim == "paged_adamw_8bit"
    assert not found.plan.choices


@pytest.mark.parametrize("parallelism", ["auto", "fsdp"])
def test_an_optimizer_that_nobody_set_gives_way_to_a_division(parallelism: str) -> None:
    fields = {**LARGE, "optim": "paged_adamw_8bit", "num_devices": 4, "parallelism": parallelism}
    assert resolve(fields, set_by_user=()).job.optim == "adamw_torch_fused"


def test_what_the_user_has_chosen_needs_no_reason() -> None:
    assert planned(num_devices=4, parallelism="fsdp").division == ""


def test_all_gpus_of_another_machine_are_no_number() -> None:
    with pytest.raises(SpecError, match="num_devices: 0 takes the GPUs of this machine"):
        resolve({"model": "demo", "dataset": "demo", "gpu": "rtx-4090", "num_devices": 0})


def test_one_device_has_nothing_to_say() -> None:
    assert sentences(planned()) == ""


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_the_profile_of_a_division_keeps_to_an_optimizer_that_works(method: str) -> None:
    job = planned(num_devices=8, parallelism="fsdp", method=method, profile="smallest").job
    assert job.optim == "adamw_torch_fused"


@pytest.mark.parametrize(
    "word", ["The highest phase is backward: weights 17.9 GiB", "first loads", "2.0× as fast"]
)
def test_the_bottleneck_of_two_small_cards_is_named(word: str) -> None:
    assert word in sentences(planned(num_devices=2))


def test_the_number_up_to_which_cards_pay_is_said() -> None:
    small = {"max_length": 256, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    divided = {"num_devices": 4, "parallelism": "fsdp", "optim": "adamw_torch_fused"}
    slow = resolved(model="meta-llama/Llama-3.1-8B", method="lora", **small, **divided)
    assert slow.sharing().pays_up_to == 1
    assert "More than 1 GPU does not pay" in sentences(slow)


def test_so_few_cards_that_they_do_not_hold_a_job_are_not_said_to_pay() -> None:
    divided = {"num_devices": 4, "parallelism": "fsdp", "optim": "adamw_torch_fused"}
    said = sentences(resolved(method="lora", max_length=256, **divided))
    assert "1 GPU does not pay" not in said
    assert "as fast as one that held the job would be" in said


def test_cards_that_all_pay_need_no_word() -> None:
    fast = planned(num_devices=2, gpu="h100")
    assert fast.sharing().pays_up_to is None
    assert "not pay" not in sentences(fast)


def test_too_little_main_memory_to_load_is_said() -> None:
    assert "more than the 64.0 GiB of this machine" in sentences(planned(num_devices=2), 2**36)


def more_devices(job: ResolvedJob) -> list[Fix]:
    return [fix for fix in job.fixes() if "parallelism" in fix.change]


def test_a_model_that_is_too_large_is_divided_among_as_many_as_it_takes() -> None:
    [fix] = more_devices(planned())
    assert fix.fits
    assert fix.change["num_devices"] == 4
    assert planned(num_devices=2).estimate().verdict == "does_not_fit"


def test_a_division_that_fits_is_what_it_was_estimated_to_be() -> None:
    [fix] = more_devices(resolved())
    after = resolved(**fix.change)
    assert after.estimate().total_bytes == fix.total_bytes


def test_a_division_keeps_the_rows_of_a_step() -> None:
    before = resolved().job
    [fix] = more_devices(resolved())
    after = resolved(**fix.change).job
    rows = after.num_devices * after.effective_batch_size
    assert rows == before.effective_batch_size


def test_an_optimizer_that_cannot_be_divided_is_replaced() -> None:
    [fix] = more_devices(resolved(optim="paged_adamw_8bit"))
    assert fix.change["optim"] == "adamw_torch_fused"


def test_copies_that_do_not_fit_are_divided() -> None:
    [fix] = more_devices(resolved(num_devices=4, parallelism="ddp"))
    assert fix.change["parallelism"] == "fsdp"


def test_a_machine_with_one_card_is_not_told_to_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.device.machine.this_machine", lambda: machine_with(A100))
    assert more_devices(resolved(gpu="local", method="full")) == []


def test_a_machine_with_two_cards_is_told_to_take_both(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_with(A100, A100)
    monkeypatch.setattr("core.device.machine.this_machine", lambda: machine)
    [fix] = more_devices(resolve({"model": "Qwen/Qwen3-14B", "method": "full"}))
    assert fix.change["num_devices"] == 2


def cells(count: int, method: str) -> tuple[Cell, ...]:
    shapes = [("large", LLAMA_8B)]
    return what_fits(shapes, (method,), [gpus()["rtx-4090"]], 2048, (count,))


def test_more_cards_leave_room_for_a_larger_batch() -> None:
    batches = [cells(count, "full")[0].batch or 0 for count in (1, 4, 8)]
    assert batches == sorted(batches)
    assert batches[-1] > 0


def test_a_method_that_cannot_be_divided_has_no_cell() -> None:
    assert cells(2, "lora-8bit") == ()
