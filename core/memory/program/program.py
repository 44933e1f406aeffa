"""Program: everything that decides the memory of a training program. Input of the simulation.

Contains no formulas. tests/measured extends it to the training loops of others, whose measured
peaks the estimate is tested against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from core.memory.components import Component
from core.memory.program.optimizers import OptimizerMemory
from core.memory.program.quantization import Quantization
from core.models import ModelShape

AttentionKernel = Literal["flash", "efficient", "sdpa", "eager"]
"""flash: keys and values of grouped heads stay compact, no mask. efficient: one key and value per
query head, a mask if needed. sdpa: efficient with a mask, else flash. eager: stores every score."""
Head = Literal["fused", "smoothed", "preference", "comparison", "score"]
"""fused: logits exist in tiles only (TRL). smoothed: the same with smoothed labels. preference,
comparison: loss from all logits of chosen and rejected answers in float32 (TRL's ORPO and CPO;
SimPO). score: one number per sequence."""
When = Literal["before", "after", "generation"]
"""Time of a no-grad forward pass: before or after the trained one, or after the generation."""


@dataclass(frozen=True)
class Lora:
    """LoRA adapter."""

    rank: int
    itemsize: int
    """Bytes per element of its matrices."""
    targets: frozenset[str] | None = None
    """Names of the linear layers with an adapter; None: all of them."""
    dropout: float = 0.0
    use_dora: bool = False
    casts_input: bool = True
    """True if its input is cast to its own precision (PEFT), not left to autocast."""
    experts: tuple[tuple[str, int], ...] = ()
    """(parameter of a layer that is no linear layer, such as all experts in one tensor; rank of
    each of its experts)."""

    def expert_rank(self, parameter: str) -> int:
        """Return the rank that it gives each expert in a parameter of a layer; 0 for none."""
        return dict(self.experts).get(parameter, 0)


@dataclass(frozen=True)
class LayerKind:
    """Facts that make one decoder layer of a model take more memory than another."""

    is_windowed: bool
    """True if it attends within a window shorter than the sequence, so that it needs a mask."""
    has_experts: bool
    is_checkpointed: bool = False
    """True if the backward pass recomputes it."""
    trains: bool = False
    """True if its own weights train."""


@dataclass(frozen=True)
class Generation:
    """Answers that the trained model generates, with a cache of keys and values."""

    batch_size: int
    prompt_tokens: int
    completion_tokens: int
    phase: str = "generation"
    """Phase of a run in which they are written."""
    samples: bool = True
    """False if the likeliest token is always taken, so that no probabilities are computed."""
    keeps_weight_casts: bool = False
    """True if one autocast context is around all passes, so that its copies of weights that train
    stay."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a sequence at the end."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class NoGradForward:
    """Forward pass under torch.no_grad(), in addition to the trained one."""

    program: "Program"
    when: When


@dataclass(frozen=True)
class AuxiliaryModel:
    """Model that stays on the device beside the trained one."""

    component: Component
    program: "Program"
    trains: bool = False
    """True if it trains too, with another loss (the value model of PPO)."""


@dataclass(frozen=True)
class Program:
    """One training program. An itemsize is a number of bytes per element."""

    shape: ModelShape
    batch_size: int
    """Sequences of a micro-batch."""
    sequence_length: int
    """Tokens of each sequence, padding included."""
    optimizer: OptimizerMemory
    evaluation_batch_size: int | None = None
    """Sequences of a batch of an evaluation. None: as many as of a micro-batch."""
    weight_itemsize: int = 2
    """Of the base as it computes, quantized layers excepted."""
    frozen_itemsize: int | None = None
    """Of its frozen parameters as stored, if that is another: divided, they are gathered in 16
    bits."""
    lora: Lora | None = None
    """None: the weights of the base train."""
    upcasts_modules_to_save: bool = False
    """True if copies of modules that train in full are as wide as the adapter."""
    quantization: Quantization | None = None
    upcasts_unquantized: bool = False
    """True if unquantized parameters become float32 (prepare_model_for_kbit_training)."""
    autocast: bool = False
    """True if matmuls run in 16 bits, even if the weights are wider."""
    is_float16: bool = False
    """True if 16 bits mean float16. Its softmax widens by itself; bfloat16 takes a float32 copy."""
    attention: AttentionKernel = "flash"
    has_mask: bool = False
    """True if sequences are padded or packed in a way that attention needs a mask."""
    checkpointing: bool = True
    checkpoint_every_n_layers: int = 1
    """With checkpointing, the first layer and every n-th after it is recomputed."""
    activation_memory_budget: float = 1.0
    """Without checkpointing, share of its saved tensors that a compiled layer keeps at most. It
    recomputes the others (`activation_memory_budget` in torch/_functorch/config.py)."""
    offloads_activations: bool = False
    """True if saved tensors wait in main memory (TRL's activation_offloading)."""
    uses_liger: bool = False
    """True if norms, rotary embedding and MLP are Liger's kernels, which save only their inputs."""
    compiles_layers: bool = False
    """True if torch.compile fuses what is neither matmul nor attention in each layer, and saves
    little of it (torch/_functorch/partitioners.py, tests/memory/test_compiled_layers.py)."""
    num_trainable_layers: int | None = None
    """Without an adapter: number of last layers that train. None: the whole model trains."""
    modules_to_save: frozenset[str] = frozenset()
    """Modules of which a copy trains in full beside the adapter, such as `lm_head` (PEFT)."""
    adds_noise: bool = False
    """True if noise is added to the embeddings while training (NEFTune)."""
    head: Head = "fused"
    scored_tokens: int | None = None
    """Tokens of a sequence that enter the loss; None: all."""
    no_grad_forwards: tuple[NoGradForward, ...] = ()
    auxiliary_models: tuple[AuxiliaryModel, ...] = ()
    generation: Generation | None = None
    checks: Generation | None = None
    """Answers to the tests of suites, written at evaluations."""
    accumulation_steps: int = 1
    workspace_bytes: int = 0
    """cuBLAS workspace of each of the two threads that run matmuls: forward and backward."""
    on_cpu: bool = False
    num_devices: int = 1
    """Devices that train together, each with a batch of its own."""
    is_sharded: bool = False
    """True if weights, gradients and optimizer states are divided among the devices (FSDP2). False
    keeps all of them on each (DDP)."""

    @property
    def num_shards(self) -> int:
        """Parts into which each tensor is divided."""
        if self.is_sharded:
            return self.num_devices
        return 1

    @property
    def is_frozen(self) -> bool:
        """True if nothing trains, as in a reference model."""
        return self.lora is None and self.num_trainable_layers == 0

    @property
    def is_gathered_in_16_bits(self) -> bool:
        """True if divided tensors are gathered in 16 bits, also if they are stored in 32."""
        return self.is_sharded and self.autocast

    @property
    def widens_trained(self) -> bool:
        """True if parts of what trains are stored in float32: under autocast, unless the base is
        quantized (fsdp2_prepare_model in accelerate/utils/fsdp_utils.py). float16 adapters are
        float32 in any case."""
        return self.is_gathered_in_16_bits and (self.quantization is None or self.is_float16)

    @property
    def trained_width(self) -> int:
        """Bytes per element of a gradient: that of an adapter, or of the base."""
        return self.lora.itemsize if self.lora else self.weight_itemsize

    @property
    def stored_itemsize(self) -> int:
        """Of the base's parameters that are neither quantized nor trained in float32."""
        return self.frozen_itemsize or self.weight_itemsize

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.batch_size * self.sequence_length

    @property
    def unquantized_itemsize(self) -> int:
        """Of the base's parameters that are not quantized."""
        if self.upcasts_unquantized and not self.is_gathered_in_16_bits:
            return 4
        return self.weight_itemsize

    @property
    def residual_itemsize(self) -> int:
        """Of the hidden states between layers: that of the embedding, or of its trained copy."""
        has_copy = self.lora is not None and self.trains_embedding
        if has_copy:
            return self.trained_itemsize
        return self.unquantized_itemsize

    @property
    def head_itemsize(self) -> int:
        """Of the head's weight, or of its trained copy."""
        has_copy = self.lora is not None and self.trains_head
        is_read_as_stored = self.is_gathered_in_16_bits and self.lora and not self.is_tied
        if has_copy and is_read_as_stored and self.widens_trained and not self.calls_head:
            return 4
        if has_copy:
            return self.trained_itemsize
        if is_read_as_stored:
            return 4 if self.upcasts_unquantized else self.stored_itemsize
        return self.unquantized_itemsize

    @property
    def calls_head(self) -> bool:
        """True if the head is called like a layer; other losses read its weight."""
        return self.head not in ("fused", "smoothed")

    @property
    def compute_itemsize(self) -> int:
        """Of the results of matmuls."""
        if self.autocast:
            return 2
        return self.residual_itemsize

    @property
    def trained_itemsize(self) -> int:
        """Of a module that trains in full: as loaded, or as wide as the adapter beside it."""
        if self.lora and (self.quantization or self.upcasts_modules_to_save):
            return self.lora.itemsize
        return self.weight_itemsize

    @property
    def num_scored_tokens(self) -> int:
        """Tokens of a micro-batch that enter the loss."""
        scored = self.sequence_length if self.scored_tokens is None else self.scored_tokens
        return self.batch_size * scored

    @property
    def recomputes_partially(self) -> bool:
        """True if layers keep some of their saved tensors and recompute the others."""
        return self.activation_memory_budget < 1 and not self.checkpointing

    @property
    def trains_embedding(self) -> bool:
        """True if the embedding, or a copy of it, trains."""
        if self.lora is None:
            return self.num_trainable_layers is None
        names = {"embed_tokens", "lm_head"} if self.is_tied else {"embed_tokens"}
        return bool(self.modules_to_save & names)

    @property
    def requires_input_gradients(self) -> bool:
        """True if the output of a frozen embedding still requires a gradient.

        Checkpointing and compiling need it for adapters (enable_input_require_grads in
        transformers): otherwise nothing would require a gradient at the first layer.
        """
        recomputes_or_compiles = self.checkpointing or self.compiles_layers
        return self.lora is not None and recomputes_or_compiles and not self.trains_embedding

    @property
    def trains_last_norm(self) -> bool:
        """True if the norm after the last layer trains."""
        return self.lora is None or "norm" in self.modules_to_save

    @property
    def trains_head(self) -> bool:
        """True if the head, or a copy of it, trains. A tied head trains with the embedding."""
        if self.head == "score":
            return True
        if self.is_tied:
            return self.trains_embedding
        return self.lora is None or "lm_head" in self.modules_to_save

    @property
    def is_tied(self) -> bool:
        """True if embedding and head share a weight, or its copy (PEFT's ensure_weight_tying)."""
        return self.shape.tie_word_embeddings and self.head != "score"

    @cached_property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of each linear layer of a decoder layer, by its own name."""
        sizes = {}
        for layer in layer_by_mlp(self.shape).values():
            for tensor in self.shape.layer_parameters(layer):
                if tensor.is_linear:
                    num_out, num_in = tensor.shape
                    sizes[tensor.module] = (num_out, num_in)
        return sizes

    def has_adapter(self, module: str) -> bool:
        """Return True if LoRA targets this linear layer."""
        return self.lora is not None and (self.lora.targets is None or module in self.lora.targets)

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Return the kind of each decoder layer."""
        shape = self.shape
        window = shape.sliding_window or self.sequence_length + 1
        num_trained = self.num_trainable_layers
        if self.lora is not None:
            num_trained = 0
        elif num_trained is None:
            num_trained = shape.num_hidden_layers
        kinds = []
        for layer, layer_type in enumerate(shape.layer_types):
            is_chosen = self.checkpointing and layer % self.checkpoint_every_n_layers == 0
            kind = LayerKind(
                is_windowed=layer_type == "sliding_attention" and self.sequence_length >= window,
                has_experts=shape.has_experts(layer),
                is_checkpointed=is_chosen or self.recomputes_partially,
                trains=layer >= shape.num_hidden_layers - num_trained,
            )
            kinds.append(kind)
        return tuple(kinds)


def layer_by_mlp(shape: ModelShape) -> Mapping[bool, int]:
    """Return the index of one layer with a dense MLP (False) and of one with experts (True)."""
    return {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}
