"""MAKERS: how each form of export is made and verified."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from core.after_training.export.forms import FROM_ROWS, QUANTS, FormName
from core.after_training.export.records import ExportedFile, Manifest, Verification
from core.training.contract.failures import TrainingError
from core.training.contract.files import sha256_of
from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.contract.weights.files import weight_files
from core.workers.export.adapter_files import write_adapter
from core.workers.export.choosing import choose_questions
from core.workers.export.hub import send
from core.workers.export.importance import write_importance
from core.workers.export.llama import answers_of_gguf, write_adapter_gguf, write_gguf
from core.workers.export.merge import copy_result, merge
from core.workers.export.model_files import copy_licences, copy_model_files, write_model_files
from core.workers.export.ollama import ollama_template, write_ollama_files
from core.workers.export.questions import (
    ExportAnswer,
    ExportQuestion,
    answers_as_trained,
    answers_of_folder,
    choose_dtype,
)
from core.workers.export.scores import compare_scores, rows_to_score, scored, scores_of
from core.workers.export.task import ExportTask
from core.workers.export.verify import asked, compare, doubted
from core.workers.trained_model import load_scoring

OVER_16_BITS = (
    "It was trained over 4 bits. Over the 16-bit base, answers differ a little from those."
)
NEEDS_BASE = (
    "It is used over its base as a GGUF file, BASE.gguf below: the Hub has many, and llama.cpp's "
    "convert_hf_to_gguf.py makes one."
)
Maker = Callable[[ExportTask, Job, str], Manifest]
"""Make an export of a job with a token for the Hub; return what to write about it."""


def make_merged(task: ExportTask, job: Job, _token: str) -> Manifest:
    """Write a folder with the whole model, and verify it with transformers."""
    write_merged(task, job, task.files)
    verified = verify_folder(task, job, task.files)
    return manifest_of(task, verified)


def make_gguf(task: ExportTask, job: Job, _token: str) -> Manifest:
    """Write one GGUF file, and verify it with llama.cpp."""
    model = _write_merged_aside(task, job)
    _gguf, verified = _write_gguf(task, job, model)
    shutil.rmtree(model)
    copy_licences(task, task.files)
    return manifest_of(task, verified)


def make_adapter_gguf(task: ExportTask, job: Job, _token: str) -> Manifest:
    """Write the adapter alone as GGUF, and verify it over its base in 16 bits."""
    target = task.files / f"{_name(task)}-adapter.gguf"
    write_adapter_gguf(task, target)
    task.notes.append(NEEDS_BASE)
    if METHODS[job.method].base_bits == 4:
        task.notes.append(OVER_16_BITS)
    copy_licences(task, task.files)
    verified = None
    if task.request.tools:
        base = task.folder / "base.gguf"
        if not base.is_file():
            write_gguf(task, Path(task.request.base_folder), QUANTS["BF16"], base)
        questions, trained, sentence = ask_trained(task, job)
        task.enter("Asking the adapter in llama.cpp")
        found, notes = answers_of_gguf(task, base, questions, trained, str(target))
        task.asked = asked(questions, trained, found)
        verified = compare(questions, trained, found, "llama.cpp", sentence, is_16_bit=True)
        verified = doubted(verified, notes)
    return manifest_of(task, verified)


def make_ollama(task: ExportTask, job: Job, _token: str) -> Manifest:
    """Write a GGUF file with a Modelfile whose template is proved, and a zip of both."""
    model = _write_merged_aside(task, job)
    task.enter("Deriving Ollama's template")
    template = ollama_template(model, task.notes)
    gguf, verified = _write_gguf(task, job, model)
    task.enter("Writing the zip")
    write_ollama_files(task, model, gguf, template, verified)
    shutil.rmtree(model)
    return manifest_of(task, verified)


def make_hub(task: ExportTask, job: Job, token: str) -> Manifest:
    """Write what goes to the Hub, verify it where it is a whole model, and send it."""
    verified = None
    if task.request.sent == "adapter":
        write_adapter(task, task.files)
    elif task.request.sent == "gguf":
        verified = make_gguf(task, job, token).verified
    else:
        verified = make_merged(task, job, token).verified
    if verified and not verified.trusted:
        raise TrainingError(f"It is not sent, because it is not to be trusted: {verified.note}.")
    url = send(task, token)
    return replace(manifest_of(task, verified), url=url)


def _write_gguf(task: ExportTask, job: Job, model: Path) -> tuple[Path, Verification | None]:
    """Write the model in a folder as the GGUF file of the export, and verify it."""
    quant = QUANTS[task.request.quant]
    target = task.files / f"{_name(task)}-{quant.name}.gguf"
    write_gguf(task, model, quant, target, _importance(task, job, model))
    if not task.request.tools:
        task.notes.append("Not verified: that needs the packages that `make export` installs.")
        return target, None
    questions, trained, sentence = ask_trained(task, job)
    task.enter("Asking the exported model in llama.cpp")
    found, notes = answers_of_gguf(task, target, questions, trained)
    task.asked = asked(questions, trained, found)
    is_16_bit = quant.is_16_bit
    verified = compare(questions, trained, found, "llama.cpp", sentence, is_16_bit=is_16_bit)
    return target, doubted(verified, notes)


def _importance(task: ExportTask, job: Job, model: Path) -> Path | None:
    """Return the importance matrix that the export is quantized with; None without one."""
    wanted = task.request.imatrix
    if not wanted:
        return None
    if wanted != FROM_ROWS:
        task.notes.append(f"Quantized with the importance matrix {Path(wanted).name}.")
        return Path(wanted)
    target = task.folder / "importance.npz"
    if not target.is_file():
        write_importance(task, job, model, target)
    return target


def _name(task: ExportTask) -> str:
    return Path(task.request.run_folder).name


def write_merged(task: ExportTask, job: Job, target: Path) -> None:
    """Write the whole model of a run into a folder."""
    target.mkdir(exist_ok=True)
    copy_licences(task, target)
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
    if STAGES[job.stage].head == "score":
        return _verify_scores(task, job, folder)
    questions, trained, sentence = ask_trained(task, job)
    task.enter("Asking the exported model")
    dtyped = choose_dtype(weight_files(folder), job)
    exported = answers_of_folder(folder, dtyped, questions, trained)
    task.asked = asked(questions, trained, exported)
    return compare(questions, trained, exported, "transformers", sentence, is_16_bit=True)


def _verify_scores(task: ExportTask, job: Job, folder: Path) -> Verification:
    """Let a reward model and its exported folder score the same texts, and compare."""
    run_folder = Path(task.request.run_folder)
    task.enter("Scoring with the model as it was trained")
    rows = rows_to_score(job, run_folder)
    reference, sentence = _reference(task, job)
    trained = scores_of(load_scoring(reference, run_folder / "output"), job.stage, rows)
    task.enter("Scoring with the exported model")
    dtyped = choose_dtype(weight_files(folder), job)
    own = Job(
        model=str(folder),
        dataset=job.dataset,
        method="full",
        stage=job.stage,
        dtype=dtyped.dtype,
    )
    exported = scores_of(load_scoring(own, None), job.stage, rows)
    task.asked = scored(trained, exported)
    return compare_scores(trained, exported, sentence)


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
        request.form,
        request.base,
        request.quant,
        tuple(files),
        verified,
        tuple(task.notes),
        asked=task.asked,
    )


def _reference(task: ExportTask, job: Job) -> tuple[Job, str]:
    """Return the job whose base answers beside the export, and what that is."""
    if not job.trains_adapter:
        return choose_dtype(weight_files(Path(task.request.run_folder) / "output"), job), "result"
    base = Path(task.request.base_folder)
    job = choose_dtype(weight_files(base), replace(job, model=str(base)))
    bits = METHODS[job.method].base_bits
    if bits == 4 and task.request.base == "trained" and task.request.form != "adapter-gguf":
        return job, "4-bit base with adapter"
    return replace(job, method="lora"), "16-bit base with adapter"


def _write_merged_aside(task: ExportTask, job: Job) -> Path:
    """Write the whole model into a folder that is no part of the export, and return it."""
    folder = task.folder / "model"
    write_merged(task, job, folder)
    return folder


MAKERS: Mapping[FormName, Maker] = {
    "merged": make_merged,
    "gguf": make_gguf,
    "adapter-gguf": make_adapter_gguf,
    "ollama": make_ollama,
    "hub": make_hub,
}
