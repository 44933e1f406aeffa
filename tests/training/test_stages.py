"""Every stage of the training program: real trainings of the demo model, and what they leave behind."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stage_table import SETTINGS, TRAINABLE, Setting, refusal
from core.job import REWARD_FUNCTIONS
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.row_reader import BadRow, read_row
from core.training.contract.stages import STAGES
from core.training.data.rows import read_rows
from core.training.record import RunFiles
from tests.builders.paths import DEMO
from tests.builders.training_runs import (
    copy_model,
    job_of,
    lines_of,
    losses_of,
    make_run,
    status_of,
    train,
    write_rows,
)
from ui.render.plots import PLOTS

training = pytest.mark.training
pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
]
FILES = {
    "preference": "preference.jsonl",
    "unpaired preference": "preference.jsonl",
    "prompt-only": "prompts.jsonl",
}
METRICS: Mapping[str, set[str]] = {
    "sft": {"mean_token_accuracy"},
    "cpt": {"mean_token_accuracy"},
    "reward": {"accuracy", "margin", "mean_reward"},
    "dpo": {"rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"},
    "kto": {"rewards/chosen", "kl"},
    "orpo": {"rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"},
    "cpo": {"rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"},
    "grpo": {
        "reward",
        "rewards/length/mean",
        "rewards/exact_match/mean",
        "completions/mean_length",
        "completions/max_length",
        "frac_reward_zero_std",
    },
    "rloo": {"reward", "rewards/length/mean", "completions/mean_length", "kl"},
}
"""What the run's plots read, under TRL's own names."""


def stage_run(folder: Path, stage: str, **fields: object) -> Path:
    """A run folder with the demo's rows for a stage, and a job of a few steps in the stage's own settings."""
    quick: dict[str, object] = {
        "max_steps": 3,
        "max_length": 256,
        "lora_dropout": 0.0,
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-3,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 3.0,  # the demo is sure of itself
        "reward_functions": "length,exact_match",
    }
    run = make_run(folder, **quick | {"stage": stage} | fields)
    if name := FILES.get(STAGES[stage].dataset_types[0]):
        write_rows(run, *(DEMO / name).read_text(encoding="utf-8").splitlines()[:48])
    return run


def loaded(run: Path, **settings: Any) -> Any:
    """The result of a run, as whoever uses it would load it."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    scores = json.loads((run / "job.json").read_text())["stage"] == "reward"
    if (run / "output" / "adapter_config.json").exists():
        kind = AutoPeftModelForSequenceClassification if scores else AutoPeftModelForCausalLM
        settings |= {"num_labels": 1} if scores else {}
    else:
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(run / "output", **settings).eval()


def logits(model: Any) -> Any:
    """What a model answers to one fixed text."""
    import torch
    from transformers import AutoTokenizer

    with torch.no_grad():
        return model(
            **AutoTokenizer.from_pretrained(DEMO / "model")(
                "hello, who are you", return_tensors="pt"
            )
        ).logits


def require_trained(run: Path) -> None:
    """The run has learnt for as many steps as asked, in numbers, and left what can be loaded."""
    assert train(run) == 0, status_of(run)["error"]
    job, losses = json.loads((run / "job.json").read_text()), list(losses_of(run).values())
    assert len(losses) == job["max_steps"] and all(map(math.isfinite, losses))
    assert max(line.get("grad_norm", 0) for line in lines_of(run)) > 0
    assert status_of(run)["state"] == "finished" and logits(loaded(run)).isfinite().all()


# Every stage


@training
@pytest.mark.parametrize("stage", ["orpo", pytest.param("cpo", marks=pytest.mark.slow)])
def test_a_probe_leaves_no_trace_where_tokens_are_counted_for_the_trainer(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.training.loop import monitor as watch

    counts = []
    for name, has_limited_memory in (("plain", False), ("probed", True)):
        monkeypatch.setattr(watch, "has_limited_memory", lambda found=has_limited_memory: found)
        run = stage_run(tmp_path / name, stage, max_steps=2)
        assert train(run) == 0
        counts.append(
            [(line["loss"], line["num_tokens"]) for line in lines_of(run) if "loss" in line]
        )
    assert "probe: 4 rows" in capsys.readouterr().out and counts[0] == counts[1]


@training
@pytest.mark.parametrize("stage", TRAINABLE)
def test_every_stage_learns_and_says_what_its_plots_show(
    tmp_path: Path, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = stage_run(
        tmp_path / "run", stage, num_samples=1, eval_fraction=0.1 if stage == "dpo" else 0
    )
    require_trained(run)
    last = [line for line in lines_of(run) if "loss" in line][-1]
    assert METRICS[stage] <= set(last) and last["num_tokens"] > 0 and last["tokens_per_second"] > 0
    assert (run / "samples.jsonl").exists() == (
        stage != "reward"
    ) and "could not answer" not in capfd.readouterr().out


@pytest.mark.parametrize("stage", TRAINABLE)
def test_what_a_stage_measures_is_plotted(stage: str) -> None:
    assert METRICS[stage] <= {trace.key for plot in PLOTS.values() for trace in plot.traces}


def test_every_built_in_reward_has_a_curve_of_its_own() -> None:
    curves = [trace.key for trace in PLOTS["rewards_apart"].traces]
    assert curves == [f"rewards/{name}/mean" for name in (*REWARD_FUNCTIONS, "reward_model")]


@training
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "method"), [*product(TRAINABLE, METHODS)])
def test_every_stage_trains_with_every_method(tmp_path: Path, stage: str, method: str) -> None:
    assert refusal(stage=stage, method=method) is None
    require_trained(stage_run(tmp_path / "run", stage, method=method))


@training
@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "each"), [(setting, each) for setting in SETTINGS for each in setting.tried_with]
)
def test_every_setting_trains_or_is_refused(tmp_path: Path, setting: Setting, each: str) -> None:
    fields = {setting.axis: each, **setting.fields}
    if setting.needs_cuda or refusal(**fields):
        return  # refused in the form; held against the program by the tests of what it refuses itself
    if "adapter" in fields:
        require_trained(stage_run(tmp_path / "earlier", "sft"))
        fields["adapter"] = str(tmp_path / "earlier")
    require_trained(stage_run(tmp_path / "run", **{"stage": "sft"} | fields))


@training
@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "lion_8bit", "adafactor", "sgd"]
)
def test_every_optimizer_trains(tmp_path: Path, method: str, optim: str) -> None:
    require_trained(stage_run(tmp_path / "run", "sft", method=method, optim=optim))


@training
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "cpo"])
def test_every_loss_of_a_stage_trains(tmp_path: Path, stage: str) -> None:
    for loss_type in STAGES[stage].loss_types:
        require_trained(stage_run(tmp_path / loss_type, stage, loss_type=loss_type))


@training
@pytest.mark.parametrize(
    "stage", ["kto", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("grpo", "orpo"))]
)
def test_a_stopped_run_of_another_stage_resumes_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole, halved = (stage_run(tmp_path / name, stage, max_steps=5) for name in ("whole", "halved"))
    assert train(whole) == 0
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        assert train(halved) == 130
    (halved / "stop").unlink()
    assert train(halved) == 0
    assert losses_of(halved) == losses_of(whole)


# What each stage means


@training
def test_dpo_gives_the_losses_of_a_bare_script(tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    run = stage_run(tmp_path / "run", "dpo", gradient_checkpointing=False)
    assert train(run) == 0
    rows = [json.loads(line) for line in (run / "data" / "train.jsonl").read_text().splitlines()]
    same = {
        "max_steps": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_length": 256,
        "seed": 42,
    }
    shape = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
        "logging_steps": 1,
    }
    plain = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    bare = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(tmp_path / "bare"), save_strategy="no", **same, **shape, **plain
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(DEMO / "model"),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    bare.train()
    losses = [line["loss"] for line in bare.state.log_history if "loss" in line]
    assert list(losses_of(run).values()) == pytest.approx(losses, abs=1e-6)


@training
def test_continued_pretraining_learns_every_token_of_a_conversation(tmp_path: Path) -> None:
    whole = stage_run(tmp_path / "cpt", "cpt", packing=False)
    same = stage_run(tmp_path / "sft", "sft", assistant_only_loss=False)
    assert (train(whole), train(same)) == (0, 0)
    assert losses_of(whole) == losses_of(same)


@training
@pytest.mark.parametrize("packing", [True, False])
def test_raw_texts_are_read_on(tmp_path: Path, packing: bool) -> None:
    run = stage_run(tmp_path / "run", "cpt", packing=packing, max_steps=2)
    write_rows(run, *[{"text": "Measure twice, cut once. " * 5}] * 8)
    assert train(run) == 0 and len(losses_of(run)) == 2


@training
def test_without_shuffling_the_rows_come_as_they_stand_in_the_file(tmp_path: Path) -> None:
    run = stage_run(
        tmp_path / "run", "sft", shuffle=False, per_device_train_batch_size=1, max_steps=4
    )
    write_rows(run, *[{"prompt": "hi " * number, "completion": "yes"} for number in (9, 2, 7, 4)])
    assert train(run) == 0
    seen = [0, *(line["num_tokens"] for line in lines_of(run))]
    lengths = [later - earlier for earlier, later in pairwise(seen)]
    assert sorted(range(4), key=lambda index: lengths[index]) == [1, 3, 2, 0]


@training
@pytest.mark.parametrize("stage", [stage for stage in TRAINABLE if stage not in ("sft", "cpt")])
def test_rows_that_are_all_too_long_are_named_as_the_cause(tmp_path: Path, stage: str) -> None:
    run = stage_run(tmp_path / "run", stage, max_length=8, max_completion_length=4)
    assert train(run) == 1
    assert (
        status_of(run)["error"]
        == "No row is left to learn from: within max_length 8 there is no answer."
    )


@training
def test_simpo_has_no_part_that_only_imitates(tmp_path: Path) -> None:
    simpo = stage_run(tmp_path / "simpo", "cpo", loss_type="simpo", beta=2.0, max_steps=1)
    plain = stage_run(tmp_path / "plain", "cpo", max_steps=1)
    assert (train(simpo), train(plain)) == (0, 0)
    assert lines_of(simpo)[0]["nll_loss"] == 0 and lines_of(plain)[0]["nll_loss"] > 0


@training
def test_only_the_last_layers_and_the_norm_train_and_a_tied_head_does_not(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = stage_run(tmp_path / "run", "sft", method="freeze", num_trainable_layers=1)
    assert train(run) == 0
    before = load_file(DEMO / "model" / "model.safetensors")
    after = load_file(run / "output" / "model.safetensors")
    changed = {
        name for name, value in after.items() if not value.equal(before[name].to(value.dtype))
    }
    assert changed and all(name.startswith(("model.layers.3.", "model.norm.")) for name in changed)
    assert "model.norm.weight" in changed


@training
def test_layers_in_front_of_those_that_train_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training.model import load

    passes: Counter[int] = Counter()

    def freeze(model: Any, num_layers: int, freeze: Any = load.train_last_layers) -> None:
        freeze(model, num_layers)
        for index, layer in enumerate(model.model.layers):
            layer.input_layernorm.register_forward_pre_hook(
                lambda *_, index=index: passes.update([index])
            )

    monkeypatch.setattr(load, "train_last_layers", freeze)
    few = {
        "method": "freeze",
        "num_trainable_layers": 1,
        "gradient_checkpointing": True,
        "num_samples": 0,
    }
    assert train(stage_run(tmp_path / "run", "sft", max_steps=3, eval_fraction=0, **few)) == 0
    assert passes[3] - passes[2] == 3 and passes[0] == passes[2]


# Adapters


@training
@pytest.mark.slow  # a story of the browser goes this way, too
def test_dpo_after_sft_compares_with_the_model_that_sft_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = stage_run(tmp_path / "sft", "sft", lora_r=8)
    later, halved = (
        stage_run(tmp_path / name, "dpo", adapter=str(earlier), max_steps=4)
        for name in ("dpo", "halved")
    )
    assert (train(earlier), train(later)) == (0, 0)
    first = lines_of(later)[0]
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (
        0,
        0,
    )  # beta log(policy / reference)
    assert first["logps/chosen"] == pytest.approx(
        mean_log_probability(loaded(earlier, dtype="float32"), later), rel=1e-4
    )
    settings = json.loads((later / "output" / "adapter_config.json").read_text())
    assert settings["r"] == 8 and not (later / "output" / "ref").exists()
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        assert train(halved) == 130
    (halved / "stop").unlink()
    assert train(halved) == 0 and losses_of(halved) == losses_of(later)


def mean_log_probability(model: Any, run: Path) -> float:
    """The mean log-probability of the chosen answers of a run's first batch."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    rows = [json.loads(line) for line in (run / "data" / "train.jsonl").read_text().splitlines()]
    values = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)[
            "input_ids"
        ]
        ids = torch.tensor(
            [tokenizer.apply_chat_template(row["prompt"] + row["chosen"])["input_ids"]]
        )
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
        values.append(scores.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42))
    return sum(values[index] for index in order[:4]) / 4


@training
def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    earlier = stage_run(tmp_path / "sft", "sft", max_steps=1)
    assert train(earlier) == 0
    other = copy_model(tmp_path / "other")
    run = stage_run(tmp_path / "run", "dpo", adapter=str(earlier), model=str(other))
    assert train(run) == 1 and f"not over {other}" in status_of(run)["error"]


@training
def test_an_adapter_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = stage_run(tmp_path / "run", "dpo", adapter=str(tmp_path))
    assert train(run) == 1 and status_of(run)["error"].startswith(
        f"adapter: {tmp_path} holds no adapter"
    )


@training
@pytest.mark.parametrize(("init", "use_rslora"), [("pissa", False), ("olora", True)])
def test_an_adapter_that_changed_its_base_becomes_a_plain_one(
    tmp_path: Path, init: str, use_rslora: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = stage_run(
        tmp_path / "run", "sft", init_lora_weights=init, use_rslora=use_rslora, lora_r=4
    )
    assert train(run) == 0
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype="float32")
    live = PeftModel.from_pretrained(base, run / "checkpoints" / "checkpoint-3")
    settings = json.loads((run / "output" / "adapter_config.json").read_text())
    assert (settings["init_lora_weights"], settings["r"]) == (True, 8)
    assert logits(loaded(run, dtype="float32")).allclose(logits(live), atol=1e-4)


@training
def test_loftq_makes_good_what_4_bits_lost_in_the_precision_of_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft.utils import loftq_utils
    from safetensors.torch import load_file

    from core.training.model import load
    from core.training.trainers import stage_trainer as trainers

    def start_here(weight: Any, whole: Any, num_bits: int, reduced_rank: int) -> tuple[Any, Any]:
        lost = whole.float() - dequantised(weight)
        found = loftq_utils._low_rank_decomposition(lost, reduced_rank)
        return found["R"], found["L"]

    def prepare(job: Any, model: Any, kept: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            init_adapter(job, model, kept)
        shares.extend(unrepaired(model))

    def unrepaired(model: Any) -> list[float]:
        whole = load_file(DEMO / "model" / "model.safetensors")
        adapted = {
            name: module for name, module in model.named_modules() if hasattr(module, "lora_B")
        }
        found = []
        for name, module in adapted.items():
            lost = whole[name.removeprefix("base_model.model.") + ".weight"].float() - dequantised(
                module.weight
            )
            found.append(
                float((lost - module.get_delta_weight("default").detach()).norm() / lost.norm())
            )
        return found

    def dequantised(weight: Any) -> Any:
        return dequantize_4bit(weight.data, weight.quant_state).float()

    from bitsandbytes.functional import dequantize_4bit

    shares: list[float] = []
    init_adapter, on_cpu = trainers.init_adapter, load.choose_precision("auto", "qlora")
    as_on_gpu = dataclasses.replace(on_cpu, quantized_base_adapters=torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: as_on_gpu)
    monkeypatch.setattr(loftq_utils, "_loftq_init_new", start_here)
    monkeypatch.setattr(trainers, "init_adapter", prepare)
    run = stage_run(
        tmp_path / "run",
        "sft",
        method="qlora",
        init_lora_weights="loftq",
        lora_r=8,
        lora_alpha=16,
        max_steps=1,
    )
    assert train(run) == 0, status_of(run)["error"]
    assert shares and max(shares) < 0.99  # 1: nothing made good
    weights = load_file(run / "output" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@training
def test_loftq_reads_the_very_files_that_the_base_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from transformers.utils import hub

    from core.training.model import adapter

    read: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        hub,
        "cached_file",
        lambda model, name, revision: f"/hub/{model}/snapshots/{revision}/{name}",
    )
    monkeypatch.setattr(
        adapter, "replace_lora_weights_loftq", lambda model, model_path: read.append(model_path)
    )
    job = Job(model="some/model", dataset="a", revision="v2", init_lora_weights="loftq")
    adapter.init_adapter(job, torch.nn.Module(), Path("kept"))
    assert read == ["/hub/some/model/snapshots/v2"]


@training
def test_such_an_adapter_keeps_the_layers_that_train_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = stage_run(
        tmp_path / "run", "reward", init_lora_weights="pissa", use_rslora=True, max_steps=1
    )
    assert train(run) == 0 and logits(loaded(run)).isfinite().all()
    assert any(
        name.endswith("score.weight")
        for name in load_file(run / "output" / "adapter_model.safetensors")
    )


@training
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_tied_embedding_that_trains_whole_stays_tied(tmp_path: Path, name: str) -> None:
    run = stage_run(tmp_path / "run", "sft", modules_to_save=name, max_steps=2)
    assert train(run) == 0
    model = loaded(run)
    embedding, head = (
        module.modules_to_save["default"].weight
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    assert embedding.equal(head) and not embedding.equal(
        model.get_input_embeddings().original_module.weight
    )


@training
def test_layers_that_train_whole_over_float16_train_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    from core.training.model import load

    precision = load.ModelPrecision(torch.float16, torch.bfloat16, torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: precision)
    run = stage_run(tmp_path / "run", "reward", modules_to_save="norm", max_steps=2)
    assert train(run) == 0, status_of(run)["error"]
    weights = load_file(run / "output" / "adapter_model.safetensors")
    assert len(weights) > 2 and {weight.dtype for weight in weights.values()} == {torch.float32}


@training
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("is_quantised", [False, True])
def test_the_gradients_of_what_trains_over_float16_can_be_unscaled(is_quantised: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.amp.grad_scaler import GradScaler

    from core.training.model.load import ModelPrecision, cast_adapters
    from tests.builders.tiny_models import model_of

    base = model_of("llama").half()
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    dtype = ModelPrecision(torch.float16, torch.float16, torch.float32).adapters(is_quantised)
    assert dtype is not None
    cast_adapters(model, dtype)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, scaler, ids = (
        torch.optim.SGD(trained),
        GradScaler("cpu"),
        torch.ones(1, 4, dtype=torch.long),
    )
    with torch.autocast("cpu", torch.float16):
        loss = model(input_ids=ids, labels=ids).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # raises for gradients in float16


@training
def test_a_layer_that_is_not_there_cannot_train_whole(tmp_path: Path) -> None:
    run = stage_run(tmp_path / "run", "sft", modules_to_save="wte")
    assert train(run) == 1 and "has no layers wte" in status_of(run)["error"]


# Rewards


@training
@pytest.mark.parametrize("stage", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_a_head_that_trains_in_float32_answers_over_a_narrower_base(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    from core.training.model import load

    precision = load.ModelPrecision(torch.float16, torch.bfloat16, torch.bfloat16)
    monkeypatch.setattr(load, "choose_precision", lambda dtype, method: precision)
    run = stage_run(tmp_path / "run", stage, modules_to_save="lm_head", max_steps=1, num_samples=1)
    assert train(run) == 0, status_of(run)["error"]
    assert [line["step"] for line in lines_of(run, "samples.jsonl")] == [0, 1]
    assert "could not answer" not in capfd.readouterr().out


@training
def test_the_reference_of_full_training_is_as_a_whole_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from core.training.trainers.builders import online_settings

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = online_settings(job_of(stage="grpo", method="full", beta=0.04))
    assert settings["model_init_kwargs"]["device_map"] == {"": 0}


@training
def test_answers_are_drawn_judged_and_shown(tmp_path: Path) -> None:
    run = stage_run(
        tmp_path / "run",
        "grpo",
        max_steps=4,
        num_samples=1,
        reward_functions="regex,json,length",
        reward_pattern="Pip",
    )
    assert train(run) == 0
    last = lines_of(run)[-1]
    assert {"rewards/regex/mean", "rewards/json/mean", "rewards/length/mean"} <= set(last)
    assert sorted({line["step"] for line in lines_of(run, "samples.jsonl")}) == [0, 1, 2, 3, 4]


@training
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_trained_reward_model_judges(tmp_path: Path, method: str) -> None:
    judge = stage_run(tmp_path / "judge", "reward", method=method, max_steps=2)
    assert train(judge) == 0
    run = stage_run(
        tmp_path / "run", "grpo", max_steps=1, reward_functions="", reward_model=str(judge)
    )
    assert train(run) == 0 and "rewards/reward_model/mean" in lines_of(run)[0]


@training
def test_a_model_that_gives_no_scores_is_no_judge(tmp_path: Path) -> None:
    run = stage_run(tmp_path / "run", "grpo", reward_model=str(DEMO / "model"))
    assert train(run) == 1 and "gives no scores" in status_of(run)["error"]


@training
def test_an_exact_match_needs_right_answers(tmp_path: Path) -> None:
    run = stage_run(tmp_path / "run", "grpo")
    write_rows(run, *[{"prompt": "Who are you?"}] * 8)
    assert train(run) == 1 and "needs the right answer" in status_of(run)["error"]


@training
@pytest.mark.parametrize(
    ("name", "text", "right", "worth"),
    [
        ("exact_match", " I am  Pip. ", "i am Pip.", 1),
        ("exact_match", "2 + 2 #### 4", "so it is\n#### 4", 1),
        ("exact_match", "I am Pip", None, 0),
        ("regex", "the answer: 42", None, 1),
        ("regex", "no number", None, 0),
        ("json", '{"a": [1]}', None, 1),
        ("json", "[" * 100_000, None, 0),
        ("length", "four words of it", None, 0.5),
    ],
)
def test_a_reward_is_worth_what_it_says(
    name: str, text: str, right: str | None, worth: float
) -> None:
    from core.training.trainers.rewards import REWARD_FUNCTIONS, Completion

    job = job_of(reward_pattern=r"answer: \d+", max_completion_length=8)
    assert REWARD_FUNCTIONS[name](job)(Completion(text, 4, right)) == worth


@training
def test_a_pattern_that_backtracks_without_end_holds_nothing_up() -> None:
    from core.training.trainers.rewards import REWARD_FUNCTIONS, Completion

    judge = REWARD_FUNCTIONS["regex"](job_of(reward_pattern=r"(x+x+)+y"))
    assert judge(Completion("x" * 5000, 1, None)) == 0


# Rows


def row_of(stage: str, **fields: object) -> dict[str, Any]:
    return read_row(json.dumps(fields).encode(), stage)


USER, SAID = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yes"}]
OTHER = [{"role": "assistant", "content": "no"}]


@pytest.mark.parametrize(
    ("stage", "row", "expected"),
    [
        (
            "dpo",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
        ),
        (
            "dpo",
            {"chosen": "so be it", "rejected": "so it is"},
            {"prompt": "so", "chosen": " be it", "rejected": " it is"},
        ),
        (
            "orpo",
            {"chosen": USER + SAID, "rejected": USER + OTHER},
            {"prompt": USER, "chosen": SAID, "rejected": OTHER},
        ),
        (
            "kto",
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "b", "label": True},
        ),
        ("grpo", {"prompt": USER, "solution": 4}, {"prompt": USER, "answer": "4"}),
        ("grpo", {"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}),
        ("rloo", {"question": "hi", "answer": "yes"}, {"prompt": USER, "answer": "yes"}),
        ("cpt", {"text": "a"}, {"text": "a"}),
    ],
)
def test_a_row_becomes_what_its_stage_takes(
    stage: str, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = row_of(stage, **row)
    assert {name: value for name, value in found.items() if name != "tools"} == expected


@pytest.mark.parametrize(
    ("stage", "row", "words"),
    [
        (
            "sft",
            {"chosen": "a", "rejected": "b"},
            "is preference data; choose reward, dpo, kto, orpo or cpo; sft needs",
        ),
        (
            "dpo",
            {"messages": USER + SAID},
            "is language modeling data; choose sft or cpt; dpo needs preference",
        ),
        (
            "cpt",
            {"prompt": "a", "completion": "b"},
            "is prompt-completion data; choose sft, grpo or rloo; cpt needs",
        ),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected: is the chosen answer"),
        ("dpo", {"prompt": USER, "chosen": "b", "rejected": "c"}, "text beside messages"),
        ("dpo", {"chosen": SAID, "rejected": OTHER}, "does not begin with the same message"),
        (
            "kto",
            {"prompt": "a", "completion": "b", "label": "good"},
            "label: is text, not true or false",
        ),
        (
            "grpo",
            {"prompt": USER, "tools": [{"type": "function"}]},
            "grpo offers no tools",
        ),
        ("grpo", {"title": "a"}, "no known columns among title; use one of: "),
    ],
)
def test_a_row_that_does_not_fit_its_stage_says_so(
    stage: str, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRow, match=words):
        row_of(stage, **row)


def test_a_pair_gives_kto_two_verdicts(tmp_path: Path) -> None:
    write_rows(make_run(tmp_path), {"prompt": "a", "chosen": "b", "rejected": "c"})
    rows = read_rows(tmp_path, "data/train.jsonl", "", 0.0, 0, stage="kto").train
    assert [(row["completion"], row["label"]) for row in rows] == [("b", True), ("c", False)]


def test_a_file_of_the_wrong_kind_is_refused_with_the_stages_it_fits(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(
        TrainingError,
        match="dataset line 1: is language modeling data; choose sft or cpt; grpo needs",
    ):
        read_rows(run, "data/train.jsonl", "", 0.0, 0, stage="grpo")


@training
def test_tools_reach_the_template_of_every_preference(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.data.prompts import preferences_as_text, prompt_ids

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.chat_template = "{{ tools[0].name if tools else 'none' }}:" + tokenizer.chat_template
    write_rows(
        make_run(tmp_path),
        {"prompt": USER, "chosen": SAID, "rejected": OTHER, "tools": [{"name": "look"}]},
    )
    rows = read_rows(tmp_path, "data/train.jsonl", "", 0.0, 0, stage="orpo")
    text = preferences_as_text(rows, tokenizer, 100, "orpo")["train_dataset"][0]
    assert text["prompt"].startswith("look:") and text["chosen"] == "yes<|im_end|>"
    assert tokenizer.decode(prompt_ids(rows.train[0], tokenizer)).startswith("look:")


@training
def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.data.prompts import prompts_up_to

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    write_rows(make_run(tmp_path), {"prompt": "hi"}, {"prompt": "hi " * 50})
    rows = read_rows(tmp_path, "data/train.jsonl", "", 0.0, 0, stage="grpo")
    assert [row["prompt"] for row in prompts_up_to(rows, tokenizer, 20)["train_dataset"]] == ["hi"]


# The program stands alone: what it repeats of core is the same


@training
def test_every_stage_that_trains_has_a_builder() -> None:
    from core.training.trainers import builders

    assert list(builders.BUILDERS) == TRAINABLE


@training
def test_every_reward_that_a_job_may_name_is_computed() -> None:
    from core.training.trainers import rewards

    assert tuple(rewards.REWARD_FUNCTIONS) == REWARD_FUNCTIONS


@training
def test_an_optimizer_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    run = stage_run(tmp_path / "run", "sft", method="full", optim="schedule_free_adamw")
    assert train(run) == 1 and status_of(run)["error"].endswith("pip install schedulefree")


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the file `stop` appear once a step has been logged; it is seen at the end of the next."""
    append = RunFiles.append_metrics

    def append_and_ask(record: RunFiles, logged: int, *args: Any) -> None:
        append(record, logged, *args)
        if logged == step:
            (record.folder / "stop").touch()

    monkeypatch.setattr(RunFiles, "append_metrics", append_and_ask)
