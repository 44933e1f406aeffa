"""Test the estimate and the forecast of jobs on several GPUs, and what is refused there."""

from typing import Any

import pytest

from core.device import local_gpu
from core.job import JobSpec, SpecError
from core.models import gpus
from core.resolve import ResolvedJob, resolve
from tests.builders.nvml import A100, machine_with

GIB = 2**30
BIG = {
    "model": "meta-llama/Llama-3.1-70B",
    "method": "qlora",
    "gpu": "rtx-4090",
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": True,
    "per_device_train_batch_size": 1,
}
PUBLISHED_GIB = 27.6
"""torchtune's README of September 2024: Llama 3.1 70B, LoRA, 8 x A100, 2 rows of 2,048 tokens."""


def resolved(**fields: object) -> ResolvedJob:
    return resolve({**BIG, **fields})


def total_gib(**fields: object) -> float:
    return resolved(**fields).estimate().total_bytes / GIB


def test_a_model_that_is_too_large_for_one_card_is_divided() -> None:
    assert resolved(num_devices=4).job.parallelism == "fsdp"


def test_a_model_that_fits_is_copied_to_each_card() -> None:
    assert resolved(num_devices=4, gpu="h100").job.parallelism == "ddp"


def test_a_divided_model_takes_less_of_each_card() -> None:
    sizes = [total_gib(num_devices=count, parallelism="fsdp") for count in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)


def test_scales_of_quantized_weights_are_not_divided() -> None:
    parts = [
        {part.name: part.bytes for part in resolved(num_devices=count).estimate().components}
        for count in (4, 8)
    ]
    assert parts[0]["quantization_state"] == parts[1]["quantization_state"]


def test_no_gpu_holds_a_divided_model_whole_while_it_is_loaded() -> None:
    """Main memory does: each process loads the model there. A card holds its parts and the head."""
    one, four = (resolved(num_devices=count).estimate().phases["load"] for count in (1, 4))
    assert four < 0.35 * one


def test_the_estimate_is_within_a_tenth_of_a_published_peak() -> None:
    job = resolved(
        method="lora",
        gpu="a100-80gb",
        lora_r=8,
        per_device_train_batch_size=2,
        max_length=2048,
        num_devices=8,
        parallelism="fsdp",
    )
    peak = job.estimate().peak_reserved_bytes / GIB
    assert peak == pytest.approx(PUBLISHED_GIB, rel=0.1)


def test_copies_hold_one_more_copy_of_each_gradient() -> None:
    one, two = (
        resolved(gpu="h100", num_devices=count).estimate().phases["save"] for count in (1, 2)
    )
    job = resolved(gpu="h100")
    adapters = {part.name: part.bytes for part in job.estimate().components}["adapters"]
    assert two - one == pytest.approx(adapters, rel=0.01)


def test_loading_holds_the_head_whole_for_a_moment() -> None:
    phases = resolved(num_devices=8, parallelism="fsdp").estimate().phases
    head_bytes = 128_256 * 8_192 * 2
    assert phases["load"] - phases["save"] == pytest.approx(head_bytes, rel=0.1)


def test_processes_without_a_gpu_share_the_main_memory() -> None:
    one, four = (
        resolve({"dataset": "demo", "model": "demo", "num_devices": count}).estimate()
        for count in (1, 4)
    )
    assert four.capacity_bytes == one.capacity_bytes // 4


def test_two_cards_are_faster_and_cost_no_less() -> None:
    one, two = (resolved(gpu="h100", num_devices=n, max_steps=100).speed() for n in (1, 2))
    assert one is not None
    assert two is not None
    assert two.tokens_per_second == pytest.approx(2 * one.tokens_per_second, rel=0.05)


def test_a_card_of_this_machine_talks_as_fast_as_its_preset() -> None:
    card = local_gpu(machine_with(A100))
    assert card.link_bytes_per_second == gpus()["a100-80gb"].link_bytes_per_second


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"method": "lora-8bit"}, "parallelism"),
        ({"optim": "adamw_8bit"}, "optim"),
        ({"optim": "adafactor"}, "optim"),
        ({"torch_compile": True}, "torch_compile"),
        ({"method": "qlora", "optim": "adamw_torch", "use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa", "method": "lora"}, "init_lora_weights"),
    ],
)
def test_what_cannot_be_divided_is_refused(fields: dict[str, Any], refused: str) -> None:
    with pytest.raises(SpecError) as error:
        JobSpec.parse({"num_devices": 2, "parallelism": "fsdp", **fields})
    assert refused in [problem.field for problem in error.value.problems]


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.device.machine.this_machine", lambda: machine_with(A100))
    with pytest.raises(SpecError, match="1 GPU like A100"):
        resolve({**BIG, "gpu": "local", "num_devices": 2})
