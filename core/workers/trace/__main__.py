"""Find the memory of a training by tracing one step of it on tensors without data.

Run `python -m core.workers.trace`: each request is {"job": ..., "config": ..., "card": ...,
"evaluation_rows": ...} in JSON, see trace.py for the answer. Needs no GPU, downloads nothing and
reads no weights.
"""

import logging
import os
import traceback
import warnings
from typing import Any

from core.job import Problem
from core.training.contract.failures import UNKNOWN, diagnose
from core.training.contract.job import Job
from core.workers.child import Reporter, Request, serve


def main() -> None:
    """Answer every request, with progress, until there are no more."""
    _go_offline()
    serve(_answer, explain)


def _answer(request: Request, report: Reporter) -> dict[str, Any]:
    from .cuda import Card
    from .trace import trace

    # The rows of a job do not matter here, so requests name none.
    job = Job.from_json({"dataset": "", **request["job"]})
    card = request["card"]
    traced_card = Card(tuple(card["compute_capability"]), card["supports_bf16"])
    return trace(job, request["config"], traced_card, request["evaluation_rows"], report)


def explain(error: Exception, request: Request) -> Problem:
    """Return what an error means, which an unknown architecture may raise anywhere."""
    traceback.print_exception(error)
    model_type = request["config"].get("model_type")
    failure = diagnose(error, f"a model of the type {model_type}", "forward")
    if failure.cause == "bad_target_modules":
        problem = "target_modules names layers that this model does not have, or cannot adapt"
        return Problem("target_modules", problem, "choose all-linear, or names of its layers")
    reason = failure.sentence.rstrip(".")
    if failure.cause == UNKNOWN:
        reason = f"models of the type {model_type} cannot take a step without their weights"
        num_devices = request["job"].get("num_devices", 1)
        if num_devices > 1:
            reason += f", as one of {num_devices} devices"
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
