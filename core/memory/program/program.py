"""What a training program does, as far as its memory goes: the one input of the simulation.

Describes our own training program (see `job_program`) and other people's loops alike; holds no formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from core.memory.program.optimizers import Optimizer
from core.memory.program.quantization import Quantization
from core.memory.simulator.device_memory import Kind
from core.models import ModelShape

Attention = Literal["flash", "efficient", "sdpa", "eager"]
"""flash: keys and values stay compact, no mask. efficient: one key and value per query head, a mask if need be.
sdpa: efficient where there is a mask, else flash. eager: every score is written out."""
Head = Literal["fused", "native", "sixteen_bit", "preference", "comparison", "score"]
"""fused: logits exist in tiles only (TRL). native: the model computes the loss from all logits, in float32 (`labels=`).
sixteen_bit: from all logits, as they are (litgpt). preference: from all logits of chosen and rejected answers, in
float32 (TRL's ORPO and CPO). score: one number per sequence, no logits."""
Moment = Literal["before", "after", "generation"]
"""When a pass without a graph happens: before or after the forward pass that trains, or once answers are drawn."""


@dataclass(frozen=True)
class Lora:
    """The adapter."""

    rank: int
    number_bytes: int
    """Bytes of each trained number."""
    targets: frozenset[str] | None = None
    """Names of the linear layers that get one; None is all of them."""
    dropout: float = 0.0
    use_dora: bool = False
    widens_input: bool = True
    """Takes its input in its own precision, as PEFT has it, rather than as it is under autocast."""


@dataclass(frozen=True)
class LayerKind:
    """What makes one decoder layer of a model cost more than another."""

    is_windowed: bool
    """Attends within a window that is shorter than the row, so that it needs a mask."""
    has_experts: bool
    is_checkpointed: bool = False
    """Recomputed in the backward pass."""
    trains: bool = False
    """Its own weights train."""


@dataclass(frozen=True)
class Generation:
    """Answers drawn from the model that trains, with a cache of keys and values."""

    rows: int
    """Sequences at once."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Pass:
    """A forward pass without a graph, beside the one that trains."""

    program: "Program"
    moment: Moment


@dataclass(frozen=True)
class Companion:
    """A model that is kept beside the one that trains."""

    kind: Kind
    program: "Program"
    trains: bool = False
    """It has a loss of its own, and trains in the same way (the value model of PPO)."""


@dataclass(frozen=True)
class Program:
    """One training program."""

    shape: ModelShape
    rows: int
    """Rows of a micro-batch."""
    row_tokens: int
    """Tokens of each, padding included."""
    optimizer: Optimizer
    weight_bytes: int = 2
    """Of each number of the base as loaded; quantised layers apart."""
    lora: Lora | None = None
    """None trains every weight."""
    widens_copies: bool = False
    """Copies of modules that train whole are as wide as the adapter, though the base is not quantised."""
    quantization: Quantization | None = None
    upcasts_rest: bool = False
    """prepare_model_for_kbit_training: what is not quantised becomes float32."""
    autocast: bool = False
    """Products run in 16 bits, whatever the weights are."""
    is_float16: bool = False
    """16-bit numbers are float16, whose softmax widens by itself; that of bfloat16 takes a float32 copy."""
    attention: Attention = "flash"
    has_mask: bool = False
    """Rows differ in length, or several share one, so that attention needs a mask."""
    checkpointing: bool = True
    checkpoint_every: int = 1
    """With checkpointing, one layer of this many is recomputed: the first, and then every so many."""
    kept_share: float = 1.0
    """Without checkpointing, a layer keeps at most this share of what it saves besides its input; the rest is computed
    again (`activation_memory_budget` in torch/_functorch/config.py)."""
    offloads_activations: bool = False
    """Saved tensors wait in main memory (TRL's activation_offloading)."""
    uses_liger: bool = False
    """Norms, rotary embedding and MLP are Liger's kernels, which keep their inputs only."""
    compiles_layers: bool = False
    """Each is compiled: what is no product and no attention is fused, and little of it is kept (sources and evidence:
    torch/_functorch/partitioners.py, tests/test_compiled_layers.py)."""
    trained_layers: int | None = None
    """Without an adapter: only the last so many layers train, the last norm, and a head of its own. None: all."""
    saved_modules: frozenset[str] = frozenset()
    """Beside an adapter: modules of which a copy trains whole, such as `embed_tokens` and `lm_head`."""
    head: Head = "fused"
    scored_tokens: int | None = None
    """Tokens of a row that the loss looks at; None is all of them."""
    passes: tuple[Pass, ...] = ()
    companions: tuple[Companion, ...] = ()
    generation: Generation | None = None
    keeps_outputs: Literal["never", "until_step_ends", "until_next_forward"] = "never"
    """How long the program holds the outputs of the model, the logits among them (native head)."""
    uses_cache: bool = False
    """The forward pass fills a cache of keys and values (`use_cache=True`)."""
    accumulation_steps: int = 1
    clears_gradients_first: bool = False
    """Gradients live until the next step begins, rather than until this one ends."""
    workspace_bytes: int = 0
    """cuBLAS workspace of each of the two threads that multiply: forward and backward."""
    expandable_segments: bool = True
    on_cpu: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.row_tokens

    @property
    def rest_bytes(self) -> int:
        """Bytes of each number of the base that is not quantised."""
        return 4 if self.upcasts_rest else self.weight_bytes

    @property
    def residual_bytes(self) -> int:
        """Bytes of each number of the hidden states between layers: as wide as the embedding, or the copy of it."""
        return self.whole_module_bytes if self.lora and self.trains_embedding else self.rest_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of each number of the head's weight, or of the copy of it that trains."""
        return self.whole_module_bytes if self.lora and self.trains_head else self.rest_bytes

    @property
    def compute_bytes(self) -> int:
        """Bytes of each number that a product returns."""
        return 2 if self.autocast else self.residual_bytes

    @property
    def num_scored_tokens(self) -> int:
        """Tokens of a micro-batch that the loss looks at."""
        return self.rows * (self.row_tokens if self.scored_tokens is None else self.scored_tokens)

    @property
    def fuses_layers(self) -> bool:
        """True if a norm within a layer is one kernel."""
        return self.uses_liger or self.compiles_layers

    @property
    def recomputes_in_part(self) -> bool:
        """True if layers keep some of what they save besides their input, and compute the rest again."""
        return self.kept_share < 1 and not self.checkpointing

    @property
    def trains_embedding(self) -> bool:
        """True if the embedding, or a copy of it, trains."""
        if self.lora is not None:
            return bool(
                self.saved_modules
                & ({"embed_tokens", "lm_head"} if self.is_tied else {"embed_tokens"})
            )
        return self.trained_layers is None

    @property
    def asks_for_input_gradients(self) -> bool:
        """True if frozen embeddings are asked for a gradient all the same (enable_input_require_grads in transformers),
        as checkpointing and compiling do for adapters."""
        return (
            self.lora is not None
            and (self.checkpointing or self.compiles_layers)
            and not self.trains_embedding
        )

    @property
    def trains_last_norm(self) -> bool:
        """True if the norm behind the last layer trains."""
        return self.lora is None or "norm" in self.saved_modules

    @property
    def trains_head(self) -> bool:
        """True if the head, or a copy of it, trains. One that is the embedding's too does so with it."""
        if self.head == "score" or self.is_tied:
            return self.head == "score" or self.trains_embedding
        return self.lora is None or "lm_head" in self.saved_modules

    @property
    def is_tied(self) -> bool:
        """True if embedding and head are one tensor, as are then their copies (PEFT's ensure_weight_tying)."""
        return self.shape.tie_word_embeddings and self.head != "score"

    @property
    def whole_module_bytes(self) -> int:
        """Bytes of each number of a module that trains whole: as loaded, or as wide as an adapter's."""
        is_as_adapter = self.quantization or self.widens_copies
        return self.lora.number_bytes if self.lora and is_as_adapter else self.weight_bytes

    @cached_property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of each linear layer, by its own name."""
        shape = self.shape
        layers = {
            shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)
        }.values()
        tensors = (
            tensor for layer in layers for tensor in shape.layer_tensors(layer) if tensor.is_linear
        )
        return {tensor.module: (tensor.shape[0], tensor.shape[1]) for tensor in tensors}

    def has_adapter(self, module: str) -> bool:
        """True if LoRA targets this linear layer."""
        return self.lora is not None and (self.lora.targets is None or module in self.lora.targets)

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each decoder layer."""
        shape = self.shape
        window = shape.sliding_window or self.row_tokens + 1
        trained = (
            0
            if self.lora
            else shape.num_hidden_layers
            if self.trained_layers is None
            else self.trained_layers
        )
        return tuple(
            LayerKind(
                is_windowed=layer_type == "sliding_attention" and self.row_tokens >= window,
                has_experts=shape.has_experts(layer),
                is_checkpointed=self.recomputes_in_part
                or (self.checkpointing and layer % self.checkpoint_every == 0),
                trains=layer >= shape.num_hidden_layers - trained,
            )
            for layer, layer_type in enumerate(shape.layer_types)
        )
