"""Files for Ollama beside a GGUF file: Modelfile, README and a zip of all three."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from transformers import AutoTokenizer

from core.after_training.export.modelfile import Modelfile, num_context, readme
from core.after_training.export.records import Verification
from core.after_training.export.sentences import verified_sentence
from core.after_training.export.template import (
    NO_SYSTEM,
    GoTemplate,
    Messages,
    UnknownTemplate,
    derive,
)
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.data.chat import ChatTemplate
from core.workers.export.task import ExportTask

MODELFILE, README = "Modelfile", "README.md"


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
    modelfile = Modelfile(
        gguf.name,
        template.text(),
        _stops(model, generation),
        num_context(config, _max_length(task)),
        generation,
        licence=_licence(model),
    )
    name = Path(task.request.run_folder).name
    (task.files / MODELFILE).write_text(modelfile.text(), encoding="utf-8")
    text = readme(name, gguf.name, verified_sentence(verified))
    (task.files / README).write_text(text, encoding="utf-8")
    with ZipFile(task.files / f"{name}-ollama.zip", "w", ZIP_STORED) as archive:
        for file in (MODELFILE, README, gguf.name):
            archive.write(task.files / file, f"{name}/{file}")
            task.require_no_stop()
    task.notes.append(f"In its folder: ollama create {name} -f {MODELFILE}, ollama run {name}")


def _max_length(task: ExportTask) -> int:
    job = _read(Path(task.request.run_folder) / "job.json")
    return Job.from_json(job).max_length


def _stops(model: Path, generation: dict[str, Any]) -> list[str]:
    """Return the texts of all tokens that end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    ends = generation.get("eos_token_id")
    ids = list(ends) if isinstance(ends, list) else [ends]
    ids.append(tokenizer.eos_token_id)
    known = dict.fromkeys(each for each in ids if each is not None)
    return [str(each) for each in tokenizer.convert_ids_to_tokens(list(known))]


def _licence(model: Path) -> str:
    for path in sorted(model.glob("LICEN[SC]E*")):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
