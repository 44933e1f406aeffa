"""Training loops of others, as programs to simulate: another loss, outputs that are kept."""

from dataclasses import dataclass
from typing import Literal

from core.memory.ops import ForwardPass, all_logits, cross_entropy
from core.memory.program import OPTIMIZERS, LayerKind, Program
from core.memory.program.optimizers import OptimizerMemory
from core.memory.simulator import Tensor
from core.memory.step import LayerState, Simulation

MIB = 2**20
LITGPT_CHUNK_TOKENS = 128


@dataclass(frozen=True)
class OtherProgram(Program):
    """Program of a loop with PyTorch's AdamW and a loss from all logits."""

    optimizer: OptimizerMemory = OPTIMIZERS["adamw_torch"]
    workspace_bytes: int = 8 * MIB + MIB // 8
    loss: Literal["transformers", "litgpt"] = "transformers"
    """transformers: from float32 logits (`labels=`). litgpt: from 16-bit logits in chunks."""
    keeps_outputs: Literal["never", "until_step_ends", "until_next_forward"] = "never"
    """Time for which a variable holds the outputs of the model, logits included."""
    uses_cache: bool = False
    """True if the forward pass also fills a cache of keys and values (`use_cache=True`)."""
    kept_token_bytes: int = 0
    """Bytes of each token that a checkpointed layer keeps beside its input."""
    zeroes_gradients_first: bool = False
    """True if zero_grad() stands at the beginning of a step instead of its end."""


class OtherLoop(Simulation):
    """Simulation of an OtherProgram."""

    program: OtherProgram

    def __init__(self, program: OtherProgram) -> None:
        super().__init__(program, program.layer_kinds())
        self._outputs: list[Tensor] = []
        """Value of the loop's variable `outputs`."""
        self._cache: list[Tensor] = []

    def step(self) -> None:
        """Take one optimizer step."""
        program, graph = self.program, self.graph
        if program.zeroes_gradients_first:
            graph.clear_gradients()
        for _ in range(min(program.accumulation_steps, 2)):
            self.micro_step()
        self.memory.enter("optimizer_step")
        self.allocate_states_once()
        self.allocate_optimizer_temporaries()
        if program.keeps_outputs == "until_step_ends":
            self._assign_outputs([])
        if not program.zeroes_gradients_first:
            graph.clear_gradients()

    def layer_forward(self, fwd: ForwardPass, x: Tensor, kind: LayerKind, name: str) -> LayerState:
        """Run one layer; cache its keys and values, and keep what checkpointing leaves it."""
        state = super().layer_forward(fwd, x, kind, name)
        program = self.program
        if program.kept_token_bytes and kind.is_checkpointed:
            kept_bytes = program.kept_token_bytes * program.num_tokens
            state.kept_partially.append(self.memory.allocate(kept_bytes, 1, "activations"))
        if program.uses_cache and not kind.is_checkpointed:
            keys = program.num_tokens * program.shape.num_key_value_heads * program.shape.head_dim
            cached = self.memory.allocate(2 * keys, program.compute_itemsize, "activations")
            self._cache.append(cached)
        return state

    def run_head(self, fwd: ForwardPass, hidden: Tensor) -> Tensor:
        """Return the loss, and keep the logits as an output of the model.

        transformers: the log-softmax of a float32 copy of the logits is saved. The backward pass
        adds two gradients of its size: 12 bytes per logit at the peak (ForCausalLMLoss in
        transformers/loss/loss_utils.py). litgpt: cross-entropy of 16-bit logits in chunks.
        """
        graph = self.graph
        logits = all_logits(fwd, hidden)
        output = graph.retain(logits)
        if self.program.loss == "litgpt":
            chunk_numel = LITGPT_CHUNK_TOKENS * self.program.shape.vocab_size
            loss = cross_entropy(fwd, logits, [chunk_numel * logits.itemsize])
        else:
            if logits.itemsize != 4:
                logits = graph.record(logits, itemsize=4, component="logits", consumes=True)
            loss = cross_entropy(fwd, logits)
            if self.program.autocast:  # accelerate's convert_outputs_to_fp32
                wide_output = self.memory.allocate(output.numel, 4, "logits")
                graph.release(output)
                output = wide_output
        graph.release(hidden)
        self._assign_outputs([*self._cache, output])
        self._cache = []
        return loss

    def _assign_outputs(self, outputs: list[Tensor]) -> None:
        """Assign `outputs = model(...)`: the variable lets go of the previous outputs."""
        if self.program.keeps_outputs == "never":
            self.memory.release(*outputs)
            return
        self.memory.release(*self._outputs)
        self._outputs = outputs
