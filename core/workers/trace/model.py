"""The model that is traced: the real classes of transformers, bitsandbytes and PEFT, first without any storage (on the
meta device), then with tensors that have a storage but no data.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import peft.tuners.lora.dora as dora
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
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
from core.training.model.adapter import adapter_settings
from core.training.model.compiling import take_inputs_as_they_are
from core.training.model.layer_checkpointing import checkpoint_every
from core.training.model.load import (
    Precision,
    _attention,
    _keep_trainable,
    _quantisation,
    _train_last_layers,
    cast_adapters,
    choose_precision,
)

from .cuda import TRACED_FLASH, TRACED_FLEX, Card

NOT_SHAPE = (
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
)
"""Keys of a config.json that say nothing of the shape, or name code."""
ROPE_THAT_READS_POSITIONS = ("dynamic", "longrope")
BITSANDBYTES_LAYERS = (Linear4bit, Linear8bitLt)
NUMBERS_PER_SCALE, SCALES_PER_SCALE = 64, 256
"""How many numbers share a scale in 4 bits, and how many scales share one (bitsandbytes.functional.quantize_4bit)."""


def precision_on(card: Card, job: Job) -> Precision:
    """What the training program would choose on this card."""
    with (
        patch.object(torch.cuda, "is_available", lambda: not card.is_cpu),
        patch.object(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: card.supports_bf16
        ),
    ):
        return choose_precision(job.dtype, job.method)


class DecoderLayers:
    """The decoder layers of a model, of which only some are kept."""

    def __init__(self, model: Any):
        self._config = config = model.config.get_text_config()
        self._owner, self._name, layers = _find_layers(model, config.num_hidden_layers)
        self._all = tuple(layers)
        self._types = tuple(getattr(config, "layer_types", None) or ())

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What tells one layer from another, for each of them."""
        return tuple(_kind(layer, self._types[i : i + 1]) for i, layer in enumerate(self._all))

    def keep(self, indices: Sequence[int]) -> tuple[nn.Module, ...]:
        """Makes a model of these layers, in this order, and returns them."""
        kept = tuple(self._all[index] for index in indices)
        values: dict[str, Any] = {"num_hidden_layers": len(kept)}
        if self._types:
            values |= {"layer_types": [self._types[index] for index in indices]}
        vars(self._config).update(values)  # past the check that both always have one length
        setattr(self._owner, self._name, nn.ModuleList(kept))
        for index, layer in enumerate(kept):  # each finds its place in the cache by its number
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    vars(module)["layer_idx"] = index
        return kept


def empty_model(config: Mapping[str, Any], job: Job, precision: Precision) -> Any:
    """The base on the meta device, from the values of a config.json."""
    values = {
        key: _without_positions(value) for key, value in config.items() if key not in NOT_SHAPE
    }
    values = {key: value for key, value in values.items() if "attn_implementation" not in key}
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    with patch.object(AutoConfig, "from_pretrained", lambda **_: made):
        kernel = _attention(job)
    is_scorer = STAGES[job.stage].head == "score"
    if is_scorer:
        made.num_labels = 1
    loader: Any = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    with torch.device("meta"):
        return loader.from_config(
            made,
            dtype=precision.weights,
            attn_implementation=_traced(kernel, job.packing),
            trust_remote_code=False,
        )


def prepare(model: Any, job: Job, precision: Precision) -> Any:
    """The base quantised, with its adapter: as SFTTrainer makes it in the training program."""
    quantisation = _quantisation(job, precision)
    if quantisation is not None:
        kept = ["score"] if STAGES[job.stage].head == "score" else get_keys_to_not_convert(model)
        replace_with_bnb_linear(model, kept, quantisation)
        setattr(model, f"is_loaded_in_{METHODS[job.method].base_bits}bit", True)
        _keep_trainable(model)
    if METHODS[job.method].trains_last_layers:
        _train_last_layers(model, job.num_trainable_layers)
    if METHODS[job.method].trains_adapter:
        settings = adapter_settings(job, model)
        settings.init_lora_weights = (
            True  # every start of an adapter leaves tensors of the same sizes behind
        )
        with (
            dequantised_for_dora(),
            torch.device("meta"),
        ):  # PEFT's own way there loses that two copies are one
            model = get_peft_model(model, settings)
        if dtype := precision.adapters(is_quantised=quantisation is not None):
            cast_adapters(model, dtype)
        if not job.use_dora:
            take_inputs_as_they_are(model)
    if job.gradient_checkpointing:
        checkpoint_every(
            model.get_base_model() if hasattr(model, "get_base_model") else model,
            job.checkpoint_every_n_layers,
        )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if METHODS[job.method].trains_adapter:
            model.enable_input_require_grads()
    return model


def materialise(model: nn.Module, precision: Precision) -> None:
    """Gives every parameter and buffer a storage as loading does, layer by layer; adapters come after the base.

    A quantised layer passes through a copy as loaded. Tied parameters stay one.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    has_adapter = any(not parameter.requires_grad for parameter in model.parameters())
    for is_adapter in (False, True):
        for module in model.modules():
            if isinstance(module, BITSANDBYTES_LAYERS) and not is_adapter:
                copy = torch.empty(module.out_features, module.in_features, dtype=precision.weights)
                _quantise(module)
                del copy
            owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
            for owner in owners:
                for name, old in tuple(owner.items()):
                    if not isinstance(old, Tensor) or hasattr(old, "quant_state"):
                        continue
                    if is_adapter == (has_adapter and old.requires_grad):
                        if id(old) not in made:
                            made[id(old)] = old, _like(old)
                        owner[name] = made[id(old)][1]


@contextmanager
def dequantised_for_dora() -> Iterator[None]:
    """DoRA asks for the weights of quantised layers, and knows those by a class that they do not have here."""
    ask_peft = dequantize_module_weight

    def weight_of(module: Any) -> Tensor:
        weight = module.weight
        if not isinstance(module, BITSANDBYTES_LAYERS):
            return ask_peft(module)
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


def _traced(kernel: str, is_packed: bool) -> str:
    """What stands for an attention kernel: where rows are not joined, `varlen` computes what `causal` does."""
    if kernel == "flex_attention":
        return TRACED_FLEX
    if kernel == "flash_attention_2" or (kernel == "varlen" and is_packed):
        return TRACED_FLASH
    return "causal" if kernel == "varlen" else kernel


@contextmanager
def mask_known(has_padding: bool) -> Iterator[None]:
    """transformers looks at the values of a mask to see whether SDPA needs one; here they are a matter of the job, and
    for `causal` all padding is on the right.

    Source: _ignore_causal_mask_sdpa in transformers/masking_utils.py.
    """

    def is_needless(
        padding_mask: Any, q_length: int, kv_length: int, *offsets_and_window: Any
    ) -> bool:
        window = offsets_and_window[-1]
        return not has_padding and (window is None or kv_length < window)

    def pads_right(asked: Mapping[str, Any]) -> bool:
        return bool(asked["q_length"] == asked["kv_length"])

    with (
        patch("transformers.masking_utils._ignore_causal_mask_sdpa", is_needless),
        patch.object(attention, "_pads_at_most_right", pads_right),
    ):
        yield


def _without_positions(value: Any) -> Any:
    """Rotary settings without the kinds that read the positions in a batch: tables have the same size."""
    if not isinstance(value, dict):
        return value
    return {
        key: "default"
        if key in ("rope_type", "type") and item in ROPE_THAT_READS_POSITIONS
        else _without_positions(item)
        for key, item in value.items()
    }


def _find_layers(model: nn.Module, num_layers: int) -> tuple[nn.Module, str, nn.ModuleList]:
    """Where the decoder layers are: the largest list of as many modules as there are layers."""
    found = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    if not found:
        raise ValueError("its decoder layers are not in one list")
    return max(found, key=lambda item: sum(parameter.numel() for parameter in item[2].parameters()))


def _kind(layer: nn.Module, layer_type: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a layer is: its type in the settings, whether it is recomputed, the shapes of its parameters and which
    train."""
    found = (
        (name, tuple(each.shape), each.requires_grad) for name, each in layer.named_parameters()
    )
    return (*layer_type, getattr(layer, "gradient_checkpointing", False), *found)


def _like(old: Tensor) -> Tensor:
    """A tensor of the same shape with a storage of its own."""
    new = torch.empty(old.shape, dtype=old.dtype)
    return (
        nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    )


def _quantise(module: Any) -> None:
    """The weight of a bitsandbytes layer as it is after loading."""
    numbers = module.in_features * module.out_features
    if isinstance(module, Linear8bitLt):
        weight = torch.empty(module.out_features, module.in_features, dtype=torch.int8)
        module.weight = _parameter(weight, CB=None, SCB=None, quant_state=None)
        module.state.CB, module.state.SCB = module.weight.data, torch.empty(module.out_features)
        module.state.threshold = (
            0.0  # which columns hold outliers is not known; none is the usual case
        )
        return
    statistics = getattr(module.weight, "compress_statistics", True)
    kind = getattr(module.weight, "quant_type", "nf4")
    state = _scales(
        numbers, (module.out_features, module.in_features), kind, statistics, module.compute_dtype
    )
    packed = torch.empty(numbers // 2, 1, dtype=torch.uint8)
    module.weight = _parameter(
        packed, quant_state=state, compress_statistics=statistics, quant_type=kind
    )


def _scales(
    numbers: int, shape: tuple[int, int], kind: str, nested: bool, dtype: torch.dtype
) -> QuantState:
    """The scales of a 4-bit weight: one float32 per 64 numbers; nested, one byte and a float32 per 256 of those."""
    num_scales = -(-numbers // NUMBERS_PER_SCALE)
    settings: dict[str, Any] = {"shape": torch.Size(shape), "dtype": dtype, "code": torch.empty(16)}
    if not nested:
        return QuantState(
            torch.empty(num_scales), blocksize=NUMBERS_PER_SCALE, quant_type=kind, **settings
        )
    outer = QuantState(
        torch.empty(-(-num_scales // SCALES_PER_SCALE)),
        blocksize=256,
        code=torch.empty(256),
        dtype=torch.float32,
    )
    return QuantState(
        torch.empty(num_scales, dtype=torch.uint8),
        blocksize=NUMBERS_PER_SCALE,
        quant_type=kind,
        offset=torch.empty(()),
        state2=outer,
        **settings,
    )


def _parameter(data: Tensor, **attributes: Any) -> nn.Parameter:
    """A frozen parameter with the attributes that bitsandbytes and PEFT read from theirs."""
    parameter = nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter
