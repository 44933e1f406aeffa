"""Learning rates of real runs: schedules, warm-up in steps, a second schedule, and LoRA+ groups."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.builders.training_runs import FINISHED, error_of, job_of, make_run, train, values_of

PEAK = 1e-3
NUM_STEPS = 8
LOWEST = 0.25

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]


def rates_of(folder: Path, **fields: object) -> list[float]:
    """Train a run and return its learning rates as shares of the peak, a step each."""
    settings: dict[str, object] = {
        "max_steps": NUM_STEPS,
        "max_length": 32,
        "learning_rate": PEAK,
        "warmup_ratio": 0.0,
        "min_lr_rate": LOWEST,
        "lora_dropout": 0.0,
        "per_device_train_batch_size": 2,
    }
    run = make_run(folder, **settings | fields)
    assert train(run) == FINISHED
    return [rate / PEAK for rate in values_of(run, "learning_rate")]


def test_polynomial_falls_by_its_power_to_the_lowest_share(tmp_path: Path) -> None:
    power = 2.0
    rates = rates_of(tmp_path / "run", lr_scheduler_type="polynomial", lr_power=power)
    left = [1 - step / NUM_STEPS for step in range(NUM_STEPS)]
    assert rates == pytest.approx([LOWEST + (1 - LOWEST) * each**power for each in left])


def test_cosine_with_min_lr_ends_at_the_lowest_share(tmp_path: Path) -> None:
    rates = rates_of(tmp_path / "run", lr_scheduler_type="cosine_with_min_lr")
    waves = [(1 + math.cos(math.pi * step / NUM_STEPS)) / 2 for step in range(NUM_STEPS)]
    assert rates == pytest.approx([LOWEST + (1 - LOWEST) * wave for wave in waves])


def test_warmup_stable_decay_is_flat_until_its_last_share(tmp_path: Path) -> None:
    rates = rates_of(
        tmp_path / "run",
        lr_scheduler_type="warmup_stable_decay",
        lr_decay_ratio=0.5,
        warmup_steps=2,
    )
    assert rates[2:5] == pytest.approx([1, 1, 1])
    assert rates[0] < rates[1] < 1
    falling = rates[4:]
    assert falling == sorted(falling, reverse=True)
    assert LOWEST < rates[-1] < 0.5


def test_a_second_schedule_repeats_the_first_after_its_step(tmp_path: Path) -> None:
    rates = rates_of(
        tmp_path / "run", lr_restart_step=4, warmup_steps=2, lr_scheduler_type="linear"
    )
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5])


def loraplus_groups(**fields: Any) -> list[tuple[set[str], float]]:
    """Return (kinds of matrices, learning rate) of each group of the demo's optimizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from core.training.loop.schedule import split_groups

    job = job_of(learning_rate=PEAK, **fields)
    base = AutoModelForCausalLM.from_pretrained(job.model)
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=job.use_dora)
    model = get_peft_model(base, config)
    kinds = {
        id(parameter): name.split(".lora_")[-1].split(".")[0]
        for name, parameter in model.named_parameters()
    }
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK)
    split_groups(optimizer, model, job.loraplus_lr_ratio)
    return [
        ({kinds[id(each)] for each in group["params"]}, group["lr"])
        for group in optimizer.param_groups
    ]


def test_loraplus_trains_b_matrices_faster() -> None:
    assert loraplus_groups(loraplus_lr_ratio=16.0) == [({"A"}, PEAK), ({"B"}, 16 * PEAK)]


def test_loraplus_trains_magnitudes_of_dora_faster_too() -> None:
    slow, fast = loraplus_groups(loraplus_lr_ratio=4.0, use_dora=True)
    assert slow == ({"A"}, PEAK)
    assert fast == ({"B", "magnitude_vector"}, 4 * PEAK)


def test_loraplus_acts_in_a_run_from_its_first_step(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def largest_b(folder: Path, ratio: float) -> float:
        rates_of(
            folder,
            max_steps=1,
            loraplus_lr_ratio=ratio,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
        )
        tensors = load_file(folder / "output" / "adapter_model.safetensors")
        return max(float(each.abs().max()) for name, each in tensors.items() if "lora_B" in name)

    # the first step of AdamW changes every number by its learning rate
    assert largest_b(tmp_path / "plain", 0.0) == pytest.approx(PEAK, rel=0.01)
    assert largest_b(tmp_path / "faster", 8.0) == pytest.approx(8 * PEAK, rel=0.01)


def test_more_warm_up_steps_than_the_run_has_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", max_steps=-1, num_train_epochs=1, warmup_steps=100_000)
    assert "would end before the warm-up of 100,000" in error_of(run)
