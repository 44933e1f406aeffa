"""Models of some families small enough for any test, the same four texts in several kinds of batches, and what a model
learns from them.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
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
"""Those that only eager and FlexAttention can compute."""
LENGTHS = (9, 6, 1, 14)
"""Of four texts: the first two are as long together as the last two."""
Batches = list[dict[str, Any]]
"""Each with the inputs of a model and the labels of its tokens, -100 where none is to be learnt."""
Learnt = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Losses of the tokens, gradients of the weights."""


def model_of(family: str, attn_implementation: str = "sdpa") -> Any:
    """A model of a family, always with the same weights."""
    attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY | (FAMILIES | CAPPED)[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).train()


def adapted(model: Any) -> Any:
    """With adapters that do something from the first step on, in float32."""
    torch.manual_seed(0)
    return get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )


def sequences() -> list[torch.Tensor]:
    """The token ids of four texts."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 96, (1, length), generator=generator) for length in LENGTHS]


def learn(model: Any, batches: Batches) -> Learnt:
    """The losses of all tokens that have a token before them, in their order, and the gradients of their sum."""
    model.zero_grad()
    losses = []
    for batch in batches:
        logits = model(**batch["inputs"], use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[labels >= 0], labels[labels >= 0], reduction="none"
            )
        )
    torch.cat(losses).sum().backward()
    trained = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return torch.cat(losses).detach(), trained


def kept_bytes(model: Any) -> int:
    """What a forward pass keeps for the backward pass, each tensor once, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**packed()[0]["inputs"], use_cache=False)
    return sum(num_bytes for storage, num_bytes in kept.items() if storage not in weights)


def apart() -> Batches:
    return [{"inputs": {"input_ids": ids}, "labels": ids} for ids in sequences()]


def packed(num_rows: int = 1) -> Batches:
    """All in rows of the same length without padding, as TRL packs them: only the positions tell them apart."""
    ids = torch.cat(sequences(), dim=1).view(num_rows, -1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).view(num_rows, -1)
    inputs = {"input_ids": ids, "position_ids": positions}
    return [{"inputs": inputs, "labels": ids.masked_fill(positions == 0, -100)}]


def padded(side: str = "right") -> Batches:
    """Rows as long as the longest, with the mask that says where the text is."""
    pads = [
        (0, max(LENGTHS) - length) if side == "right" else (max(LENGTHS) - length, 0)
        for length in LENGTHS
    ]
    ids = torch.cat(
        [torch.nn.functional.pad(text, pad) for text, pad in zip(sequences(), pads, strict=True)]
    )
    mask = (ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return [
        {
            "inputs": inputs,
            "labels": ids.masked_fill(mask == 0, -100).masked_fill(positions == 0, -100),
        }
    ]


def assert_same(learnt: Learnt, expected: Learnt, tolerance: float = 1e-5) -> None:
    """The same losses and gradients, but for what rounding leaves of each tensor's largest number."""
    assert learnt[1].keys() == expected[1].keys()
    for name, wanted in {"losses": expected[0], **expected[1]}.items():
        found = learnt[0] if name == "losses" else learnt[1][name]
        assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), name
