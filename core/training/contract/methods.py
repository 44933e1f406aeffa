"""METHODS: which weights train and how the base is stored, one frozen record of facts each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Defaults = Mapping[str, object]


def new_defaults(**values: object) -> Defaults:
    """Return JobSpec field -> default value as a read-only mapping."""
    return MappingProxyType(values)


@dataclass(frozen=True)
class Method:
    """Choice of the weights that train, and of how the base is stored."""

    id: str
    title: str
    help: str
    trains_adapter: bool
    """True: the base is frozen and a LoRA adapter trains. False: the model's own weights train."""
    base_bits: int
    """Bits per weight of the frozen linear layers: 16 (as loaded), 8 (LLM.int8), 4 (NF4 / FP4)."""
    fields: tuple[str, ...] = ()
    """Job fields that this method reads and some others do not."""
    defaults: Defaults = field(default_factory=new_defaults)
    """Defaults of job fields that differ under this method."""
    trains_last_layers: bool = False
    """True: only the last `num_trainable_layers` decoder layers, the final norm and the output head
    train. A head that is tied to the embeddings stays frozen with them."""


# fmt: off
ADAPTER_FIELDS = (
    "lora_r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "use_dora",
    "use_rslora", "modules_to_save", "loraplus_lr_ratio",
)
# fmt: on


_METHODS = (
    Method(
        id="full",
        title="Full",
        help="Trains every weight: the most capacity and by far the most memory.",
        trains_adapter=False,
        base_bits=16,
        defaults=new_defaults(learning_rate=2e-5),
    ),
    Method(
        id="freeze",
        title="Last layers",
        help="Trains the last layers of the model as they are and leaves the others frozen.",
        trains_adapter=False,
        base_bits=16,
        fields=("num_trainable_layers",),
        defaults=new_defaults(learning_rate=2e-5),
        trains_last_layers=True,
    ),
    Method(
        id="lora",
        title="LoRA",
        help="Freezes the model and trains small low-rank adapters beside its linear layers.",
        trains_adapter=True,
        base_bits=16,
        fields=ADAPTER_FIELDS,
    ),
    Method(
        id="qlora",
        title="QLoRA",
        help="LoRA over a base stored in 4 bits: the least memory, a little slower.",
        trains_adapter=True,
        base_bits=4,
        fields=(*ADAPTER_FIELDS, "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
        defaults=new_defaults(optim="paged_adamw_8bit"),
    ),
    Method(
        id="lora-8bit",
        title="LoRA, 8-bit base",
        help="LoRA over a base stored in 8 bits: between LoRA and QLoRA.",
        trains_adapter=True,
        base_bits=8,
        fields=ADAPTER_FIELDS,
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.id: method for method in _METHODS})
