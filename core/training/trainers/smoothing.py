"""Label smoothing for the fused head, which never builds the logits of all words.

The smoothed loss is the cross-entropy against a label that leaves the share e to all V words
alike. With the logits W h and the right word y it differs from the plain one by

    e (z_y - mean of all z) = e h (W_y - mean of the rows of W)

which needs no logits: only the last hidden states and two rows of the head's weight per token.
"""

from typing import Any

import torch

from ..contract.failures import TrainingError
from ..loop.losses import IGNORED_LABEL
from ..loop.trainer import MonitoredTrainer


class SmoothsLabels(MonitoredTrainer):
    """Mixin that smooths the labels of the training loss. An evaluation measures the plain loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        base = _base_of(self.model)
        share = self.monitor.job.label_smoothing_factor

        def smoothed(**arguments: Any) -> Any:
            kept: list[torch.Tensor] = []
            hook = base.base_model.register_forward_hook(
                lambda _module, _inputs, outputs: kept.append(outputs.last_hidden_state)
            )
            try:
                outputs = model(**arguments)
            finally:
                hook.remove()
            more = advantage(kept[0], arguments["labels"], base)
            outputs.log_probs = outputs.log_probs - share * more
            return outputs

        return super().compute_loss(smoothed, inputs, *args, **kwargs)


def advantage(hidden: torch.Tensor, labels: torch.Tensor, model: Any) -> torch.Tensor:
    """Return by how much the logit of each next word [B, T-1] is above the mean of all words.

    0 where no word counts. `hidden` [B, T, h] are the last hidden states, labels [B, T].
    """
    head = model.get_output_embeddings()
    labels = labels[:, 1:].to(hidden.device)
    words = labels.clamp(min=0)
    rows = head.weight[words].float() - head.weight.mean(dim=0, dtype=torch.float32)
    more = (hidden[:, :-1].float() * rows).sum(dim=-1)
    if head.bias is not None:
        more = more + head.bias[words].float() - head.bias.float().mean()
    more = more * _logit_scale(model)
    return more.masked_fill(labels == IGNORED_LABEL, 0.0)


def require_linear_head(model: Any) -> None:
    """Raise TrainingError for a model that caps its logits: their mean is then not that of W h."""
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise TrainingError(
            "label_smoothing_factor: this model caps its logits, so they cannot be smoothed: "
            "give 0, or choose another model."
        )


def _logit_scale(model: Any) -> float:
    """Return what the model multiplies its logits by."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    if scale is None and getattr(config, "logits_scaling", None):
        scale = 1 / config.logits_scaling
    return 1.0 if scale is None else float(scale)


def _base_of(model: Any) -> Any:
    """Return the model without the wrapper of its adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
