"""Files beside the weights of an exported model: config, tokenizer, template, licence."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from core.training.contract.files import write_json
from core.training.model.ends import stop_at_all_ends
from core.workers.export.merge import MergedModel
from core.workers.export.task import ExportTask

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
OF_THIS_MACHINE = ("backend", "is_local", "local_files_only", "name_or_path")
"""Keys of tokenizer_config.json that say how transformers has loaded it here."""
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
"""Settings of a model that gives one score."""
NEW_CLASS, OLD_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
"""Class of any tokenizer.json in transformers 5, and its name that other programs know too."""


def write_model_files(run_output: Path, base: Path, merged: MergedModel, target: Path) -> None:
    """Write everything but the weights. The tokenizer is the run's; what it lacks is the base's."""
    config = _read(base / "config.json")
    text = config.get("text_config", config)
    if merged.is_untied:
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    if merged.vocab_size:
        text["vocab_size"] = merged.vocab_size
    copy_tokenizer(run_output, base, target)
    if merged.score_class:
        tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
        config |= {"architectures": [merged.score_class], **ONE_LABEL}
        text["pad_token_id"] = tokenizer.pad_token_id  # the score is read before the padding
    else:
        _write_generation_config(base, target)
    write_json(target / "config.json", config)


def copy_licences(task: ExportTask, target: Path) -> None:
    """Copy the licences of a base and of the model before any training, with what they ask to be
    passed on."""
    named = (task.request.origin_folder, task.request.base_folder)
    for folder in (Path(each) for each in named if each):
        for pattern in LICENCES:
            for path in folder.glob(pattern):
                shutil.copyfile(path, target / path.name)


def copy_model_files(output: Path, target: Path) -> None:
    """Copy everything but the weights of a result that is a whole model."""
    for name in ("config.json", "generation_config.json"):
        if (output / name).is_file():
            shutil.copyfile(output / name, target / name)
    copy_tokenizer(output, output, target)


def copy_tokenizer(output: Path, base: Path, target: Path) -> None:
    """Copy the tokenizer of a result, and from its base what it lacks, as other programs and
    versions read it."""
    for name in TOKENIZER_FILES:
        for folder in (output, base):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
                break
    path = target / "tokenizer_config.json"
    if not path.is_file():
        return
    settings = {key: value for key, value in _read(path).items() if key not in OF_THIS_MACHINE}
    if settings.get("tokenizer_class") == NEW_CLASS:
        named = {}
        if (base / path.name).is_file():
            named = _read(base / path.name)
        known = str(named.get("tokenizer_class") or NEW_CLASS)
        settings["tokenizer_class"] = OLD_CLASS if known == NEW_CLASS else known
    write_json(path, settings)


def _write_generation_config(base: Path, target: Path) -> None:
    """Write the base's settings of generation, with all ends of an answer that training used."""
    settings = GenerationConfig()
    if (base / "generation_config.json").is_file():
        settings = GenerationConfig.from_dict(_read(base / "generation_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    stop_at_all_ends(SimpleNamespace(generation_config=settings), tokenizer)
    found: Mapping[str, Any] = settings.to_diff_dict()
    write_json(target / "generation_config.json", found)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
