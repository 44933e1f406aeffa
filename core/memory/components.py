"""Components of GPU memory: one list for simulator, estimate and page. Computes nothing."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Component = Literal[
    "weights",
    "quantization_state",
    "adapters",
    "gradients",
    "optimizer_states",
    "activations",
    "logits",
    "reference_model",
    "value_model",
    "reward_model",
    "generation_cache",
    "temporary",
    "cuda_context",
    "fragmentation",
]
"""Purpose of a piece of GPU memory. The simulator labels tensors with all but the last two."""
COMPONENTS: Mapping[Component, str] = MappingProxyType(
    {
        "weights": "The model's parameters, as they are loaded.",
        "quantization_state": "Scales and code books that decode 4- or 8-bit weights.",
        "adapters": "The small matrices that LoRA trains.",
        "gradients": "One per trained parameter, from the backward pass to the optimizer step.",
        "optimizer_states": "The optimizer's moments of every trained parameter, from the first "
        "step on. Paged ones may move to main memory.",
        "activations": "Intermediate results, from the forward to the backward pass. They grow "
        "with batch size and length.",
        "logits": "Scores of every word of the vocabulary while the loss is computed, in tiles.",
        "reference_model": "A frozen copy of the model before training, to compare answers with.",
        "value_model": "A second model that learns to predict rewards. Tailor only estimates it.",
        "reward_model": "The model that scores generated answers, taken for as large as yours.",
        "generation_cache": "Keys and values of all answers while they are generated.",
        "temporary": "Buffers of one operation: gradients on their way back, dequantized weights, "
        "cuBLAS workspaces.",
        "cuda_context": "Memory that the CUDA driver takes for itself in every process; without a "
        "GPU, Python and its libraries.",
        "fragmentation": "Gaps between tensors that PyTorch reserves but cannot use.",
    }
)
"""Component -> one sentence about it, in the order in which the page shows them."""
