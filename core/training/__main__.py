"""The way of a training, top to bottom: job -> rows -> model -> trainer -> steps -> result.

Run `python -m training job.json` in the run folder. Exit codes: 0 finished, 1 failed, 130 stopped, 2 no usable job.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints.folder import Checkpoints, VerifiedCheckpoint
from .checkpoints.identity import check_same, facts_of, keep_smaller_batch
from .contract.failures import Failure, Stopped, TrainingError, UnusableJob, diagnose
from .contract.job import Job
from .contract.status import Progress
from .record.log import kept_short
from .record.run_files import Record, say

if TYPE_CHECKING:
    from .loop.monitor import Watched

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0",  # TRL refuses several GPUs in one process
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows of varying length would fragment fixed segments
    "DISABLE_SAFETENSORS_CONVERSION": "true",  # no weights but the model's own
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""What the libraries read when they are imported, unless the user has set it."""
SAME_SETTING = {"PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF"}
"""The other names of some: torch reads the second where there is no first (c10/cuda/CUDAAllocatorConfig.h)."""
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
MEASURED_STEPS = 3


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Trains what a job file says, in a run folder (here, if none is named). Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = Path.cwd() if folder is None else folder.absolute()
    try:
        fields = _read_fields(folder, arguments)
    except UnusableJob as error:
        print(error, file=sys.stderr)
        return 2
    if _is_finished(folder):
        print(
            "This run is finished. To repeat it, copy job.json, training/ and data/ to another folder and run it there."
        )
        return 0
    for name, value in ENVIRONMENT.items():
        if SAME_SETTING.get(name, name) not in os.environ:
            os.environ.setdefault(name, value)
    try:
        record = Record(folder)
    except OSError as error:
        print(f"{folder} cannot be written to: {error.strerror}", file=sys.stderr)
        return 1
    with closing(record), record.listening(), kept_short(folder / "log.txt"):
        try:
            job = Job.from_json(fields)
            for sentence in Job.differences(fields):
                record.note(sentence)
            train(job, record)
        except Stopped:
            record.may_stop_anywhere = False
            record.update(state="stopped")
            return 130
        except UnusableJob as error:
            record.fail(Failure("bad_job", f"{arguments[0]}: {error}"))
            say(f"{arguments[0]}: {error}", sys.stderr)
            return 2
        except Exception as error:
            record.may_stop_anywhere = False
            failure = diagnose(error, job.model, record.activity or record.status.phase)
            record.fail(failure)
            if not isinstance(error, TrainingError):  # which says it all
                say(traceback.format_exc(), sys.stderr)
            say(failure.sentence, sys.stderr)
            return 1
    return 0


def train(job: Job, record: Record) -> None:
    """The whole training. Raises Stopped once a wish to stop has been fulfilled."""
    record.enter("import")
    from .data.rows import read_rows
    from .loop.meter import Meter, gauge_here
    from .loop.monitor import Watch
    from .loop.samples import answer_all, choose_questions
    from .loop.saver import Saver
    from .model.load import load
    from .record.progress import telling
    from .trainers.builders import BUILDERS

    _quieten_libraries()

    record.enter("data")
    rows = read_rows(
        record.folder, job.dataset, job.eval_dataset, job.eval_fraction, job.seed, stage=job.stage
    )
    record.update(num_train_rows=len(rows.train), num_eval_rows=len(rows.eval or ()))

    record.enter("load")
    checkpoints = Checkpoints(record.folder / "checkpoints")
    job, checkpoint, facts = _start(job, record, checkpoints)
    meter = Meter(gauge_here(), _measured_passes(job))
    meter.enter("load")
    with telling(record):
        loaded = load(job, rows)
    record.update(num_parameters=loaded.model.num_parameters(), **meter.gauge.facts())

    record.enter("data")  # tokenised by the trainer, while the adapter is put on
    saver = Saver(record, checkpoints, facts, job.save_total_limit)
    if checkpoint:
        num_tokens = record.rewind(checkpoint.step, has_all_steps=checkpoint.has_all_steps)
    else:
        num_tokens = record.rewind(None)
    watch = Watch(record, meter, saver, job, num_tokens)
    with telling(record):
        trainer = BUILDERS[job.stage](job, loaded, rows, watch)
    meter.leave()
    record.update(num_trainable_parameters=trainer.count_trainable(), **watch.peaks())

    record.enter("eval")
    questions = choose_questions(rows, loaded.tokenizer, job.num_samples, job.max_length)

    def answer(step: int) -> None:
        answer_all(questions, trainer, loaded.tokenizer, record, step)

    if not record.has_sample(step=0):
        with meter.unmeasured():
            answer(0)

    record.enter("train")
    record.may_stop_anywhere = False
    watch.answer = answer
    _take_steps(trainer, checkpoint)
    if watch.was_stopped:
        raise Stopped

    watch.require_numbers(trainer.model)
    trainer.save_result()
    record.enter("eval")
    answer(trainer.state.global_step)
    record.update(state="finished", step=trainer.state.global_step, result="output")


def _read_fields(folder: Path, arguments: Sequence[str]) -> dict[str, object]:
    if len(arguments) != 1:
        raise UnusableJob("usage: python -m training job.json")
    try:
        fields = json.loads((folder / arguments[0]).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UnusableJob(f"{arguments[0]}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableJob(f"{arguments[0]}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnusableJob(f"{arguments[0]}: holds a {type(fields).__name__}, not an object")
    return fields


def _start(
    job: Job, record: Record, checkpoints: Checkpoints
) -> tuple[Job, VerifiedCheckpoint | None, Mapping[str, Any]]:
    """(the job, the checkpoint to go on from, what the training is). All of it is verified before a library opens any of it.

    Raises TrainingError if the job is no longer the one of the checkpoint.
    """
    record.update(progress=Progress("verifying checkpoints", 0, None, ""))
    checkpoint, skipped = checkpoints.newest()
    for reason in skipped:
        say(f"skipped {reason}")
    if checkpoint:
        job = keep_smaller_batch(job, checkpoint)
    versions = {"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES}
    step = checkpoint.step if checkpoint else None
    record.update(
        versions=versions, skipped_checkpoints=skipped, checkpoint_step=step, progress=None
    )
    facts = facts_of(job, record.folder, record.status.num_train_rows or 0, versions)
    for change in check_same(checkpoint, facts) if checkpoint else ():
        record.note(change)
    return job, checkpoint, facts


def _is_finished(folder: Path) -> bool:
    try:
        state = json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"]
        return bool(state == "finished") and (folder / "output").is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measured_passes(job: Job) -> dict[str, int]:
    """How many passes through each phase have their memory measured; the later ones are all alike."""
    batches = MEASURED_STEPS * job.gradient_accumulation_steps
    once = {"load": 1, "eval": 1, "save": 1}
    grows = dict.fromkeys(("generation", "forward", "backward"), batches)
    return once | grows | {"optimizer_step": MEASURED_STEPS}


def _take_steps(trainer: "Watched", checkpoint: VerifiedCheckpoint | None) -> None:
    """Trains to the end or to a stop, from the newest checkpoint if there is one."""
    if checkpoint is None:
        trainer.train()
    elif checkpoint.has_all_steps:
        trainer.restore(checkpoint)  # the trainer itself would take one step too many
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder))


def _quieten_libraries() -> None:
    """Leaves out what would bury the log: a line for each 8-bit layer and forward pass, a warning of two names."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # of the two names that this setting has, only the old one is known to transformers 5.17 and to TRL
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
