"""The way of a training, top to bottom: job -> rows -> model -> trainer -> steps -> result.

Run `python -m training job.json` in the run folder. Exit codes: 0 finished, 1 failed, 130 stopped, 2 no usable job.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .failure import Stopped, TrainingError, UnusableJob, explain
from .record import Checkpoint, Record

if TYPE_CHECKING:
    from .watch import Watched

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0",  # TRL refuses several GPUs in one process
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows of varying length would fragment fixed segments
    "DISABLE_SAFETENSORS_CONVERSION": "true",  # no weights but the model's own
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""What the libraries read when they are imported, unless the user has set it."""
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
MEASURED_STEPS = 3


class Job(SimpleNamespace):
    """The fields of job.json, checked by whoever wrote it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnusableJob(f"field {name} is missing")


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Trains what a job file says, in a run folder (here, if none is named). Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = Path.cwd() if folder is None else folder.absolute()
    try:
        job = _read_job(folder, arguments)
    except UnusableJob as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    record = Record(folder)
    with record.listening():
        try:
            train(job, record)
        except Stopped:
            record.update(state="stopped")
            return 130
        except UnusableJob as error:
            print(f"{arguments[0]}: {error}", file=sys.stderr)
            record.update(state="failed", error=f"{arguments[0]}: {error}")
            return 2
        except Exception as error:
            record.may_stop_anywhere = False
            reason = explain(error, vars(job).get("model", "the model"), record.activity or record.status.phase)
            if not isinstance(error, TrainingError):  # which says it all
                traceback.print_exc()
            print(reason, file=sys.stderr)
            record.update(state="failed", error=reason)
            return 1
    return 0


def train(job: Job, record: Record) -> None:
    """The whole training. Raises Stopped once a wish to stop has been fulfilled."""
    record.enter("import")
    from .data import read_rows
    from .load import load
    from .meter import Meter, gauge_here
    from .samples import answer_all, choose_questions
    from .stages import STAGES
    from .watch import Watch

    _quieten_libraries()
    if job.stage not in STAGES:
        raise UnusableJob(f"stage {job.stage!r} is not one of {', '.join(STAGES)}")

    record.enter("data")
    rows = read_rows(record.folder, job.dataset, job.eval_dataset, job.eval_fraction, job.seed)

    record.enter("load")
    measured_batches = MEASURED_STEPS * job.gradient_accumulation_steps
    passes = {"load": 1, "eval": 1, "save": 1, "optimizer_step": MEASURED_STEPS}
    meter = Meter(gauge_here(), passes | {"forward": measured_batches, "backward": measured_batches})
    meter.enter("load")
    loaded = load(job, rows)
    record.update(
        device=meter.gauge.name,
        device_capacity_bytes=meter.gauge.capacity_bytes,
        baseline_bytes=meter.gauge.baseline_bytes,
        num_train_rows=len(rows.train),
        num_eval_rows=len(rows.eval or ()),
        num_parameters=loaded.model.num_parameters(),
        versions={"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES},
    )

    record.enter("data")  # tokenised by the trainer, while the adapter is put on
    checkpoint = record.newest_checkpoint()
    num_tokens = record.rewind(checkpoint.step if checkpoint else 0)
    watch = Watch(record, meter, num_tokens)
    trainer = STAGES[job.stage](job, loaded, rows, watch)
    meter.leave()
    trainable = (parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    record.update(num_trainable_parameters=sum(trainable), **watch.peaks())

    record.enter("eval")
    questions = choose_questions(rows, loaded.tokenizer, job.num_samples, job.max_length)
    if not record.has_sample(step=0):
        with meter.unmeasured():
            answer_all(questions, trainer.model, loaded.tokenizer, record, step=0)

    record.enter("train")
    record.may_stop_anywhere = False
    _take_steps(trainer, checkpoint)
    if watch.was_stopped:
        raise Stopped

    with watch.aside("save"):
        trainer.save_model(str(record.folder / "output"))
    record.enter("eval")
    answer_all(questions, trainer.model, loaded.tokenizer, record, step=trainer.state.global_step)
    record.update(state="finished", step=trainer.state.global_step, result="output")


def _read_job(folder: Path, arguments: Sequence[str]) -> Job:
    if len(arguments) != 1:
        raise UnusableJob("usage: python -m training job.json")
    try:
        fields = json.loads((folder / arguments[0]).read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableJob(f"{arguments[0]}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnusableJob(f"{arguments[0]}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnusableJob(f"{arguments[0]}: holds a {type(fields).__name__}, not an object")
    return Job(**fields)


def _take_steps(trainer: "Watched", checkpoint: Checkpoint | None) -> None:
    """Trains to the end or to a stop, from the newest checkpoint if there is one."""
    if checkpoint is None:
        trainer.train()
    elif checkpoint.step < checkpoint.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder))
    else:
        trainer.restore(checkpoint)  # the trainer itself would take one step too many


def _quieten_libraries() -> None:
    """Leaves out what would bury the log: bars outside a terminal, a line for each 8-bit layer and forward pass."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # of the two names that this setting has, only the old one is known to transformers 5.17 and to TRL
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
    if not sys.stderr.isatty():
        import datasets
        import transformers

        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
