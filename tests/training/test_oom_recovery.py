"""Recovery from out-of-memory with a smaller micro-batch."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.training_runs import (
    FAILED,
    FINISHED,
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    train_again,
    values_of,
    write_rows,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]
NEEDED_BYTES, FREE_BYTES = 2 * 2**30, 2**30
MESSAGE = "Tried to allocate 2.00 GiB; total capacity of 8.00 GiB of which 1.00 GiB is free"


def limit_rows(rows: int, monkeypatch: pytest.MonkeyPatch, from_step: int = 0) -> None:
    """Make the forward pass of more rows run out of memory, as on a GPU."""
    import torch
    from trl.trainer.sft_trainer import SFTTrainer

    compute_loss = SFTTrainer.compute_loss

    def compute_or_fail(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > rows and trainer.state.global_step >= from_step:
            raise torch.OutOfMemoryError(MESSAGE)
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_or_fail)


@pytest.fixture(scope="module", params=["full", "qlora"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """(a run, the same run that ran out of memory in its fourth step)."""
    folder = tmp_path_factory.mktemp(request.param)
    fields = {"method": request.param, "lora_dropout": 0, "learning_rate": 3e-4}
    whole, recovered = make_run(folder / "whole", **fields), make_run(folder / "cut", **fields)
    assert train(whole) == FINISHED
    with pytest.MonkeyPatch.context() as patched:
        limit_rows(2, patched, from_step=3)
        assert train(recovered) == FINISHED
    yield whole, recovered


def test_losses_after_a_recovery_differ_by_rounding_only(pair: tuple[Path, Path]) -> None:
    whole, recovered = pair
    assert losses_of(recovered) == pytest.approx(losses_of(whole), rel=2e-3)


@pytest.mark.parametrize("name", ["learning_rate", "num_tokens"])
def test_schedule_and_token_count_survive_a_recovery(pair: tuple[Path, Path], name: str) -> None:
    whole, recovered = pair
    assert values_of(recovered, name) == values_of(whole, name)


def test_a_recovery_is_noted_with_the_new_batch(pair: tuple[Path, Path]) -> None:
    status = status_of(pair[1])
    batch = (status["per_device_train_batch_size"], status["gradient_accumulation_steps"])
    assert batch == (2, 2)
    assert "2.00 GiB more was needed" in status["notes"][0]
    assert "From step 4 on 2 rows at once" in status["notes"][0]


def test_each_step_sees_the_same_rows_after_a_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.loop.trainer import MonitoredTrainer

    seen: dict[int, Counter[int]] = {}
    training_step = MonitoredTrainer.training_step

    def step_and_look(trainer: Any, model: Any, inputs: Any, *args: Any) -> Any:
        loss = training_step(trainer, model, inputs, *args)  # a failed pass counts for nothing
        lengths = inputs["attention_mask"].sum(1).tolist()
        seen.setdefault(trainer.state.global_step, Counter()).update(lengths)
        return loss

    monkeypatch.setattr(MonitoredTrainer, "training_step", step_and_look)
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = make_run(tmp_path / "whole", max_steps=5, **batch)
    recovered = make_run(tmp_path / "recovered", max_steps=5, **batch)
    for run in (whole, recovered):
        write_rows(run, *lines_of(run, "data/train.jsonl")[:10])
    assert train(whole) == FINISHED
    expected = dict(seen)
    seen.clear()
    limit_rows(1, monkeypatch, from_step=2)
    assert train(recovered) == FINISHED
    assert seen == expected
    # An epoch of 10 rows has steps of 4, 4 and 2 rows.
    assert [rows.total() for rows in seen.values()] == [4, 4, 2, 4, 4]


def test_out_of_memory_with_one_row_fails_with_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_rows(0, monkeypatch)
    run = make_run(tmp_path / "run")
    assert train(run) == FAILED
    status = status_of(run)
    sentence = "Out of GPU memory in the forward pass: 2.00 GiB more was needed"
    assert status["cause"] == "out_of_gpu_memory"
    assert status["error"].startswith(sentence)
    assert (status["needed_bytes"], status["free_bytes"]) == (NEEDED_BYTES, FREE_BYTES)
    assert len(status["notes"]) == 2, "from 4 rows to 2, from 2 to 1"


def test_out_of_memory_ends_a_run_that_must_keep_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_rows(2, monkeypatch)
    run = make_run(tmp_path / "run", halve_batch_on_oom=False)
    assert train(run) == FAILED
    assert status_of(run)["cause"] == "out_of_gpu_memory"
    assert not status_of(run)["notes"]


def test_a_run_resumes_with_the_batch_of_its_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_rows(2, monkeypatch)
    run = make_run(tmp_path / "run", save_steps=2, max_steps=4)
    assert train(run) == FINISHED
    (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    assert train_again(run) == FINISHED
    status = status_of(run)
    assert status["resumed_at"] == [2]
    assert status["per_device_train_batch_size"] == 2
    assert not status["notes"]


@pytest.mark.parametrize(
    ("rows", "passes", "min_rows", "smaller"),
    [
        (8, 1, 1, (4, 2)),
        (6, 2, 1, (3, 4)),
        (5, 2, 1, (1, 10)),
        (1, 8, 1, None),
        (2, 8, 2, None),
        (4, 8, 2, (2, 16)),
    ],
)
def test_a_smaller_batch_has_the_same_rows_per_step(
    rows: int, passes: int, min_rows: int, smaller: tuple[int, int] | None
) -> None:
    from core.training.loop.oom_recovery import smaller_batch

    assert smaller_batch(rows, passes, min_rows) == smaller


def test_paged_states_are_paged_again_after_a_resume() -> None:
    import torch
    from bitsandbytes.optim import PagedAdamW8bit

    from core.training.loop.trainer import paged_state_loading

    class MarkedPagedAdamW(PagedAdamW8bit):
        """Optimizer that marks what would be a paged buffer on a GPU."""

        def get_state_buffer(self, p: Any, dtype: Any = torch.float32) -> Any:
            buffer = torch.zeros_like(p, dtype=dtype)
            buffer.is_in_pages = True
            return buffer

    def optimizer() -> Any:
        torch.manual_seed(0)
        with_8bit_states, with_32bit_states = (64, 128), (4,)
        weights = [
            torch.nn.Parameter(torch.randn(shape))
            for shape in (with_8bit_states, with_32bit_states)
        ]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        return MarkedPagedAdamW(weights, lr=0.1)

    first, second = optimizer(), optimizer()
    first.step()
    with paged_state_loading(second):
        second.load_state_dict(first.state_dict())
    for old, new in zip(first.state.values(), second.state.values(), strict=True):
        assert set(new) == set(old)
        for name in ("state1", "state2"):
            assert new[name].is_in_pages
            assert new[name].dtype == old[name].dtype
            assert new[name].equal(old[name])
    assert "load_state_dict" not in vars(second)
