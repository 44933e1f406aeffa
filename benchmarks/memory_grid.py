"""Grid of points that measure_memory.py measures. Never runs anything."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

from core.job import JobSpec
from core.models import PRESETS_DIR, ModelShape
from core.training.contract.stages import STAGES, Stage

RowKind = Literal["padded", "equal", "varied"]

STEPS = 4
"""The program measures the phases of three steps; the evaluation comes after them."""
VARIED_STEPS = 12
MOST_SAVED_PARAMETERS = 600_000_000
"""Above it a checkpoint with optimizer states takes minutes and tens of gigabytes to write."""
EVERY_JOB: Mapping[str, object] = MappingProxyType(
    {
        "dataset": "data/train.jsonl",
        "eval_dataset": "data/eval.jsonl",
        "max_steps": STEPS,
        "eval_steps": STEPS - 1,
        "save_steps": 1000,  # only at the end
        "gradient_accumulation_steps": 1,
        "num_samples": 0,
        "halve_batch_on_oom": False,  # would measure a smaller batch
        "stop_when_diverged": False,  # weights of zero learn nothing
    }
)
TOY_SIZES: Mapping[str, object] = MappingProxyType(
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "sliding_window": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }
)
TOY_SHORTENING = 32
"""Factor by which the rows of a toy are shorter."""


@dataclass(frozen=True)
class Point:
    """One training to measure."""

    model: str
    """Hub id of a preset."""
    fields: Mapping[str, object]
    """Fields of its job, in addition to EVERY_JOB."""
    rows: RowKind = "padded"
    """padded: all of max_length but one, so that a batch has padding to mask. equal: all of
    max_length. varied: from an eighth of it up. A packed batch is filled to the last token."""
    evaluates: bool = True
    num_layers: int | None = None
    """Number of layers to keep of a model that is too large; None for all."""
    is_toy: bool = False
    """True for the same at a size that any machine can train."""

    @property
    def id(self) -> str:
        """Unique name, for people and for a file of results."""
        named = ("method", "per_device_train_batch_size", "max_length")
        method, batch, length = (self.fields[name] for name in named)
        words = [self.model.split("/")[1]]
        if self.is_toy:
            words.insert(0, "toy")
        if self.num_layers:
            words.append(f"{self.num_layers}-layers")
        words.append(f"{method} {batch}x{length}")
        words += [f"{name}={value}" for name, value in self.fields.items() if name not in named]
        if self.rows != "padded":
            words.append(self.rows)
        if not self.evaluates:
            words.append("no-eval")
        return " ".join(words)

    @property
    def config(self) -> dict[str, object]:
        """Config of the model: that of the preset, with the ids of the tokenizer."""
        # without the key transformers would take the default of the family
        config = {"sliding_window": None, **preset_configs()[self.model]}
        if self.num_layers:
            config["num_hidden_layers"] = self.num_layers
        if self.is_toy:
            is_grouped = config["num_key_value_heads"] != config["num_attention_heads"]
            config = {
                name: value if value is None else TOY_SIZES.get(name, value)
                for name, value in config.items()
            }
            config["num_key_value_heads"] = 2 if is_grouped else 4
        words = str(config["model_type"]).removesuffix("_text").split("_")
        named = {"architectures": ["".join(word.capitalize() for word in words) + "ForCausalLM"]}
        return config | named | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}

    @property
    def max_length(self) -> int:
        """Tokens of the longest row."""
        length = self.fields["max_length"]
        assert isinstance(length, int)
        return length // TOY_SHORTENING if self.is_toy else length

    def job(self, model: str) -> JobSpec:
        """Return its job, on a model by id or folder. Raises SpecError."""
        fields = {**EVERY_JOB, **self.fields, "model": model, "max_length": self.max_length}
        if self.stage.id in ("sft", "cpt"):
            fields["assistant_only_loss"] = False
        if self.stage.generates:
            fields |= {"max_completion_length": self.max_length // 4, "reward_functions": "length"}
        if self.rows == "varied":
            fields |= {"max_steps": VARIED_STEPS, "eval_steps": VARIED_STEPS - 1}
        if not self.evaluates:
            fields |= {"eval_dataset": "", "eval_fraction": 0}
        return JobSpec.parse(fields)

    @property
    def stage(self) -> Stage:
        """Stage of its job."""
        return STAGES[str(self.fields.get("stage", "sft"))]

    @property
    def num_tokens(self) -> int | None:
        """Tokens that it trains on; None if the model generates answers of any length."""
        if self.stage.generates:
            return None
        sequences = 2 if "preference" in self.stage.dataset_types and self.stage.id != "kto" else 1
        return sequences * sum(self.train_tokens()) * (1 if self.rows == "varied" else STEPS)

    @property
    def saves(self) -> bool:
        """True if the trained weights are small enough to be saved."""
        return self.fields["method"] != "full" or self.shape.num_parameters <= MOST_SAVED_PARAMETERS

    @property
    def has_holes(self) -> bool:
        """True if weights of linear layers may be zero; DoRA divides by the norm of each row."""
        return not self.fields.get("use_dora")

    @property
    def shape(self) -> ModelShape:
        """Shape of its model."""
        return ModelShape.from_config(self.config)

    def train_tokens(self) -> tuple[int, ...]:
        """Return the tokens of each training row. Rows that do not vary make one step."""
        job, length = self.job(self.model), self.max_length
        if self.stage.generates:
            return self._one_batch(job.effective_batch_size // job.num_generations)
        if self.rows != "varied":
            return self._one_batch(job.effective_batch_size)
        last = VARIED_STEPS * job.effective_batch_size - 1
        return tuple(length // 8 + (length - length // 8) * row // last for row in range(last + 1))

    def eval_tokens(self) -> tuple[int, ...]:
        """Return the tokens of each evaluation row: one batch of the longest, or none."""
        return (
            self._one_batch(self.job(self.model).per_device_train_batch_size)
            if self.evaluates
            else ()
        )

    def _one_batch(self, num_rows: int) -> tuple[int, ...]:
        length = self.max_length
        if self.job(self.model).packing:
            return (length // 2, length // 4, length // 8, length // 8) * num_rows
        last = length
        if self.rows != "equal" and num_rows > 1:
            last = length - length // 8
        return (*(length,) * (num_rows - 1), last)


def job(method: str, batch: int, max_length: int, **fields: object) -> Mapping[str, object]:
    """Return the fields of a point's job."""
    sizes = {"method": method, "per_device_train_batch_size": batch, "max_length": max_length}
    return MappingProxyType(sizes | fields)


QWEN25_HALF_B, QWEN25_7B = "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B"
QWEN3_4B, QWEN3_14B, QWEN3_MOE = "Qwen/Qwen3-4B", "Qwen/Qwen3-14B", "Qwen/Qwen3-30B-A3B"
LLAMA_1B, LLAMA_3B, LLAMA_8B = (
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.1-8B",
)
GEMMA2_2B, GEMMA3_1B, GRANITE_2B = (
    "google/gemma-2-2b",
    "google/gemma-3-1b-pt",
    "ibm-granite/granite-3.3-2b-instruct",
)
MISTRAL_7B, OLMO2_7B = "mistralai/Mistral-7B-v0.3", "allenai/OLMo-2-1124-7B"
PHI35_MINI, SMOLLM2 = "microsoft/Phi-3.5-mini-instruct", "HuggingFaceTB/SmolLM2-1.7B"
EAGER = MappingProxyType({"attn_implementation": "eager"})
"""Gemma 2 has no other: PyTorch's attention has no soft caps."""
KEEP = MappingProxyType({"gradient_checkpointing": False})
"""Keep activations instead of recomputing them."""

COMPILED = MappingProxyType({"torch_compile": True})
"""Compile each layer."""
WITHIN_HALF = MappingProxyType({**COMPILED, "activation_memory_budget": 0.5})
"""Compile each layer, and keep at most half of its activations."""

FIRST = (
    # every family, method, optimizer and attention, with and without checkpointing, in ten minutes
    Point(LLAMA_8B, job("qlora", 2, 2048)),
    Point(LLAMA_1B, job("full", 4, 1024)),
    Point(LLAMA_1B, job("lora", 4, 2048, **KEEP, **COMPILED)),
    Point(
        LLAMA_1B,
        job("lora", 2, 2048, packing=True, attn_implementation="varlen", **KEEP, **WITHIN_HALF),
    ),
    Point(QWEN25_7B, job("lora", 2, 2048)),
    Point(MISTRAL_7B, job("lora-8bit", 2, 1024, optim="adamw_torch")),
    Point(QWEN25_HALF_B, job("full", 8, 1024, optim="sgd"), rows="varied"),
    Point(GEMMA2_2B, job("lora", 2, 1024, **EAGER)),
    Point(PHI35_MINI, job("qlora", 4, 1024, optim="paged_adamw_32bit", **KEEP)),
    Point(QWEN3_4B, job("lora", 4, 1024, packing=True)),
    Point(GRANITE_2B, job("full", 4, 1024, optim="adamw_8bit")),
    Point(SMOLLM2, job("full", 2, 1024, optim="lion_8bit", **KEEP)),
    Point(OLMO2_7B, job("qlora", 1, 1024, optim="adafactor")),
    Point(QWEN3_MOE, job("lora", 2, 1024), num_layers=8),
    Point(GEMMA3_1B, job("lora", 8, 512, **KEEP), rows="equal"),
    Point(QWEN3_14B, job("qlora", 1, 4096)),
    Point(LLAMA_1B, job("freeze", 4, 1024)),
    Point(LLAMA_1B, job("lora", 2, 1024, stage="dpo")),
    Point(LLAMA_1B, job("lora", 4, 1024, stage="kto")),
    Point(LLAMA_1B, job("lora", 8, 1024, stage="grpo", num_generations=4), evaluates=False),
    Point(LLAMA_1B, job("lora", 4, 1024, checkpoint_every_n_layers=2)),
)
ONE_BY_ONE = (
    # one thing changes at a time, on models that load in seconds
    Point(LLAMA_1B, job("lora", 4, 2048)),
    Point(LLAMA_1B, job("lora", 4, 2048, **KEEP)),
    Point(LLAMA_1B, job("lora", 4, 2048, **KEEP, **WITHIN_HALF)),
    Point(LLAMA_1B, job("lora", 4, 2048, **COMPILED)),
    Point(LLAMA_1B, job("full", 2, 2048, **KEEP, **COMPILED)),
    Point(LLAMA_1B, job("qlora", 4, 2048, **KEEP, **COMPILED)),
    Point(LLAMA_1B, job("lora", 4, 2048, packing=True, attn_implementation="varlen", **KEEP)),
    Point(LLAMA_1B, job("qlora", 4, 2048)),
    Point(LLAMA_1B, job("qlora", 4, 2048, **KEEP)),
    Point(LLAMA_1B, job("lora-8bit", 4, 2048)),
    Point(LLAMA_1B, job("lora-8bit", 2, 1024, **KEEP)),
    Point(LLAMA_1B, job("full", 2, 2048, **KEEP)),
    Point(LLAMA_1B, job("lora", 2, 1024, **EAGER, **KEEP)),
    Point(LLAMA_1B, job("full", 2, 2048, **EAGER)),
    *(
        Point(LLAMA_1B, job("full", 2, 1024, optim=optim))
        for optim in ("adamw_torch", "adamw_8bit", "adafactor")
    ),
    *(
        Point(LLAMA_1B, job("full", 2, 1024, optim=optim))
        for optim in ("paged_adamw_8bit", "paged_adamw_32bit")
    ),
    *(Point(LLAMA_1B, job("full", 2, 1024, optim=optim)) for optim in ("lion_8bit", "sgd")),
    Point(LLAMA_1B, job("full", 2, 1024, dtype="float32")),
    Point(LLAMA_1B, job("full", 1, 1024, gradient_accumulation_steps=4)),
    Point(LLAMA_1B, job("full", 2, 1024, packing=True)),
    Point(LLAMA_1B, job("lora", 4, 2048, packing=True, **KEEP)),
    Point(LLAMA_1B, job("lora", 4, 2048), evaluates=False),
    Point(LLAMA_1B, job("lora", 4, 2048), rows="equal"),
    Point(LLAMA_1B, job("lora", 4, 2048), rows="varied"),
    Point(LLAMA_1B, job("lora", 4, 2048, **KEEP), rows="varied"),
    Point(LLAMA_1B, job("full", 4, 2048), rows="varied"),
    Point(LLAMA_1B, job("lora", 2, 1024, gradient_accumulation_steps=4)),
    Point(LLAMA_1B, job("lora", 2, 1024, lora_r=128)),
    Point(LLAMA_1B, job("lora", 2, 1024, lora_dropout=0.05, **KEEP)),
    Point(LLAMA_1B, job("lora", 2, 1024, use_dora=True, **KEEP)),
    Point(LLAMA_1B, job("lora", 2, 1024, target_modules="q_proj,v_proj", **KEEP)),
    Point(LLAMA_1B, job("qlora", 2, 1024, bnb_4bit_use_double_quant=False)),
    *(Point(LLAMA_1B, job("lora", 4, 2048, checkpoint_every_n_layers=count)) for count in (3, 4)),
    Point(LLAMA_1B, job("full", 2, 1024, checkpoint_every_n_layers=4)),
    Point(LLAMA_1B, job("lora", 2, 1024, modules_to_save="lm_head")),
    Point(LLAMA_1B, job("freeze", 2, 1024, num_trainable_layers=6, **KEEP)),
    *(
        Point(LLAMA_1B, job("full", 2, 1024, stage=stage))
        for stage in ("reward", "dpo", "kto", "orpo", "cpo")
    ),
    Point(LLAMA_1B, job("full", 2, 1024, stage="dpo", precompute_ref_log_probs=True)),
    Point(LLAMA_1B, job("qlora", 2, 1024, stage="dpo")),
    Point(LLAMA_1B, job("lora", 2, 1024, stage="dpo", **KEEP)),
    Point(LLAMA_1B, job("lora", 2, 1024, stage="reward")),
    Point(LLAMA_1B, job("lora", 2, 1024, stage="orpo")),
    Point(LLAMA_1B, job("lora", 2, 1024, stage="cpo", loss_type="simpo")),
    Point(
        LLAMA_1B, job("lora", 8, 2048, stage="grpo", num_generations=8, beta=0.04), evaluates=False
    ),
    Point(LLAMA_1B, job("full", 4, 1024, stage="rloo", num_generations=4), evaluates=False),
    Point(QWEN25_HALF_B, job("full", 2, 1024)),
    Point(QWEN25_HALF_B, job("qlora", 1, 512)),
    Point(LLAMA_3B, job("lora", 1, 512)),
    Point(LLAMA_3B, job("lora", 8, 2048)),
    Point(LLAMA_3B, job("qlora", 1, 8192)),
)
LARGER = (
    # families without checkpointing and at full size, and the largest that a card can train
    *(
        Point(model, job("lora", 2, 1024, **KEEP))
        for model in (PHI35_MINI, SMOLLM2, GRANITE_2B, QWEN3_4B)
    ),
    Point(GEMMA2_2B, job("lora", 2, 1024, **EAGER, **KEEP)),
    *(Point(model, job("lora", 1, 1024, **KEEP)) for model in (OLMO2_7B, QWEN25_7B, MISTRAL_7B)),
    Point(QWEN3_MOE, job("lora", 1, 1024, **KEEP), num_layers=8),
    Point(QWEN3_MOE, job("qlora", 2, 1024), num_layers=8),
    Point(GEMMA2_2B, job("full", 2, 1024, **EAGER)),
    Point(PHI35_MINI, job("full", 2, 1024, optim="adamw_8bit")),
    Point(QWEN3_4B, job("full", 2, 2048, optim="adamw_8bit")),
    Point(GEMMA3_1B, job("full", 4, 1024)),
    Point(LLAMA_8B, job("lora", 4, 2048)),
    Point(LLAMA_8B, job("qlora", 4, 2048), rows="varied"),
    Point(LLAMA_8B, job("qlora", 1, 8192)),
    Point(LLAMA_8B, job("qlora", 2, 4096, packing=True)),
    Point(LLAMA_8B, job("lora-8bit", 2, 2048)),
    Point(LLAMA_8B, job("full", 1, 1024, optim="adamw_8bit")),
    Point(LLAMA_8B, job("full", 1, 1024)),
    Point(QWEN3_14B, job("lora", 2, 2048)),
    Point(MISTRAL_7B, job("qlora", 8, 1024)),
    Point(OLMO2_7B, job("qlora", 2, 2048, **KEEP)),
)
GRID = FIRST + ONE_BY_ONE + LARGER
"""Most informative first. A new point is one line; it may set any field of a job."""


def toys() -> tuple[Point, ...]:
    """Return the grid at a size that any machine can train."""
    return tuple(replace(point, is_toy=True) for point in GRID)


@cache
def preset_configs() -> Mapping[str, Mapping[str, object]]:
    """Return the config.json of each preset by Hub id; core.models keeps only the shapes."""
    tables = tomllib.loads((PRESETS_DIR / "models.toml").read_text(encoding="utf-8"))
    return {model: table["config"] for model, table in tables.items()}
