"""Load the model: precision, tokenizer, quantization, weights, adapter. Never runs a model's own
code."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    set_seed,
)

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.methods import METHODS
from ..contract.stages import STAGES
from ..data.tokenizer import source_of
from .adapter import freeze_towers, load_adapter, lora_config
from .attention import register as register_attention
from .ends import stop_at_all_ends
from .layer_checkpointing import checkpoint_every
from .weights import BaseRequest, load_base

MAX_PARAMETERS_FOR_ONE_THREAD = 10_000_000


@dataclass(frozen=True)
class ModelPrecision:
    """Data types in which a model is stored and computed."""

    weights: torch.dtype
    """Base as loaded; over a quantized base, everything that is not quantized."""
    autocast: torch.dtype | None
    """Precision of matrix products, if it is not that of the weights."""
    quantized_base_adapters: torch.dtype
    """Adapters over a quantized base."""

    def adapters(self, is_quantized: bool) -> torch.dtype | None:
        """Return the precision of everything that an adapter trains; None leaves it as PEFT made
        it.

        PEFT casts the matrices that it adds, but not its copies of whole layers
        (cast_adapter_dtype in peft/tuners/tuners_utils.py). Over a float16 base the gradients of
        those could not be unscaled.
        """
        if is_quantized:
            return self.quantized_base_adapters
        return torch.float32 if self.autocast and self.weights == torch.float16 else None


@dataclass(frozen=True)
class LoadedModel:
    """Model and tokenizer, ready for a trainer."""

    model: Any
    tokenizer: Any
    precision: ModelPrecision
    adapter: LoraConfig | None
    """New adapter that the trainer will add; None if there is none, or an earlier one was loaded.
    """

    @property
    def is_quantized(self) -> bool:
        """True if the base is stored in 4 or 8 bits."""
        is_4bit = getattr(self.model, "is_loaded_in_4bit", False)
        return is_4bit or getattr(self.model, "is_loaded_in_8bit", False)


def load_model(job: Job, tokenizer: Any) -> LoadedModel:
    """Load the model of a job from a folder or the Hub, to train with its tokenizer.

    Raises TrainingError, and what the libraries raise for a model that is not there.
    """
    precision = choose_precision(job.dtype, job.method)
    set_seed(job.seed)  # a new score head starts from random numbers
    model = _load_weights(job, precision)
    _check_vocabulary(model, tokenizer)
    stop_at_all_ends(model, tokenizer)
    keep_4bit_layers_trainable(model)
    freeze_towers(model)
    if job.gradient_checkpointing and job.checkpoint_every_n_layers > 1:
        checkpoint_every(model, job.checkpoint_every_n_layers)
    adapter = None
    if METHODS[job.method].trains_last_layers:
        train_last_layers(model, job.num_trainable_layers)
    elif job.trains_adapter and job.adapter:
        model = load_adapter(job, model)
    elif job.trains_adapter:
        adapter = lora_config(job, model)
    if not torch.cuda.is_available() and model.num_parameters() < MAX_PARAMETERS_FOR_ONE_THREAD:
        torch.set_num_threads(1)  # for such small products threads cost more than they gain
    return LoadedModel(model, tokenizer, precision, adapter)


def choose_precision(dtype: str, method: str) -> ModelPrecision:
    """Return the precision on this device; a `dtype` other than auto sets that of the weights.

    Raises TrainingError for float16 weights that train on a GPU. Under bfloat16 nothing scales
    their gradients; under float16 the scaler takes gradients in float32 only (_unscale_grads_ in
    torch/amp/grad_scaler.py).
    """
    trains_adapter = METHODS[method].trains_adapter
    if not torch.cuda.is_available():
        precision = ModelPrecision(torch.float32, None, torch.float32)
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        precision = ModelPrecision(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    else:
        # float16 gradients of float16 weights vanish, so weights that train stay in float32.
        weights = torch.float16 if trains_adapter else torch.float32
        precision = ModelPrecision(weights, torch.float16, torch.float32)
    if dtype == "auto":
        return precision
    if dtype == "float16" and precision.autocast and not trains_adapter:
        raise TrainingError("Weights that train cannot be kept in float16: choose dtype auto.")
    weights = getattr(torch, dtype)
    return ModelPrecision(weights, precision.autocast, precision.quantized_base_adapters)


def cast_adapters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast everything that an adapter trains to `dtype`, except DoRA's magnitudes.

    Over a quantized base TRL makes it bfloat16 on any device, and PEFT makes it float32 again when
    it loads a checkpoint. Updates of DoRA's magnitudes are too small for bfloat16.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def choose_attention(job: Job) -> str:
    """Return the attention kernel: that of the job, or `eager` where SDPA cannot compute it."""
    asked = job.attn_implementation
    if asked not in ("sdpa", "varlen"):
        return asked
    config = AutoConfig.from_pretrained(
        **source_of(job.model, job.revision), trust_remote_code=False
    )
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is not None and not model_class._supports_sdpa:  # caps scores, or has sinks
        print(f"{job.model} cannot use {asked}: attention takes the plain kernel, eager.")
        return "eager"
    if model_class is None or not model_class._supports_attention_backend:
        return "sdpa"  # its attention takes no kernel of ours
    register_attention()
    if asked == "sdpa" and not job.packing and not STAGES[job.stage].generates:
        return "causal"  # rows that are padded at their end need no mask
    return asked


def quantization_config(job: Job, precision: ModelPrecision) -> BitsAndBytesConfig | None:
    """Return the quantization of the base; None if it stays in 16 bits."""
    bits = METHODS[job.method].base_bits
    if bits == 16:
        return None
    # None skips the output head. A reward model has another one.
    skipped = ["score"] if STAGES[job.stage].head == "score" else None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type=job.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=job.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=precision.autocast or precision.weights,
        # Only weights that look like the others can be divided among devices: as bytes they would
        # stay whole on each.
        bnb_4bit_quant_storage=precision.weights if job.is_sharded else torch.uint8,
    )


def train_last_layers(model: Any, num_layers: int) -> None:
    """Freeze a model except its last decoder layers, the final norm and the head.

    A head that is tied to the embeddings stays frozen: its gradients would go back through all
    layers.
    """
    model.requires_grad_(False)
    num_hidden_layers = model.config.get_text_config().num_hidden_layers
    if num_layers > num_hidden_layers:
        print(
            f"num_trainable_layers is {num_layers}, but the model has {num_hidden_layers}: "
            "all of them train."
        )
    trained = _last_modules(model, num_layers, num_hidden_layers)
    head = getattr(model, "score", None) or model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        trained.append(head)
    for module in trained:
        module.requires_grad_(True)
    model.enable_input_require_grads = _require_no_input_grads


def keep_4bit_layers_trainable(model: Any) -> None:
    """Keep 4-bit layers on a CPU as they were loaded.

    With AVX512-BF16, bitsandbytes repacks them for inference at the first forward pass in eval
    mode, permanently. The kernel for that form has no backward pass, so nothing would train after
    an evaluation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _load_weights(job: Job, precision: ModelPrecision) -> Any:
    print(f"loading {job.model} in {str(precision.weights).removeprefix('torch.')}")
    request = BaseRequest(
        job.model,
        job.revision,
        precision.weights,
        has_score_head=STAGES[job.stage].head == "score",
        quantization=quantization_config(job, precision),
        method=job.method,
        attention=choose_attention(job),
        stays_in_main_memory=job.is_sharded,
        compute_dtype=precision.autocast or precision.weights,
    )
    model, fresh = load_base(request)
    if fresh:
        print(f"starting {', '.join(sorted(fresh))} from random numbers")
    return model


def _last_modules(model: Any, num_layers: int, num_hidden_layers: int) -> list[torch.nn.Module]:
    """Return the last decoder layers and the modules behind them, such as the final norm."""
    for owner in model.modules():
        children = dict(owner.named_children())
        for index, (_name, child) in enumerate(children.items()):
            if isinstance(child, torch.nn.ModuleList) and len(child) == num_hidden_layers:
                behind = list(children.values())[index + 1 :]
                return [*child[-num_layers:], *behind]
    raise TrainingError("The decoder layers of this model are not in one list.")


def _require_no_input_grads() -> None:
    """Disable `enable_input_require_grads`, which checkpointing calls.

    With frozen lower layers it would backpropagate through all of them and recompute each.
    """


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise TrainingError if a token has no embedding: on a GPU that error is unreadable."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise TrainingError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model only {num_embeddings} "
            "embeddings."
        )
