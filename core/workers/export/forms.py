"""MAKERS: how each form of export is made and verified."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from core.export import ExportedFile, Manifest, Verification
from core.export.forms import FormName
from core.training.contract.files import sha256_of
from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.weights.files import weight_files
from core.workers.export.merge import copy_result, merge
from core.workers.export.model_files import copy_model_files, write_model_files
from core.workers.export.questions import (
    ExportAnswer,
    ExportQuestion,
    answers_as_trained,
    answers_of_folder,
    choose_dtype,
    choose_questions,
)
from core.workers.export.task import ExportTask
from core.workers.export.verify import compare

Maker = Callable[[ExportTask, Job, str], Manifest]
"""Make an export of a job with a token for the Hub; return what to write about it."""


def make_merged(task: ExportTask, job: Job, _token: str) -> Manifest:
    """Write a folder with the whole model, and verify it with transformers."""
    write_merged(task, job, task.files)
    verified = verify_folder(task, job, task.files)
    return manifest_of(task, verified)


def write_merged(task: ExportTask, job: Job, target: Path) -> None:
    """Write the whole model of a run into a folder."""
    target.mkdir(exist_ok=True)
    output = Path(task.request.run_folder) / "output"
    if not job.trains_adapter:
        copy_result(task, target)
        copy_model_files(output, target)
        return
    base = Path(task.request.base_folder)
    merged = merge(task, job, trained_in_float32(task), target)
    write_model_files(output, base, merged, target)


def verify_folder(task: ExportTask, job: Job, folder: Path) -> Verification:
    """Ask a folder of transformers what the model as trained was asked, and compare."""
    questions, trained, sentence = ask_trained(task, job)
    task.enter("Asking the exported model")
    dtyped = choose_dtype(weight_files(folder), job)
    exported = answers_of_folder(folder, dtyped, questions, trained)
    return compare(questions, trained, exported, "transformers", sentence, is_16_bit=True)


def ask_trained(
    task: ExportTask, job: Job
) -> tuple[tuple[ExportQuestion, ...], tuple[ExportAnswer, ...], str]:
    """Return questions, the answers as trained, and what has answered."""
    run_folder = Path(task.request.run_folder)
    task.enter("Asking the model as it was trained")
    questions, tokenizer = choose_questions(job, run_folder)
    reference, sentence = _reference(task, job)
    answered = answers_as_trained(reference, run_folder, questions, tokenizer)
    return questions, answered, sentence


def trained_in_float32(task: ExportTask) -> bool:
    """Return True if the base was loaded in float32: on a CPU, or as the job asked."""
    run_folder = Path(task.request.run_folder)
    job = json.loads((run_folder / "job.json").read_text(encoding="utf-8"))
    if job.get("dtype", "auto") != "auto":
        return bool(job["dtype"] == "float32")
    try:
        status = json.loads((run_folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return status.get("device") == "CPU"


def manifest_of(task: ExportTask, verified: Verification | None) -> Manifest:
    """Return the manifest of the files that were made."""
    task.enter("Hashing")
    files = []
    for path in sorted(task.files.rglob("*")):
        if path.is_file():
            name = path.relative_to(task.files).as_posix()
            files.append(ExportedFile(name, path.stat().st_size, sha256_of(path)))
    request = task.request
    return Manifest(
        request.form, request.base, request.quant, tuple(files), verified, tuple(task.notes)
    )


def _reference(task: ExportTask, job: Job) -> tuple[Job, str]:
    """Return the job whose base answers beside the export, and what that is."""
    from dataclasses import replace

    if not job.trains_adapter:
        return choose_dtype(weight_files(Path(task.request.run_folder) / "output"), job), "result"
    base = Path(task.request.base_folder)
    job = choose_dtype(weight_files(base), replace(job, model=str(base)))
    bits = METHODS[job.method].base_bits
    if bits == 4 and task.request.base == "trained":
        return job, "4-bit base with adapter"
    return replace(job, method="lora"), "16-bit base with adapter"


MAKERS: Mapping[FormName, Maker] = {"merged": make_merged}
