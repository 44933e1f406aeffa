"""Model that is traced: the real classes of transformers, bitsandbytes and PEFT.

First on the meta device, without any storage; then with tensors that have a storage but no data.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import peft.tuners.lora.dora as dora
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft import get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.model import attention
from core.training.model.adapter import lora_config
from core.training.model.compiling import skip_adapter_input_cast
from core.training.model.layer_checkpointing import checkpoint_every
from core.training.model.load import (
    ModelPrecision,
    cast_adapters,
    choose_attention,
    choose_precision,
    keep_4bit_layers_trainable,
    quantization_config,
    train_last_layers,
)

from .cuda import TRACED_FLASH, TRACED_FLEX, Card
from .quantized import quantize_layer

IGNORED_KEYS = (
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
)
"""Keys of a config.json that do not decide the shape, or that name code."""
ROPE_THAT_READS_POSITIONS = ("dynamic", "longrope")
BITSANDBYTES_LAYERS = (Linear4bit, Linear8bitLt)


def precision_on(card: Card, job: Job) -> ModelPrecision:
    """Return the precision that the training program would choose on this card."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return card.supports_bf16

    with (
        patch.object(torch.cuda, "is_available", lambda: not card.is_cpu),
        patch.object(torch.cuda, "is_bf16_supported", is_bf16_supported),
    ):
        return choose_precision(job.dtype, job.method)


def empty_model(config: Mapping[str, Any], job: Job, precision: ModelPrecision) -> Any:
    """Return the base on the meta device, from the values of a config.json."""
    values = {
        key: _without_positions(value)
        for key, value in config.items()
        if key not in IGNORED_KEYS and "attn_implementation" not in key
    }
    model_config = AutoConfig.for_model(values.pop("model_type"), **values)
    with patch.object(AutoConfig, "from_pretrained", lambda **_: model_config):
        kernel = choose_attention(job)
    loader: Any = AutoModelForCausalLM
    if STAGES[job.stage].head == "score":
        loader = AutoModelForSequenceClassification
        model_config.num_labels = 1
    with torch.device("meta"):
        return loader.from_config(
            model_config,
            dtype=precision.weights,
            attn_implementation=_traced_kernel(kernel, job.packing),
            trust_remote_code=False,
        )


def prepare(model: Any, job: Job, precision: ModelPrecision) -> Any:
    """Return the base quantized and with its adapter, as SFTTrainer makes it in a training."""
    quantization = quantization_config(job, precision)
    if quantization is not None:
        is_scorer = STAGES[job.stage].head == "score"
        skipped = ["score"] if is_scorer else get_keys_to_not_convert(model)
        replace_with_bnb_linear(model, skipped, quantization)
        setattr(model, f"is_loaded_in_{METHODS[job.method].base_bits}bit", True)
        keep_4bit_layers_trainable(model)
    if METHODS[job.method].trains_last_layers:
        train_last_layers(model, job.num_trainable_layers)
    if job.trains_adapter:
        model = _with_adapter(model, job, precision.adapters(quantization is not None))
    if job.gradient_checkpointing:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        checkpoint_every(base, job.checkpoint_every_n_layers)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if job.trains_adapter:
            model.enable_input_require_grads()
    return model


def materialize(model: nn.Module, precision: ModelPrecision) -> None:
    """Give every parameter and buffer a storage as loading does, layer by layer, then the adapters.

    A quantized layer passes through an unquantized copy. Tied parameters stay one.
    """
    # The old tensor is kept with the new one, so that its id is not used again.
    made: dict[int, tuple[Tensor, Tensor]] = {}
    has_adapter = any(not parameter.requires_grad for parameter in model.parameters())
    for is_adapter in (False, True):
        for module in model.modules():
            if isinstance(module, BITSANDBYTES_LAYERS) and not is_adapter:
                unquantized = torch.empty(
                    module.out_features, module.in_features, dtype=precision.weights
                )
                quantize_layer(module)
                del unquantized
            for tensors, name, old in _tensors_of(module):
                if is_adapter == (has_adapter and old.requires_grad):
                    if id(old) not in made:
                        made[id(old)] = old, _empty_like(old)
                    tensors[name] = made[id(old)][1]


def frozen_copy(model: Any) -> Any:
    """Return a copy of a model in which nothing trains, as its reference.

    Copied by themselves, its tensors would each be wrapped in another one without data.
    """
    copies: dict[int, Any] = {id(each): torch.empty_like(each) for each in model.buffers()}
    for each in model.parameters():
        copies[id(each)] = nn.Parameter(torch.empty_like(each.data), requires_grad=False)
    return copy.deepcopy(model, copies)


@contextmanager
def dequantize_for_dora() -> Iterator[None]:
    """Let DoRA read the weights of quantized layers, which have another class here."""
    peft_dequantize = dequantize_module_weight

    def weight_of(module: Any) -> Tensor:
        weight = module.weight
        if not isinstance(module, BITSANDBYTES_LAYERS):
            return peft_dequantize(module)
        if weight.is_meta:
            return torch.empty(module.out_features, module.in_features, device="meta")
        if isinstance(module, Linear4bit):
            return dequantize_4bit(weight.data, weight.quant_state)
        scales: Any = module.state.SCB
        return int8_vectorwise_dequant(weight.data, scales)

    with (
        patch.object(dora, "dequantize_module_weight", weight_of),
        patch.object(dora, "deepcopy", lambda layer: layer),
    ):
        yield


@contextmanager
def assume_padding(has_padding: bool) -> Iterator[None]:
    """Decide by the job whether SDPA needs a mask: transformers would look at the mask's values.

    Padding for `causal` is always on the right. Source: _ignore_causal_mask_sdpa in
    transformers/masking_utils.py.
    """

    def needs_no_mask(
        padding_mask: Any, q_length: int, kv_length: int, *offsets_and_window: Any
    ) -> bool:
        window = offsets_and_window[-1]
        return not has_padding and (window is None or kv_length < window)

    def pads_right(request: Mapping[str, Any]) -> bool:
        return bool(request["q_length"] == request["kv_length"])

    with (
        patch("transformers.masking_utils._ignore_causal_mask_sdpa", needs_no_mask),
        patch.object(attention, "pads_at_most_right", pads_right),
    ):
        yield


def _with_adapter(model: Any, job: Job, dtype: torch.dtype | None) -> Any:
    """Return the model with a new adapter in a precision; None leaves it as PEFT makes it."""
    settings = lora_config(job, model)
    # All initializations leave tensors of the same sizes behind.
    settings.init_lora_weights = True
    # PEFT can create adapters on the meta device itself, but then tied copies become two.
    with dequantize_for_dora(), torch.device("meta"):
        model = get_peft_model(model, settings)
    if dtype:
        cast_adapters(model, dtype)
    if not job.use_dora:
        skip_adapter_input_cast(model)
    return model


def _traced_kernel(kernel: str, is_packed: bool) -> str:
    """Return the stand-in of a kernel. Without packing, `varlen` computes what `causal` does."""
    if kernel == "flex_attention":
        return TRACED_FLEX
    if kernel == "flash_attention_2" or (kernel == "varlen" and is_packed):
        return TRACED_FLASH
    if kernel == "varlen":
        return "causal"
    return kernel


def _without_positions(value: Any) -> Any:
    """Replace rotary embeddings that read the positions in a batch; tables stay as large."""
    if not isinstance(value, dict):
        return value
    replaced = {}
    for key, item in value.items():
        if key in ("rope_type", "type") and item in ROPE_THAT_READS_POSITIONS:
            replaced[key] = "default"
        else:
            replaced[key] = _without_positions(item)
    return replaced


def _tensors_of(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield (dict of its owner, name, tensor) of a module's tensors, quantized weights left out."""
    owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
    for tensors in owners:
        for name, tensor in tuple(tensors.items()):
            if isinstance(tensor, Tensor) and not hasattr(tensor, "quant_state"):
                yield tensors, name, tensor


def _empty_like(old: Tensor) -> Tensor:
    """Return a tensor of the same shape with its own storage."""
    new = torch.empty(old.shape, dtype=old.dtype)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new
