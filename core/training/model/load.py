"""The model: precision, tokenizer, quantisation, weights, adapter settings. Never runs code that comes with a model."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    set_seed,
)

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.methods import METHODS
from ..contract.stages import STAGES
from ..data.rows import Rows
from ..data.tokenizer import load_tokenizer, source_of, training_template
from .adapter import adapter_settings, go_on
from .attention import register as register_attention
from .layer_checkpointing import checkpoint_every

FEW_PARAMETERS = 10_000_000


@dataclass(frozen=True)
class Precision:
    """In which numbers the model is kept and computed."""

    weights: torch.dtype
    """The base as loaded; over a quantised base, all that is not quantised."""
    autocast: torch.dtype | None
    """What matrix products are computed in, if not in the dtype of the weights."""
    quantised_base_adapters: torch.dtype
    """Adapters over a quantised base."""

    def adapters(self, is_quantised: bool) -> torch.dtype | None:
        """What all that an adapter trains is cast to; None leaves it as PEFT makes it.

        PEFT widens the matrices that it adds, not its copies of whole layers (cast_adapter_dtype in
        peft/tuners/tuners_utils.py); those of a float16 base would have gradients that cannot be unscaled.
        """
        if is_quantised:
            return self.quantised_base_adapters
        return torch.float32 if self.autocast and self.weights == torch.float16 else None


@dataclass(frozen=True)
class Loaded:
    """A model, ready for a trainer."""

    model: Any
    tokenizer: Any
    precision: Precision
    adapter: LoraConfig | None
    """The adapter that is still to be put on; None if there is none, or an earlier one goes on."""

    @property
    def is_quantised(self) -> bool:
        return getattr(self.model, "is_loaded_in_4bit", False) or getattr(
            self.model, "is_loaded_in_8bit", False
        )


def load(job: Job, rows: Rows) -> Loaded:
    """Loads what a job names, from a folder or the Hub, for rows of this kind.

    Raises TrainingError, and whatever the libraries raise for a model that is not there.
    """
    precision = choose_precision(job.dtype, job.method)
    tokenizer = load_tokenizer(job.model, job.revision, is_conversational=rows.is_conversational)
    if job.assistant_only_loss and rows.is_conversational and rows.is_language_modeling:
        training_template(tokenizer, job.model)  # raises if the answers cannot be marked
    set_seed(job.seed)  # a new head starts from random numbers
    model = _load_model(job, precision)
    _check_vocabulary(model, tokenizer)
    _keep_trainable(model)
    if job.gradient_checkpointing and job.checkpoint_every_n_layers > 1:
        checkpoint_every(model, job.checkpoint_every_n_layers)
    adapter = None
    if METHODS[job.method].trains_last_layers:
        _train_last_layers(model, job.num_trainable_layers)
    elif METHODS[job.method].trains_adapter and job.adapter:
        model = go_on(job, model)
    elif METHODS[job.method].trains_adapter:
        adapter = adapter_settings(job, model)
    if not torch.cuda.is_available() and model.num_parameters() < FEW_PARAMETERS:
        torch.set_num_threads(
            1
        )  # such small products gain nothing from a second core, and threads cost
    return Loaded(model, tokenizer, precision, adapter)


def choose_precision(dtype: str, method: str) -> Precision:
    """The precision on the device at hand; `dtype` other than auto decides on the weights.

    Raises TrainingError for weights in float16 that train on a GPU: under bfloat16 nothing scales their gradients, and
    under float16 the scaler takes gradients in float32 only (_unscale_grads_ in torch/amp/grad_scaler.py).
    """
    if not torch.cuda.is_available():
        precision = Precision(torch.float32, None, torch.float32)
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        precision = Precision(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    else:  # fp16 gradients of fp16 weights vanish, so weights that train are kept in fp32
        weights = torch.float16 if METHODS[method].trains_adapter else torch.float32
        precision = Precision(weights, torch.float16, torch.float32)
    if dtype == "auto":
        return precision
    if dtype == "float16" and precision.autocast and not METHODS[method].trains_adapter:
        raise TrainingError("Weights that train cannot be kept in float16: choose dtype auto.")
    return Precision(getattr(torch, dtype), precision.autocast, precision.quantised_base_adapters)


def cast_adapters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Brings what an adapter trains to `dtype`, DoRA's magnitudes aside.

    Over a quantised base TRL makes it bfloat16 whatever the device, and PEFT makes it float32 again when it loads a
    checkpoint. DoRA's magnitudes stay as they are: their updates are too small for bfloat16.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def _load_model(job: Job, precision: Precision) -> Any:
    print(f"loading {job.model} in {str(precision.weights).removeprefix('torch.')}")
    is_scorer = STAGES[job.stage].head == "score"
    loader: Any = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    return loader.from_pretrained(
        **source_of(job.model, job.revision),
        **({"num_labels": 1} if is_scorer else {}),
        dtype=precision.weights,
        quantization_config=_quantisation(job, precision),
        attn_implementation=_attention(job),
        device_map={"": 0} if torch.cuda.is_available() else None,
        use_safetensors=True,
        trust_remote_code=False,
    )


def _attention(job: Job) -> str:
    """The kernel asked for; the plain one where the model's attention is more than SDPA can compute."""
    if job.attn_implementation not in ("sdpa", "varlen"):
        return str(job.attn_implementation)
    config = AutoConfig.from_pretrained(
        **source_of(job.model, job.revision), trust_remote_code=False
    )
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if (
        model_class is not None and not model_class._supports_sdpa
    ):  # caps its scores, or adds sinks to them
        print(
            f"{job.model} cannot use {job.attn_implementation}: attention takes the plain kernel, eager."
        )
        return "eager"
    if model_class is None or not model_class._supports_attention_backend:
        return "sdpa"  # its attention takes no kernel of ours
    register_attention()
    if job.attn_implementation == "sdpa" and not job.packing and not STAGES[job.stage].generates:
        return "causal"  # rows that are padded at their end need no mask
    return str(job.attn_implementation)


def _quantisation(job: Job, precision: Precision) -> BitsAndBytesConfig | None:
    bits = METHODS[job.method].base_bits
    if bits == 16:
        return None
    kept = ["score"] if STAGES[job.stage].head == "score" else None  # None: the output head
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type=job.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=job.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=precision.autocast or precision.weights,
    )


def _train_last_layers(model: Any, num_layers: int) -> None:
    """Freezes a model but for its last decoder layers, the norm behind them and the head.

    A head that is the embedding stays frozen: gradients for it would go back through all layers.
    """
    model.requires_grad_(False)
    num_hidden_layers = model.config.get_text_config().num_hidden_layers
    if num_layers > num_hidden_layers:
        print(
            f"num_trainable_layers is {num_layers}, but the model has {num_hidden_layers}: all of them train."
        )
    owner, name = next(
        (owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == num_hidden_layers
    )
    children = dict(owner.named_children())
    behind = list(children)[list(children).index(name) + 1 :]
    head = getattr(model, "score", None) or model.get_output_embeddings()
    trained = [*children[name][-num_layers:], *(children[each] for each in behind)]
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        trained.append(head)
    for module in trained:
        module.requires_grad_(True)
    model.enable_input_require_grads = _ask_for_none


def _ask_for_none() -> None:
    """Stands in for a model's own, which checkpointing calls: gradients asked of the embeddings, as adapters need them,
    would go back through every frozen layer, and have each computed again."""


def _keep_trainable(model: Any) -> None:
    """Keeps 4-bit layers on a CPU as they were loaded.

    With AVX512-BF16, bitsandbytes repacks them for inference at the first forward pass in eval mode, for good. The
    kernel for that form has no backward pass: after an evaluation nothing would flow back through the base any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """An id without an embedding would end in an unreadable error on a GPU."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise TrainingError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model only {num_embeddings} embeddings."
        )
