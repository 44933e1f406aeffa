"""Files for Ollama beside a GGUF file: Modelfile, README and a zip of all three."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from transformers import AutoTokenizer

from core.after_training.export.ollama import name_in_ollama
from core.after_training.export.ollama.modelfile import Modelfile, can_hold, num_context, readme
from core.after_training.export.ollama.template import (
    NO_SYSTEM,
    GoTemplate,
    Messages,
    UnknownTemplate,
    derive,
)
from core.after_training.export.records import Verification
from core.after_training.export.sentences import verified_sentence
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.contract.row_columns import Row
from core.training.data.chat import ChatTemplate
from core.workers.export.choosing import rows_of_run
from core.workers.export.task import ExportTask

MODELFILE, README = "Modelfile", "README.md"
ROWS_LOOKED_AT = 10_000
"""Rows at the beginning of the data in which a common system text is looked for."""


def ollama_template(model: Path, notes: list[str]) -> GoTemplate:
    """Return the template of Ollama that prints what the model's chat template prints.

    Adds to the notes what it leaves out. Raises TrainingError if there is none.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise TrainingError("The model has no chat template: export it to gguf instead.")
    chat = ChatTemplate(tokenizer)
    start = tokenizer.bos_token or ""

    def render(messages: Messages, opens_answer: bool) -> str:
        text = chat.render([dict(each) for each in messages], opens_answer=opens_answer)
        # Ollama adds the start token itself.
        return text.removeprefix(start)

    try:
        template = derive(render)
    except UnknownTemplate as error:
        raise TrainingError(
            f"No template of Ollama prints what the chat template prints: {error}. Export it to "
            "gguf, and use it in llama.cpp or LM Studio, which read the chat template itself."
        ) from None
    if template.system is None:
        notes.append(NO_SYSTEM)
    return template


def write_ollama_files(
    task: ExportTask,
    model: Path,
    gguf: Path,
    template: GoTemplate,
    verified: Verification | None,
) -> None:
    """Write Modelfile, README and zip beside a GGUF file."""
    config = _read(model / "config.json")
    generation = _read(model / "generation_config.json")
    run_folder = Path(task.request.run_folder)
    job = Job.from_json(_read(run_folder / "job.json"))
    system = ""
    if template.system:
        system = _system(job, run_folder, task.notes)
    modelfile = Modelfile(
        gguf.name,
        template.text(),
        _stops(model, generation, task.notes),
        num_context(config, job.max_length),
        generation,
        system=system,
        licence=_licence(model, task.notes),
    )
    name = Path(task.request.run_folder).name
    (task.files / MODELFILE).write_text(modelfile.text(), encoding="utf-8")
    named = name_in_ollama(name, task.request.name)
    text = readme(named, gguf.name, verified_sentence(verified))
    (task.files / README).write_text(text, encoding="utf-8")
    with ZipFile(task.files / f"{name}-ollama.zip", "w", ZIP_STORED) as archive:
        for file in (MODELFILE, README, gguf.name):
            archive.write(task.files / file, f"{name}/{file}")
            task.require_no_stop()


def common_system(rows: Iterable[Row]) -> str:
    """Return the system text with which all conversations begin; empty if they differ."""
    found = {_first_system(row) for row in islice(rows, ROWS_LOOKED_AT)}
    if len(found) != 1:
        return ""
    return found.pop()


def _first_system(row: Row) -> str:
    messages = next(iter(row.values()))
    if not isinstance(messages, list) or not messages or messages[0]["role"] != "system":
        return ""
    content = messages[0].get("content")
    if not isinstance(content, str):
        return ""
    return content


def _system(job: Job, run_folder: Path, notes: list[str]) -> str:
    try:
        rows = rows_of_run(job, run_folder)
    except TrainingError:
        notes.append("No SYSTEM: the rows of the run are not there any more.")
        return ""
    system = common_system(rows.train)
    if not system:
        return ""
    if not can_hold(system):
        notes.append("The system text of the rows is left out: a Modelfile cannot hold it.")
        return ""
    notes.append("SYSTEM is the system text with which every row begins.")
    return system


def _stops(model: Path, generation: dict[str, Any], notes: list[str]) -> list[str]:
    """Return the texts of all tokens that end an answer, of those that a Modelfile can hold."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    ends = generation.get("eos_token_id")
    ids = list(ends) if isinstance(ends, list) else [ends]
    ids.append(tokenizer.eos_token_id)
    known = dict.fromkeys(each for each in ids if each is not None)
    texts = [str(each) for each in tokenizer.convert_ids_to_tokens(list(known))]
    unheld = [ascii(text) for text in texts if not can_hold(text)]
    if unheld:
        notes.append(f"Stop texts that a Modelfile cannot hold are left out: {', '.join(unheld)}.")
    return [text for text in texts if can_hold(text)]


def _licence(model: Path, notes: list[str]) -> str:
    for path in sorted(model.glob("LICEN[SC]E*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        seen = "".join(each for each in text if each.isprintable() or each in "\t\n")
        if can_hold(seen):
            return seen
        notes.append(f"{path.name} is left out: a Modelfile cannot hold it. Add it yourself.")
    return ""


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
