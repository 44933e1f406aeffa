"""The tables STAGES and METHODS: what can be trained, and which weights train and how they are stored.

A row is a frozen record of facts; everything that varies by stage or method reads it from here. Holds no behaviour.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Stage:
    """One training objective, named as the TRL trainer that implements it."""

    id: str
    title: str
    help: str
    dataset_types: tuple[str, ...]
    """Dataset types it accepts, as TRL names them."""


@dataclass(frozen=True)
class Method:
    """Which weights train, and how the base weights are stored meanwhile."""

    id: str
    title: str
    help: str
    trains_adapter: bool
    """True: the base is frozen and a LoRA adapter trains. False: every weight trains."""
    base_bits: int
    """Bits per weight of the frozen linear layers: 16 (as loaded), 8 (LLM.int8) or 4 (NF4 / FP4)."""
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """JobSpec defaults that differ from the field's own under this method."""


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        stage.id: stage
        for stage in (
            Stage(
                id="sft",
                title="Supervised fine-tuning",
                help="Learns to answer as the examples do.",
                dataset_types=("language modeling", "prompt-completion"),
            ),
        )
    }
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.id: method
        for method in (
            Method(
                id="full",
                title="Full",
                help="Trains every weight: the most capacity and by far the most memory.",
                trains_adapter=False,
                base_bits=16,
                defaults=MappingProxyType({"learning_rate": 2e-5}),
            ),
            Method(
                id="lora",
                title="LoRA",
                help="Freezes the model and trains small low-rank adapters beside its linear layers.",
                trains_adapter=True,
                base_bits=16,
            ),
            Method(
                id="qlora",
                title="QLoRA",
                help="LoRA over a base stored in 4 bits: the least memory, a little slower.",
                trains_adapter=True,
                base_bits=4,
                defaults=MappingProxyType({"optim": "paged_adamw_8bit"}),
            ),
            Method(
                id="lora-8bit",
                title="LoRA, 8-bit base",
                help="LoRA over a base stored in 8 bits: between LoRA and QLoRA.",
                trains_adapter=True,
                base_bits=8,
            ),
        )
    }
)
