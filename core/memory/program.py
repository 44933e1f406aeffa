"""What a training program does, as far as its memory goes: the one input of the simulation.

Describes our own training program (see `job_program`) and other people's loops alike; holds no formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from core.memory.optimizers import Optimizer
from core.memory.quantization import Quantization
from core.shapes import ModelShape

Attention = Literal["flash", "efficient", "sdpa", "eager"]
"""flash: keys and values stay compact, no mask. efficient: one key and value per query head, a mask if need be.
sdpa: efficient where there is a mask, else flash. eager: every score is written out."""
Head = Literal["fused", "native", "sixteen_bit"]
"""fused: logits exist in tiles only (TRL). native: the model computes the loss from all logits, in float32 (`labels=`).
sixteen_bit: from all logits, as they are (litgpt)."""


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


@dataclass(frozen=True)
class LayerKind:
    """What makes one decoder layer of a model cost more than another."""

    is_windowed: bool
    """Attends within a window that is shorter than the row, so that it needs a mask."""
    has_experts: bool


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
    head: Head = "fused"
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
        """Bytes of each number of the hidden states between layers: as wide as the embedding."""
        return self.rest_bytes

    @property
    def compute_bytes(self) -> int:
        """Bytes of each number that a product returns."""
        return 2 if self.autocast else self.residual_bytes

    @property
    def trains_base(self) -> bool:
        """True for full fine-tuning."""
        return self.lora is None

    @cached_property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of each linear layer, by its own name."""
        shape = self.shape
        layers = {shape.has_experts(layer): layer for layer in range(shape.num_hidden_layers)}.values()
        tensors = (tensor for layer in layers for tensor in shape.layer_tensors(layer) if tensor.is_linear)
        return {tensor.module: (tensor.shape[0], tensor.shape[1]) for tensor in tensors}

    def has_adapter(self, module: str) -> bool:
        """True if LoRA targets this linear layer."""
        return self.lora is not None and (self.lora.targets is None or module in self.lora.targets)

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each decoder layer."""
        shape = self.shape
        window = shape.sliding_window or self.row_tokens + 1
        return tuple(
            LayerKind(layer_type == "sliding_attention" and self.row_tokens >= window, shape.has_experts(layer))
            for layer, layer_type in enumerate(shape.layer_types)
        )
