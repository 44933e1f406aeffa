"""Adapters: how they start, which layers train beside them, earlier ones, and their results."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.job import Job
from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    FINISHED,
    TINY_CONFIG,
    copy_model,
    error_of,
    lines_of,
    load_result,
    logits_of,
    losses_of,
    make_stage_run,
    status_of,
    tiny_model,
    train,
    train_in_two_parts,
)

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


def settings_of(run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((run / "output" / "adapter_config.json").read_text())
    return settings


def weights_of(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "output" / "adapter_model.safetensors")


# Earlier adapters


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of supervised fine-tuning with an adapter of rank 8."""
    run = make_stage_run(tmp_path_factory.mktemp("earlier") / "run", "sft", lora_r=8)
    assert train(run) == FINISHED
    return run


@pytest.fixture(scope="module")
def continued(earlier: Path) -> Path:
    """Train a run of DPO that continues with the earlier adapter."""
    run = make_stage_run(earlier.parent / "dpo", "dpo", adapter=str(earlier), max_steps=4)
    assert train(run) == FINISHED
    return run


@pytest.mark.slow  # a browser test does the same
def test_dpo_after_sft_starts_at_its_reference_model(earlier: Path, continued: Path) -> None:
    first = lines_of(continued)[0]
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0, 0)
    model = load_result(earlier, dtype="float32")
    assert first["logps/chosen"] == pytest.approx(mean_log_prob(model, continued), rel=1e-4)


@pytest.mark.slow
def test_an_earlier_adapter_keeps_its_rank(continued: Path) -> None:
    assert settings_of(continued)["r"] == 8


@pytest.mark.slow
def test_the_adapter_of_the_reference_is_not_saved(continued: Path) -> None:
    assert not (continued / "output" / "ref").exists()


@pytest.mark.slow
def test_a_continued_adapter_resumes_with_the_same_losses(
    earlier: Path, continued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = make_stage_run(tmp_path / "halved", "dpo", adapter=str(earlier), max_steps=4)
    train_in_two_parts(halved, 2, monkeypatch)
    assert losses_of(halved) == losses_of(continued)


def mean_log_prob(model: Any, run: Path) -> float:
    """Return the mean log-probability of the chosen answers in the first batch of a run."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    rows = lines_of(run, "data/train.jsonl")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42))
    values = []
    for row in [rows[index] for index in order[:4]]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"])
        ids = torch.tensor([whole["input_ids"]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        of_tokens = log_probs.gather(1, ids[0, 1:, None])
        values.append(of_tokens[len(prompt["input_ids"]) - 1 :].sum().item())
    return sum(values) / len(values)


def test_an_adapter_of_another_model_is_refused(earlier: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    other = tiny_model(tmp_path / "other", LlamaConfig(**TINY_CONFIG))
    run = make_stage_run(tmp_path / "run", "dpo", adapter=str(earlier), model=str(other))
    assert "its tensors do not fit the model: model.layers.0." in error_of(run)


def test_an_adapter_continues_over_a_base_that_has_moved(earlier: Path, tmp_path: Path) -> None:
    other = copy_model(tmp_path / "other")
    run = make_stage_run(tmp_path / "run", "dpo", adapter=str(earlier), model=str(other))
    assert train(run) == FINISHED


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    run = make_stage_run(tmp_path / "run", "dpo", adapter=str(tmp_path))
    assert error_of(run).startswith(f"adapter: {tmp_path} holds no adapter")


# Initializations


@pytest.mark.parametrize(("init", "use_rslora"), [("pissa", False), ("olora", True)])
def test_an_adapter_that_changed_its_base_becomes_a_plain_one(
    tmp_path: Path, init: str, use_rslora: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    fields = {"init_lora_weights": init, "use_rslora": use_rslora, "lora_r": 4}
    run = make_stage_run(tmp_path / "run", "sft", **fields)
    assert train(run) == FINISHED
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype="float32")
    trained = PeftModel.from_pretrained(base, run / "checkpoints" / "checkpoint-3")
    assert (settings_of(run)["init_lora_weights"], settings_of(run)["r"]) == (True, 8)
    assert logits_of(load_result(run, dtype="float32")).allclose(logits_of(trained), atol=1e-4)


def test_a_converted_adapter_keeps_layers_that_train_whole(tmp_path: Path) -> None:
    fields = {"init_lora_weights": "pissa", "use_rslora": True, "max_steps": 1}
    run = make_stage_run(tmp_path / "run", "reward", **fields)
    assert train(run) == FINISHED
    assert [name for name in weights_of(run) if name.endswith("score.weight")]
    assert logits_of(load_result(run)).isfinite().all()


@pytest.fixture
def loftq_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Let LoftQ run on a CPU; collect the share of quantization error that remains, by layer."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft.utils import loftq_utils
    from safetensors.torch import load_file

    from core.training.model import load
    from core.training.trainers import stage_trainer

    whole = load_file(DEMO / "model" / "model.safetensors")
    shares: list[float] = []

    def lost(unquantized: Any, weight: Any) -> Any:
        return unquantized.float() - dequantize_4bit(weight.data, weight.quant_state).float()

    def decompose(weight: Any, unquantized: Any, num_bits: int, reduced_rank: int) -> Any:
        found = loftq_utils._low_rank_decomposition(lost(unquantized, weight), reduced_rank)
        return found["R"], found["L"]

    def init_and_measure(job: Job, model: Any, initial_file: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            init_adapter(job, model, initial_file)
        for name, layer in model.named_modules():
            if hasattr(layer, "lora_B"):
                name = name.removeprefix("base_model.model.") + ".weight"
                error = lost(whole[name], layer.weight)
                left = error - layer.get_delta_weight("default").detach()
                shares.append(float(left.norm() / error.norm()))

    init_adapter, on_cpu = stage_trainer.init_adapter, load.choose_precision("auto", "qlora")
    on_gpu = dataclasses.replace(on_cpu, quantized_base_adapters=torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: on_gpu)
    monkeypatch.setattr(loftq_utils, "_loftq_init_new", decompose)
    monkeypatch.setattr(stage_trainer, "init_adapter", init_and_measure)
    yield shares


def test_loftq_approximates_the_quantization_error(
    tmp_path: Path, loftq_errors: list[float]
) -> None:
    import torch

    fields = {"init_lora_weights": "loftq", "lora_r": 8, "lora_alpha": 16, "max_steps": 1}
    run = make_stage_run(tmp_path / "run", "sft", method="qlora", **fields)
    assert train(run) == FINISHED, status_of(run)["error"]
    assert loftq_errors
    assert max(loftq_errors) < 0.99, "1 would be no approximation at all"
    assert {weight.dtype for weight in weights_of(run).values()} == {torch.bfloat16}


def test_loftq_reads_the_files_of_the_loaded_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.utils import hub

    from core.training.model import adapter

    def cached_file(model: str, name: str, revision: str) -> str:
        return f"/hub/{model}/snapshots/{revision}/{name}"

    read: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hub, "cached_file", cached_file)
    monkeypatch.setattr(
        adapter, "replace_lora_weights_loftq", lambda model, model_path: read.append(model_path)
    )
    job = Job(model="some/model", dataset="a", revision="v2", init_lora_weights="loftq")
    adapter.init_adapter(job, torch.nn.Module(), Path("initial"))
    assert read == ["/hub/some/model/snapshots/v2"]


# Layers that train whole


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_tied_embedding_that_trains_whole_stays_tied(tmp_path: Path, name: str) -> None:
    run = make_stage_run(tmp_path / "run", "sft", modules_to_save=name, max_steps=2)
    assert train(run) == FINISHED
    model = load_result(run)
    embedding = model.get_input_embeddings().modules_to_save["default"].weight
    head = model.get_output_embeddings().modules_to_save["default"].weight
    assert embedding.equal(head)
    assert not embedding.equal(model.get_input_embeddings().original_module.weight)


def test_a_layer_that_is_not_there_cannot_train_whole(tmp_path: Path) -> None:
    run = make_stage_run(tmp_path / "run", "sft", modules_to_save="wte")
    assert "has no layers wte" in error_of(run)


@pytest.fixture
def float16_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load bases in float16 and compute in bfloat16, which a CPU can."""
    import torch

    from core.training.model import load

    precision = load.ModelPrecision(torch.float16, torch.bfloat16, torch.bfloat16)
    choose: Callable[..., Any] = lambda dtype, method: precision  # noqa: E731
    monkeypatch.setattr(load, "choose_precision", choose)


@pytest.mark.usefixtures("float16_base")
def test_layers_that_train_whole_over_float16_are_in_float32(tmp_path: Path) -> None:
    import torch

    run = make_stage_run(tmp_path / "run", "reward", modules_to_save="norm", max_steps=2)
    assert train(run) == FINISHED, status_of(run)["error"]
    weights = weights_of(run)
    assert len(weights) > 2
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.usefixtures("float16_base")
@pytest.mark.parametrize("stage", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_a_float32_head_generates_over_a_float16_base(tmp_path: Path, stage: str) -> None:
    fields = {"modules_to_save": "lm_head", "max_steps": 1, "num_samples": 1}
    run = make_stage_run(tmp_path / "run", stage, **fields)
    assert train(run) == FINISHED, status_of(run)["error"]
    assert [line["step"] for line in lines_of(run, "samples.jsonl")] == [0, 1]
