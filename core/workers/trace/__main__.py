"""Find the memory of a training by tracing one step of it on tensors without data.

Run `python -m core.workers.trace`: each request is {"job": ..., "config": ..., "card": ...,
"evaluation_rows": ...} in JSON, see trace.py for the answer. Needs no GPU, downloads nothing and
reads no weights.
"""

import logging
import os
import warnings
from typing import Any

from core.job import Problem
from core.training.contract.job import Job
from core.workers.child import Reporter, Request, serve

MAX_REASON_CHARACTERS = 300


def main() -> None:
    """Answer every request, with progress, until there are no more."""
    _go_offline()
    serve(_answer, _explain)


def _answer(request: Request, report: Reporter) -> dict[str, Any]:
    from .cuda import Card
    from .trace import trace

    # The rows of a job do not matter here, so requests name none.
    job = Job.from_json({"dataset": "", **request["job"]})
    card = request["card"]
    traced_card = Card(tuple(card["compute_capability"]), card["supports_bf16"])
    return trace(job, request["config"], traced_card, request["evaluation_rows"], report)


def _explain(error: Exception, _request: Request) -> Problem:
    """Return the first line of an error, which an unknown architecture may raise anywhere."""
    if "Target modules" in str(error):  # PEFT's, with a list of Python
        problem = "target_modules names no layer of this model"
        return Problem("target_modules", problem, "choose all-linear, or names of its layers")
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_REASON_CHARACTERS]
    return Problem("model", reason, "choose a Llama, Mistral, Qwen or similar model")


def _go_offline() -> None:
    """Allow no network and no GPU, and silence warnings. Must run before torch is imported."""
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
