"""STAGES: training objectives, one frozen record of facts each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from .methods import METHODS, Defaults, new_defaults

DEFAULT_STAGE = "sft"
# fmt: off
Loss = Literal[
    "likelihood", "pairwise score", "preference", "desirability", "odds ratio", "contrast",
    "advantage",
]
# fmt: on


@dataclass(frozen=True)
class Stage:
    """Training objective, named as the TRL trainer that implements it."""

    id: str
    title: str
    help: str
    dataset_types: tuple[str, ...]
    """Dataset types it accepts, as TRL names them."""
    loss: Loss
    """Loss function of its trainer."""
    usual_for: tuple[str, ...] = ()
    """Dataset types that most people would train with this stage."""
    fields: tuple[str, ...] = ()
    """Job fields that this stage reads and some others do not."""
    loss_types: tuple[str, ...] = ()
    """Choices of `loss_type`; the first is the default. Empty: there is only one loss."""
    defaults: Defaults = field(default_factory=new_defaults)
    """Defaults of job fields that differ under this stage."""
    full_defaults: Defaults = field(default_factory=new_defaults)
    """Further defaults where the model's own weights train, not an adapter."""
    reference: Literal["none", "adapter off or copy"] = "none"
    """Reference model: the model before the training. It is the same model with its adapter off, or
    else a copy, unless precompute_ref_log_probs asks it before the training. Online stages need it
    only if beta > 0."""
    sequences_per_row: int = 1
    """Sequences per row of a batch that go through the model."""
    extra_pass: Literal["before", "generation"] | None = None
    """Extra forward pass of the model without a graph: of KTO on mismatched pairs before the
    forward pass (_compute_kl_logps in kto_trainer.py), of RLOO on the answers it generated
    (rloo_trainer.py)."""
    forward_only_sequences: int = 0
    """Of sequences_per_row, those without a backward pass: KTO's mismatched answer."""
    min_batch_size: int = 1
    """Smallest per_device_train_batch_size: KTO takes its mismatched answer from another row."""
    head: Literal["fused", "logits", "score"] = "fused"
    """Output layer: TRL's fused one, which never builds all logits; the model's own, which does; or
    a score per sequence."""
    supports_packing: bool = False
    compares_neighbours: bool = False
    """The loss compares a row with others of its batch, so batches cannot be sorted by length."""
    generates: bool = False
    """The model answers prompts while it trains."""
    takes_pairs_as_text: bool = False
    """The trainer reads preferences as text and tokenizes prompt and answers in its own way."""
    learns_chosen_prompt: bool = False
    """The loss also covers the chosen text as in supervised fine-tuning, prompt included."""
    learns_every_token: bool = False
    """Rows are plain text: the loss covers all of it."""
    needs_beta: bool = False
    """With beta 0 the loss would be the same for every answer."""
    trains_value_model: bool = False
    """A second model learns to predict rewards; a third one scores the answers."""
    is_trainable: bool = True
    """False: estimated only."""

    def evaluation_rows(self, batch_size: int, num_generations: int) -> int:
        """Return per_device_eval_batch_size of a job with this train batch.

        A stage that generates takes all answers to one prompt. One that compares the rows of a
        batch takes always as many, because its loss depends on how many they are.
        """
        if self.generates and self.is_trainable:
            return num_generations
        if self.compares_neighbours:
            return self.min_batch_size
        return batch_size


SFT_TERM = "sft"
"""TRL's name of the second term of DPO's loss sigmoid+sft: cross-entropy on the chosen answers."""
PREFERENCE_FIELDS = ("loss_type", "beta", "precompute_ref_log_probs", "activation_offloading")
LIKELIHOOD_FIELDS = ("neftune_noise_alpha", "label_smoothing_factor")
# fmt: off
GENERATION_FIELDS = (
    "beta", "num_generations", "max_completion_length", "temperature", "reward_functions",
    "reward_pattern", "reward_model",
)
# fmt: on


_STAGES = (
    Stage(
        id="sft",
        title="Supervised fine-tuning",
        help="Learns to answer as the examples do.",
        dataset_types=("language modeling", "prompt-completion"),
        loss="likelihood",
        usual_for=("language modeling", "prompt-completion"),
        fields=("packing", "assistant_only_loss", "activation_offloading", *LIKELIHOOD_FIELDS),
        supports_packing=True,
    ),
    Stage(
        id="cpt",
        title="Continued pretraining",
        help="Learns every token of whole texts: a language, a subject, a style.",
        dataset_types=("language modeling",),
        loss="likelihood",
        fields=("packing", "activation_offloading", *LIKELIHOOD_FIELDS),
        defaults=new_defaults(
            packing=True,
            assistant_only_loss=False,
            num_train_epochs=1.0,
            learning_rate=1e-4,
        ),
        full_defaults=new_defaults(learning_rate=1e-5),
        supports_packing=True,
        learns_every_token=True,
    ),
    Stage(
        id="reward",
        title="Reward model",
        help="Learns to score answers, from pairs of a better and a worse one.",
        dataset_types=("preference",),
        loss="pairwise score",
        fields=("activation_offloading",),
        defaults=new_defaults(num_train_epochs=1.0, learning_rate=1e-4),
        full_defaults=new_defaults(learning_rate=1e-5),
        sequences_per_row=2,
        head="score",
    ),
    Stage(
        id="dpo",
        title="DPO",
        help="Prefers the better of two answers and stays close to the original model.",
        dataset_types=("preference",),
        loss="preference",
        usual_for=("preference",),
        fields=PREFERENCE_FIELDS,
        loss_types=("sigmoid", "ipo", "hinge", "apo_zero", "sigmoid+sft"),
        defaults=new_defaults(num_train_epochs=1.0, learning_rate=5e-6),
        full_defaults=new_defaults(learning_rate=5e-7),
        reference="adapter off or copy",
        sequences_per_row=2,
        needs_beta=True,
    ),
    Stage(
        id="kto",
        title="KTO",
        help="Learns from single answers that were marked as wanted or not wanted.",
        dataset_types=("unpaired preference", "preference"),
        loss="desirability",
        usual_for=("unpaired preference",),
        extra_pass="before",
        fields=tuple(name for name in PREFERENCE_FIELDS if name != "loss_type"),
        defaults=new_defaults(num_train_epochs=1.0, learning_rate=5e-6),
        full_defaults=new_defaults(learning_rate=5e-7),
        reference="adapter off or copy",
        sequences_per_row=2,
        forward_only_sequences=1,
        min_batch_size=2,
        compares_neighbours=True,
        needs_beta=True,
    ),
    Stage(
        id="orpo",
        title="ORPO",
        help="Learns the better answer and avoids the worse one; needs no fine-tuning before.",
        dataset_types=("preference",),
        loss="odds ratio",
        takes_pairs_as_text=True,
        learns_chosen_prompt=True,
        fields=("beta",),
        defaults=new_defaults(num_train_epochs=1.0, learning_rate=8e-5),
        full_defaults=new_defaults(learning_rate=8e-6),
        sequences_per_row=2,
        head="logits",
    ),
    Stage(
        id="cpo",
        title="CPO and SimPO",
        help="Prefers the better of two answers, without a reference model; or SimPO.",
        dataset_types=("preference",),
        loss="contrast",
        takes_pairs_as_text=True,
        fields=("beta", "loss_type"),
        loss_types=("sigmoid", "simpo", "hinge", "ipo"),
        defaults=new_defaults(num_train_epochs=1.0, learning_rate=1e-5),
        full_defaults=new_defaults(learning_rate=1e-6),
        sequences_per_row=2,
        head="logits",
        needs_beta=True,
    ),
    Stage(
        id="grpo",
        title="GRPO",
        help="Generates several answers to each prompt and learns from the best rewarded.",
        dataset_types=("prompt-only", "prompt-completion"),
        loss="advantage",
        usual_for=("prompt-only",),
        fields=GENERATION_FIELDS,
        defaults=new_defaults(
            num_train_epochs=1.0, learning_rate=1e-5, beta=0.0, eval_fraction=0.0
        ),
        full_defaults=new_defaults(learning_rate=1e-6),
        reference="adapter off or copy",
        generates=True,
    ),
    Stage(
        id="rloo",
        title="RLOO",
        help="Like GRPO, but compares an answer with the mean of the others.",
        dataset_types=("prompt-only", "prompt-completion"),
        loss="advantage",
        extra_pass="generation",
        fields=GENERATION_FIELDS,
        defaults=new_defaults(
            num_train_epochs=1.0, learning_rate=1e-5, beta=0.05, eval_fraction=0.0
        ),
        full_defaults=new_defaults(learning_rate=1e-6),
        reference="adapter off or copy",
        generates=True,
    ),
    Stage(
        id="ppo",
        title="PPO",
        help="Estimated only: TRL no longer trains it. GRPO and RLOO need less memory.",
        dataset_types=("prompt-only", "prompt-completion"),
        loss="advantage",
        fields=GENERATION_FIELDS,
        defaults=new_defaults(
            num_train_epochs=1.0, learning_rate=1e-5, beta=0.05, eval_fraction=0.0
        ),
        full_defaults=new_defaults(learning_rate=1e-6),
        reference="adapter off or copy",
        generates=True,
        trains_value_model=True,
        is_trainable=False,
    ),
)
STAGES: Mapping[str, Stage] = MappingProxyType({stage.id: stage for stage in _STAGES})


def defaults_of(stage: str, method: str) -> Defaults:
    """Return the job fields whose default differs under a stage and a method; the stage wins."""
    chosen = STAGES[stage]
    full_defaults = new_defaults() if METHODS[method].trains_adapter else chosen.full_defaults
    return MappingProxyType({**METHODS[method].defaults, **chosen.defaults, **full_defaults})


def unused_fields(stage: str, method: str) -> frozenset[str]:
    """Return the job fields that another stage or method reads and this one does not."""
    of_stages = {name for each in STAGES.values() for name in each.fields}
    of_methods = {name for each in METHODS.values() for name in each.fields}
    unused = (of_stages - set(STAGES[stage].fields)) | (of_methods - set(METHODS[method].fields))
    return frozenset(unused)
