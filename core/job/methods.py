"""The tables STAGES, METHODS and EXTRA_OPTIMIZERS: what can be trained, which weights train and how they are stored.

A row is a frozen record of facts; everything that varies by stage or method reads it from here. What cannot be combined
stands in core/refusals.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Defaults = Mapping[str, object]


def _defaults(**values: object) -> Defaults:
    return MappingProxyType(values)


@dataclass(frozen=True)
class Stage:
    """One training objective, named as the TRL trainer that implements it."""

    id: str
    title: str
    help: str
    dataset_types: tuple[str, ...]
    """Dataset types it accepts, as TRL names them."""
    fields: tuple[str, ...] = ()
    """JobSpec fields that not every stage reads, and this one does."""
    loss_types: tuple[str, ...] = ()
    """What `loss_type` may be beside `default`; the first is what `default` means. Empty: there is one form only."""
    defaults: Defaults = field(default_factory=_defaults)
    """JobSpec defaults that differ from the field's own under this stage."""
    full_defaults: Defaults = field(default_factory=_defaults)
    """Those that differ again where the model's own weights train, not an adapter."""
    reference: Literal["none", "adapter off or copy"] = "none"
    """Whether the answers of the model as it was are compared with. An adapter is switched off for them; the model's
    own weights are kept twice, unless precompute_ref_log_probs asks beforehand. grpo and rloo need it only if beta > 0.
    """
    sequences_per_row: int = 1
    """Sequences that a row of a batch sends through the model at once."""
    head: Literal["fused", "logits", "score"] = "fused"
    """The last layer: TRL's, which never builds all logits; the model's own, which does; one number per sequence."""
    supports_packing: bool = False
    supports_eval: bool = True
    compares_neighbours: bool = False
    """A row is held against its neighbours: batches stay as they were drawn, whatever the lengths in them."""
    generates: bool = False
    """The model answers prompts while it trains."""
    is_trainable: bool = True
    """False: estimated only."""


@dataclass(frozen=True)
class Method:
    """Which weights train, and how the base weights are stored meanwhile."""

    id: str
    title: str
    help: str
    trains_adapter: bool
    """True: the base is frozen and a LoRA adapter trains. False: weights of the model itself train."""
    base_bits: int
    """Bits per weight of the frozen linear layers: 16 (as loaded), 8 (LLM.int8) or 4 (NF4 / FP4)."""
    defaults: Defaults = field(default_factory=_defaults)
    """JobSpec defaults that differ from the field's own under this method."""
    trains_last_layers: bool = False
    """True: of the model's own weights only the last `num_trainable_layers` decoder layers, the final norm and the
    output head train; a head that is tied to the embedding stays frozen with it."""


@dataclass(frozen=True)
class ExtraOptimizer:
    """An optimizer of Transformers that needs a package which Tailor does not bring."""

    optim: str
    package: str
    """What to install."""
    module: str
    """What Python calls it."""
    is_low_rank: bool = False
    """Projects the gradients of whole matrices to a low rank: nothing for an adapter, which has a low rank itself."""


PREFERENCE_FIELDS = ("loss_type", "beta", "precompute_ref_log_probs", "activation_offloading")
GENERATION_FIELDS = (
    "beta",
    "num_generations",
    "max_completion_length",
    "temperature",
    "reward_functions",
    "reward_pattern",
    "reward_model",
)


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        stage.id: stage
        for stage in (
            Stage(
                id="sft",
                title="Supervised fine-tuning",
                help="Learns to answer as the examples do.",
                dataset_types=("language modeling", "prompt-completion"),
                fields=("packing", "assistant_only_loss", "activation_offloading"),
                supports_packing=True,
            ),
            Stage(
                id="cpt",
                title="Continued pretraining",
                help="Reads whole texts and learns every token of them: a language, a field, a style.",
                dataset_types=("language modeling",),
                fields=("packing", "activation_offloading"),
                defaults=_defaults(packing=True, assistant_only_loss=False, num_train_epochs=1.0, learning_rate=1e-4),
                full_defaults=_defaults(learning_rate=1e-5),
                supports_packing=True,
            ),
            Stage(
                id="reward",
                title="Reward model",
                help="Learns to score answers, from pairs of a better and a worse one.",
                dataset_types=("preference",),
                fields=("activation_offloading",),
                defaults=_defaults(num_train_epochs=1.0, learning_rate=1e-4),
                full_defaults=_defaults(learning_rate=1e-5),
                sequences_per_row=2,
                head="score",
            ),
            Stage(
                id="dpo",
                title="DPO",
                help="Prefers the better of two answers, without going far from the model it began as.",
                dataset_types=("preference",),
                fields=PREFERENCE_FIELDS,
                loss_types=("sigmoid", "ipo", "hinge", "apo_zero", "sigmoid+sft"),
                defaults=_defaults(num_train_epochs=1.0, learning_rate=5e-6),
                full_defaults=_defaults(learning_rate=5e-7),
                reference="adapter off or copy",
                sequences_per_row=2,
            ),
            Stage(
                id="kto",
                title="KTO",
                help="Learns from single answers that were marked as wanted or not wanted.",
                dataset_types=("unpaired preference", "preference"),
                fields=tuple(name for name in PREFERENCE_FIELDS if name != "loss_type"),
                defaults=_defaults(num_train_epochs=1.0, learning_rate=5e-6),
                full_defaults=_defaults(learning_rate=5e-7),
                reference="adapter off or copy",
                sequences_per_row=2,
                compares_neighbours=True,
            ),
            Stage(
                id="orpo",
                title="ORPO",
                help="Learns the better answer and away from the worse one at once; needs no fine-tuning before it.",
                dataset_types=("preference",),
                fields=("beta",),
                defaults=_defaults(num_train_epochs=1.0, learning_rate=8e-5),
                full_defaults=_defaults(learning_rate=8e-6),
                sequences_per_row=2,
                head="logits",
            ),
            Stage(
                id="cpo",
                title="CPO and SimPO",
                help="Prefers the better of two answers without a reference model; loss_type simpo is SimPO.",
                dataset_types=("preference",),
                fields=("beta", "loss_type"),
                loss_types=("sigmoid", "simpo", "hinge", "ipo"),
                defaults=_defaults(num_train_epochs=1.0, learning_rate=1e-5),
                full_defaults=_defaults(learning_rate=1e-6),
                sequences_per_row=2,
                head="logits",
            ),
            Stage(
                id="grpo",
                title="GRPO",
                help="Draws several answers to each prompt and learns from those that are rewarded above the others.",
                dataset_types=("prompt-only", "prompt-completion"),
                fields=GENERATION_FIELDS,
                defaults=_defaults(num_train_epochs=1.0, learning_rate=1e-5, beta=0.0, eval_fraction=0.0),
                full_defaults=_defaults(learning_rate=1e-6),
                reference="adapter off or copy",
                generates=True,
            ),
            Stage(
                id="rloo",
                title="RLOO",
                help="As GRPO, but an answer is held against the mean of the others, and strays at a price.",
                dataset_types=("prompt-only", "prompt-completion"),
                fields=GENERATION_FIELDS,
                defaults=_defaults(num_train_epochs=1.0, learning_rate=1e-5, beta=0.05, eval_fraction=0.0),
                full_defaults=_defaults(learning_rate=1e-6),
                reference="adapter off or copy",
                generates=True,
            ),
            Stage(
                id="ppo",
                title="PPO",
                help="Estimated only: TRL trains it no more. GRPO and RLOO do the same with less memory.",
                dataset_types=("prompt-only", "prompt-completion"),
                fields=GENERATION_FIELDS,
                defaults=_defaults(num_train_epochs=1.0, learning_rate=1e-5, beta=0.05, eval_fraction=0.0),
                full_defaults=_defaults(learning_rate=1e-6),
                reference="adapter off or copy",
                generates=True,
                is_trainable=False,
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
                defaults=_defaults(learning_rate=2e-5),
            ),
            Method(
                id="freeze",
                title="Last layers",
                help="Trains the last layers of the model as they are and leaves the others frozen.",
                trains_adapter=False,
                base_bits=16,
                defaults=_defaults(learning_rate=2e-5),
                trains_last_layers=True,
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
                defaults=_defaults(optim="paged_adamw_8bit"),
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

EXTRA_OPTIMIZERS: Mapping[str, ExtraOptimizer] = MappingProxyType(
    {
        extra.optim: extra
        for extra in (
            ExtraOptimizer("galore_adamw", "galore-torch", "galore_torch", is_low_rank=True),
            ExtraOptimizer("apollo_adamw", "apollo-torch", "apollo_torch", is_low_rank=True),
            ExtraOptimizer("schedule_free_adamw", "schedulefree", "schedulefree"),
            ExtraOptimizer("adamw_torch_4bit", "torchao", "torchao"),
        )
    }
)


def defaults_of(stage: str, method: str) -> Defaults:
    """The JobSpec defaults that differ from the fields' own under a stage and a method; the stage's go first."""
    chosen = STAGES[stage]
    full_defaults = _defaults() if METHODS[method].trains_adapter else chosen.full_defaults
    return MappingProxyType({**METHODS[method].defaults, **chosen.defaults, **full_defaults})
