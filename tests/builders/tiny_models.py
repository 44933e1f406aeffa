"""Tiny models of several families, and four texts in several kinds of batches.

`learn` returns the losses and gradients of a model on them, which tests compare.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, pad
from transformers import AutoConfig, AutoModelForCausalLM

from core.training.model import attention

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "llama4_text": {"attention_chunk_size": 5, "intermediate_size_mlp": 48, "num_local_experts": 2},
}
CAPPED: dict[str, dict[str, Any]] = {"gemma2": {"sliding_window": 5, "attn_logit_softcapping": 2.0}}
"""Families that only eager attention and FlexAttention can compute."""
LENGTHS = (9, 6, 1, 14)
"""Tokens of four texts. The first two have as many together as the last two."""
Batches = list[dict[str, Any]]
"""Batches with the `inputs` of a model and the `labels` of its tokens, -100 for no loss."""
Learnt = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Losses of the tokens, gradients of the weights."""


def model_of(family: str, attn_implementation: str = "sdpa") -> Any:
    """Return a model of a family, always with the same weights."""
    attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY | (FAMILIES | CAPPED)[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).train()


def adapted(model: Any) -> Any:
    """Return a model with LoRA adapters in float32 that change its output from the start."""
    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )


def sequences() -> list[torch.Tensor]:
    """Return the token ids of four texts."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 96, (1, length), generator=generator) for length in LENGTHS]


def learn(model: Any, batches: Batches) -> Learnt:
    """Return the loss of each token after the first of a text, and the gradients of their sum."""
    model.zero_grad()
    losses = []
    for batch in batches:
        logits = model(**batch["inputs"], use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        counts = labels >= 0
        losses.append(cross_entropy(logits[counts], labels[counts], reduction="none"))
    torch.cat(losses).sum().backward()
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            gradients[name] = weight.grad
    return torch.cat(losses).detach(), gradients


def kept_bytes(model: Any) -> int:
    """Return the bytes that a forward pass saves for the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**packed()[0]["inputs"], use_cache=False)
    return sum(num_bytes for storage, num_bytes in kept.items() if storage not in weights)


def apart() -> Batches:
    """Return a batch for each text."""
    return [{"inputs": {"input_ids": ids}, "labels": ids} for ids in sequences()]


def packed(num_rows: int = 1) -> Batches:
    """Return the texts in rows of equal length without padding, as TRL packs them.

    Only the position ids say where a text begins.
    """
    ids = torch.cat(sequences(), dim=1).view(num_rows, -1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).view(num_rows, -1)
    inputs = {"input_ids": ids, "position_ids": positions}
    return [{"inputs": inputs, "labels": ids.masked_fill(positions == 0, -100)}]


def padded(side: str = "right") -> Batches:
    """Return the texts in rows that are padded to the longest, with a mask of the padding."""
    rows = []
    for text in sequences():
        num_pads = max(LENGTHS) - text.shape[1]
        rows.append(pad(text, (0, num_pads) if side == "right" else (num_pads, 0)))
    ids = torch.cat(rows)
    mask = (ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    labels = ids.masked_fill(mask == 0, -100).masked_fill(positions == 0, -100)
    return [{"inputs": inputs, "labels": labels}]


def assert_same(learnt: Learnt, expected: Learnt, tolerance: float = 1e-5) -> None:
    """Assert that losses and gradients are equal within `tolerance` of each tensor's maximum."""
    assert learnt[1].keys() == expected[1].keys()
    for name, wanted in {"losses": expected[0], **expected[1]}.items():
        found = learnt[0] if name == "losses" else learnt[1][name]
        assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), name
