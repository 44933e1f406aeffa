"""Tokenizers with several chat templates, and texts that a template has printed already."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.training.data.chat import ChatTemplate
from core.training.data.tokenizer import load_tokenizer
from core.training.data.tokens import Encoder
from tests.builders.model_folders import copy_of_demo

pytestmark = pytest.mark.training


def loaded(folder: Path) -> Any:
    return load_tokenizer(str(folder), "main", is_conversational=True)


@pytest.mark.parametrize(
    ("names", "chosen"), [(("rag", "default"), "default"), (("tool_use", "rag"), "tool_use")]
)
def test_the_default_of_several_templates_or_the_first_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], chosen: str
) -> None:
    folder = copy_of_demo(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": name, "template": name} for name in names]
    path.write_text(json.dumps(config))
    assert loaded(folder).chat_template == chosen
    assert f"({', '.join(names)}), {chosen} is used." in capsys.readouterr().out


def test_a_template_of_an_added_folder_is_used_if_it_is_the_only_one(tmp_path: Path) -> None:
    folder = copy_of_demo(tmp_path / "model")
    added = folder / "additional_chat_templates"
    added.mkdir()
    (folder / "chat_template.jinja").rename(added / "rag.jinja")
    assert isinstance(loaded(folder).chat_template, str)


@pytest.mark.parametrize("row", [{"text": "<s>Hi"}, {"prompt": "<s>Hi", "completion": " there"}])
def test_the_first_token_of_a_printed_text_stands_there_once(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = loaded(copy_of_demo(tmp_path / "model"))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = tokenizer.bos_token_id
    adds_first = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    tokenizer.backend_tokenizer.post_processor = adds_first
    assert tokenizer("Hi")["input_ids"][0] == first
    ids = Encoder(ChatTemplate(tokenizer), on_answers=True).encode(row).ids
    assert list(ids).count(first) == 1
