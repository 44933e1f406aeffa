"""The trace: how much memory a training will take, found by taking one step of it on tensors without data.

Run `python -m core.workers.trace`: reads a request a line, {"job": ..., "config": ..., "card": ...} in JSON, and
answers in kind. It needs no GPU, downloads nothing and reads no weights.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.job import Problem
from core.training.contract.job import Job
from core.training.contract.stages import STAGES
from core.workers.child import serve

MAX_REASON_CHARACTERS = 300


def main() -> None:
    """Answer every request, with progress, until there are no more."""
    _go_offline()
    serve(lambda request, report: trace(**request, on_progress=report), _explain)


def trace(
    job: Mapping[str, Any],
    config: Mapping[str, Any],
    card: Mapping[str, Any],
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """The allocated peak of each phase of a job, on a card, for a model of this config.json.

    `log` and `sizes` are the allocations and releases of the deepest model that was traced, as Ledger keeps them;
    `peak_operations` names the operation at the peak of each of its segments.
    """
    began = time.monotonic()
    from .allocation_log import Ledger
    from .cuda import Card
    from .depth import extended
    from .loss import with_head
    from .model import DecoderLayers, empty_model, precision_on, prepare
    from .optimizers import paged_bytes
    from .step import Run

    asked = Job.from_json({"dataset": "", **job})  # the rows do not matter
    on_card = Card(tuple(card["compute_capability"]), card["supports_bf16"])
    precision = precision_on(on_card, asked)
    base = empty_model(config, asked, precision)
    num_parameters = base.num_parameters()
    layers = DecoderLayers(base)
    model = with_head(prepare(base, asked, precision), STAGES[asked.stage])
    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    depths: list[int] = []

    def play(indices: Sequence[int]) -> Ledger:
        depths.append(len(indices))
        ledger = Run(model, asked, on_card, precision).play(
            dict(zip(indices, layers.keep(indices), strict=True))
        )
        on_progress(min(1.0, len(depths) / (1 + len(set(layers.kinds)))))
        return ledger

    try:
        phases, ledger = extended(layers.kinds, play)
    except RuntimeError:  # layers that lean on one another, such as those that share keys and values, cannot be left out
        phases, ledger = extended(range(len(layers.kinds)), play)
    return {
        "phases": phases,
        "peak_allocated_bytes": max(phases.values()),
        "num_parameters": num_parameters,
        "num_trainable_parameters": sum(trainable),
        "paged_bytes": 0
        if on_card.is_cpu
        else sum(paged_bytes(asked.optim, numbers) for numbers in trainable),
        "log": ledger.log,
        "sizes": ledger.sizes,
        "peak_operations": {segment: peak.operation for segment, peak in ledger.peaks.items()},
        "depths": depths,
        "seconds": round(time.monotonic() - began, 2),
    }


def _explain(error: Exception, _request: Mapping[str, Any]) -> Problem:
    """Return the first line of an error, which an unknown architecture may raise anywhere."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_REASON_CHARACTERS]
    fix = "choose a Llama, Mistral, Qwen or similar model"
    return Problem("model", reason, fix)


def _go_offline() -> None:
    """Allow no network and no GPU, and silence warnings."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "peft", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
