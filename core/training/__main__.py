"""Run one training job, top to bottom: job -> rows -> model -> trainer -> steps -> result.

Run `python -m training job.json` in the run folder. Exit codes: 0 finished, 1 failed, 130 stopped,
2 unusable job.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import (
    CheckpointFolder,
    VerifiedCheckpoint,
    allowed_changes,
    facts_of,
    keep_rows_of_step,
    keep_smaller_batch,
    require_same_division,
)
from .contract.failures import Failure, Stopped, TrainingError, UnusableJob, diagnose
from .contract.job import Job, absolute_places
from .contract.status import Progress
from .data.hub import stay_offline_without_answer
from .ranks import (
    Rank,
    Standstill,
    devices_asked,
    first_cause,
    guarded,
    leader,
    report_failure,
    this_rank,
)
from .record import QuietRunFiles, RunFiles, limit_log_size, say

if TYPE_CHECKING:
    from .loop.trainer import MonitoredTrainer

FINISHED, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130
"""Exit codes."""
ENVIRONMENT = {
    # TRL refuses several GPUs in one process.
    "CUDA_VISIBLE_DEVICES": "0",
    # Fixed segments would be fragmented by rows of varying length.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # Use no weights but the model's own: no conversion by the Hub.
    "DISABLE_SAFETENSORS_CONVERSION": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Variables that the libraries read when they are imported. What the user has set stays."""
NEW_NAMES = {"PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF"}
"""Variable -> its newer name, which torch reads only if the old one is not set
(c10/cuda/CUDAAllocatorConfig.h)."""
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
)
MEASURED_STEPS = 3


@dataclass(frozen=True)
class Start:
    """Starting point of a training: its job, a checkpoint to resume from, and its facts."""

    job: Job
    checkpoint: VerifiedCheckpoint | None
    """Checkpoint to resume from; None starts at step 0."""
    facts: Mapping[str, Any]
    """What the training is, for its checkpoints."""


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Run the job of a job file in a run folder (by default here). Return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = Path.cwd() if folder is None else folder.absolute()
    try:
        fields = _read_fields(folder, arguments)
    except UnusableJob as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    if _is_finished(folder):
        print(
            "This run is finished. To repeat it, copy job.json, training/ and data/ to another "
            "folder and run it there."
        )
        return FINISHED
    rank = this_rank()
    num_devices = devices_asked(fields)
    if rank.is_alone and num_devices > 1:
        return leader.lead(folder, arguments, num_devices)
    _set_environment(rank)
    try:
        run_files = (RunFiles if rank.is_first else QuietRunFiles)(folder, rank)
    except OSError as error:
        print(f"{folder} cannot be written to: {error.strerror}", file=sys.stderr)
        return FAILED
    stop_handling = run_files.stop.handle_signals(run_files.acknowledge_stop)
    log = limit_log_size(folder / "log.txt") if rank.is_first else nullcontext()
    standstill = Standstill(run_files.marks)
    at_work = rank.at_work(folder, standstill)
    with closing(run_files), stop_handling, log, at_work, guarded(folder, rank, standstill):
        try:
            job = replace(Job.from_json(fields), num_devices=rank.count)
            for sentence in Job.differences(fields):
                run_files.note(sentence)
            train(job, run_files)
        except Stopped:
            run_files.update(state="stopped")
            return STOPPED
        except UnusableJob as error:
            run_files.fail(Failure("bad_job", f"{arguments[0]}: {error}"))
            say(f"{arguments[0]}: {error}", sys.stderr)
            return UNUSABLE
        except Exception as error:
            _report_failure(error, job, run_files)
            return FAILED
    return FINISHED


def train(job: Job, run_files: RunFiles) -> None:
    """Run the whole training. Raises Stopped after a stop request, TrainingError, and any error of
    the libraries."""
    run_files.enter("import")
    if not Path(job.model).is_dir():
        stay_offline_without_answer()
    # Importing torch and the libraries on top of it takes seconds, so the status says it first.
    from .data.model_rows import rows_for_model
    from .data.rows import read_rows
    from .loop.check_steps import StepChecks
    from .loop.meter import MemoryMeter, gauge_of_device
    from .loop.monitor import MonitorCallback
    from .loop.samples import answer_all, choose_questions
    from .loop.saver import Saver
    from .model.load import load_model
    from .ranks import agreement
    from .record.progress import tqdm_to_record
    from .trainers.builders import build_trainer

    _silence_libraries()
    agreement.connect(run_files.rank, is_sharded=job.is_sharded)

    run_files.enter("data")
    rows = read_rows(
        run_files.folder,
        job.dataset,
        job.eval_dataset,
        job.eval_fraction,
        job.seed,
        stage=job.stage,
    )
    run_files.update(num_train_rows=len(rows.train), num_eval_rows=len(rows.eval or ()))
    if rows.leak and rows.leak not in run_files.status.notes:  # of an earlier attempt
        run_files.note(rows.leak)

    run_files.enter("load")
    checkpoints = CheckpointFolder(run_files.folder / "checkpoints")
    start = _find_start(job, run_files, checkpoints)
    job = start.job
    meter = MemoryMeter(gauge_of_device(), _measured_passes(job))
    meter.enter("load")
    with tqdm_to_record(run_files):
        tokenizer, rows = rows_for_model(job, rows)
        loaded = load_model(job, tokenizer)
    run_files.update(num_parameters=loaded.model.num_parameters(), **meter.gauge.facts())

    run_files.enter("data")  # the trainer tokenizes the rows, and adds the adapter
    num_tokens = _truncate_run_files(run_files, start.checkpoint)
    saver = Saver(run_files, checkpoints, start.facts, job.save_total_limit)
    monitor = MonitorCallback(run_files, meter, saver, job, num_tokens)
    monitor.resume_best()
    with tqdm_to_record(run_files):
        trainer = build_trainer(job, loaded, rows, monitor)
    meter.leave()
    run_files.update(num_trainable_parameters=trainer.count_trainable(), **monitor.peaks())

    run_files.enter("eval")
    questions = choose_questions(rows, loaded.tokenizer, job.num_samples, job.max_length)
    answer_samples = partial(answer_all, questions, trainer, loaded.tokenizer, run_files)
    if not agreement.from_first(run_files.has_sample(step=0)):
        with meter.unmeasured():
            answer_samples(0)

    run_files.enter("train")
    run_files.stop.defer()  # from here on a stop waits for a checkpoint
    monitor.answer_samples = answer_samples
    monitor.check = StepChecks(job, trainer, loaded.tokenizer, run_files)
    _take_steps(trainer, start.checkpoint)
    if run_files.stop.is_obeyed:
        raise Stopped

    monitor.require_finite_weights(trainer.model)
    result_step = trainer.load_best()
    trainer.save_result(result_step)
    run_files.enter("eval")
    answer_samples(result_step)
    last_step = trainer.state.global_step
    monitor.check(result_step)
    run_files.update(state="finished", step=last_step, result="output", result_step=result_step)
    agreement.disconnect()


def _read_fields(folder: Path, arguments: Sequence[str]) -> dict[str, object]:
    """Read the job file that the arguments name. Raises UnusableJob."""
    if len(arguments) != 1:
        raise UnusableJob("usage: python -m training job.json")
    name = arguments[0]
    try:
        fields = json.loads((folder / name).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UnusableJob(f"{name}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableJob(f"{name}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnusableJob(f"{name}: holds a {type(fields).__name__}, not an object")
    return absolute_places(fields, folder)


def _is_finished(folder: Path) -> bool:
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        return bool(status["state"] == "finished") and (folder / "output").is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _set_environment(rank: Rank) -> None:
    for name, value in ENVIRONMENT.items():
        if name == "CUDA_VISIBLE_DEVICES" and not rank.is_alone:
            continue  # each rank takes its own
        if NEW_NAMES.get(name, name) not in os.environ:
            os.environ.setdefault(name, value)


def _report_failure(error: Exception, job: Job, run_files: RunFiles) -> None:
    """Write what went wrong into the status and the log."""
    run_files.stop.defer()  # a stop request must not interrupt this
    activity = run_files.activity or run_files.status.phase
    failure = diagnose(error, job.model, activity)
    rank = run_files.rank
    if rank.leader or not rank.is_first:  # the leader or the first decides what was the cause
        report_failure(run_files.folder, rank, failure)
    else:
        if not rank.is_alone:
            failure = first_cause(run_files.folder, rank, failure)
        run_files.fail(failure)
    if not isinstance(error, TrainingError):  # its sentence says everything
        say(traceback.format_exc(), sys.stderr)
    say(failure.sentence, sys.stderr)


def _find_start(job: Job, run_files: RunFiles, checkpoints: CheckpointFolder) -> Start:
    """Find the newest checkpoint that every rank can read. No library opens a file of it before it
    is verified.

    Raises TrainingError if the job is no longer that of the checkpoint.
    """
    from .ranks import agreement

    run_files.update(progress=Progress("verifying checkpoints", 0, None, ""))
    checkpoint, skipped = checkpoints.newest(agreement.from_first, agreement.any_rank)
    for reason in skipped:
        say(f"skipped {reason}")
    if checkpoint:
        require_same_division(job, checkpoint)
        job = keep_rows_of_step(job, checkpoint)
        job = keep_smaller_batch(job, checkpoint)
    versions = {name: _version(name) for name in RECORDED_PACKAGES}
    versions = {"python": sys.version.split()[0], **versions}
    run_files.update(
        versions=versions,
        skipped_checkpoints=skipped,
        checkpoint_step=checkpoint.step if checkpoint else None,
        progress=None,
    )
    num_rows = run_files.status.num_train_rows or 0
    facts = facts_of(job, run_files.folder, num_rows, versions)
    if checkpoint:
        for change in allowed_changes(checkpoint, facts):
            run_files.note(change)
    return Start(job, checkpoint, facts)


def _truncate_run_files(run_files: RunFiles, checkpoint: VerifiedCheckpoint | None) -> int:
    """Drop metrics and samples that the checkpoint does not know. Return its number of tokens."""
    from .ranks import agreement

    num_tokens = 0
    if checkpoint is None:
        run_files.truncate()
    else:
        has_all_steps = checkpoint.has_all_steps
        num_tokens = run_files.truncate_after(checkpoint.step, has_all_steps=has_all_steps)
    agreement.wait_for_all()  # every rank decides by the metrics that are left
    return num_tokens


def _measured_passes(job: Job) -> dict[str, int]:
    """Return how many passes through each phase are measured; later ones take as much memory."""
    micro_batches = MEASURED_STEPS * job.gradient_accumulation_steps
    return {
        "load": 1,
        "eval": 1,
        "save": 1,
        "generation": micro_batches,
        "forward": micro_batches,
        "backward": micro_batches,
        "optimizer_step": MEASURED_STEPS,
    }


def _take_steps(trainer: "MonitoredTrainer", checkpoint: VerifiedCheckpoint | None) -> None:
    """Train to the end or to a stop, from the checkpoint if there is one."""
    if checkpoint is None:
        trainer.train()
    elif checkpoint.has_all_steps:
        trainer.restore(checkpoint)  # transformers would take one step too many
    elif trainer.monitor.best.is_in_vain:  # ended early, before its result was written
        trainer.monitor.report_early_end(checkpoint.step)
        trainer.restore(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder))


def _silence_libraries() -> None:
    """Keep out of the log what would bury it: lines per 8-bit layer and pass, and one warning."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # transformers 5.17 and TRL know this setting only by its old name, and warn about it.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
