"""Preview of preferences: two texts in the very tokens that each trainer compares."""

import json
from pathlib import Path

import pytest

from core.training.contract.failures import TrainingError
from core.training.contract.row_reader import BadRow
from core.training.data.preferences import PreferenceEncoder
from core.training.data.prompts import preferences_as_text
from core.training.data.rows import read_rows
from core.workers.preview.session import PreviewSession
from tests.builders.dataset_files import write_json_rows
from tests.builders.preview_rows import CHAT_PAIR, LONG, PAIRS, learnt_text, open_session
from tests.builders.training_runs import copy_model

TOOLS = [{"name": "look", "parameters": {}}]
ROWS = PAIRS | {
    "with tools": [CHAT_PAIR | {"tools": TOOLS}],
    "parts that merge": [{"prompt": "the mar", "chosen": "ket", "rejected": "k"}],
    "ended already": [{"prompt": "1 + 1 =", "chosen": " 2<|im_end|>", "rejected": " 3"}],
}
QUICK = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}


def model_with_a_first_token(folder: Path) -> Path:
    """Return the demo model with a token for the beginning, and tools in its template."""
    model = copy_model(folder / "model")
    config, template = model / "tokenizer_config.json", model / "chat_template.jinja"
    settings = json.loads(config.read_text()) | {"bos_token": "<|endoftext|>"}
    config.write_text(json.dumps(settings))
    template.write_text("{{ tools[0].name if tools else '' }}" + template.read_text())
    return model


def compared_by_trl(
    folder: Path, model: Path, stage: str, max_length: int
) -> list[tuple[int, ...]]:
    """Return tokens and answer of both texts of each row as TRL's trainer makes them.

    The trainer gets what core/training gives it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from core.training.trainers.builders import CPOConfig, CPOTrainer, ORPOConfig, ORPOTrainer

    trainer, config = {"orpo": (ORPOTrainer, ORPOConfig), "cpo": (CPOTrainer, CPOConfig)}[stage]
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    rows = read_rows(folder, "rows.jsonl", "", 0.0, 0, stage=stage)
    settings = {"output_dir": str(folder), "max_length": max_length}
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False),
        args=config(remove_unused_columns=False, **settings, **QUICK),
        processing_class=tokenizer,
        **preferences_as_text(rows, tokenizer, max_length, stage),
    )
    found = []
    for row in made.train_dataset:
        for name in ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"):
            found.append(tuple(token for token in row[name] if token != -100))
    return found


def compared_by_preview(session: PreviewSession, max_length: int) -> list[tuple[int, ...]]:
    """Return the same of the rows that have an answer left."""
    found = []
    for index in range(len(session.rows)):
        row = session.rows.row(index)
        (chosen, begin), (rejected, other) = session.encoder.split(row)
        assert session.encoder.encode_all(row)[1].first_in_loss == other
        if max(begin, other) < max_length:
            for tokens, first in ((chosen, begin), (rejected, other)):
                found += [tuple(tokens.ids[:max_length]), tuple(tokens.ids[first:max_length])]
    return found


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("stage", ["orpo", "cpo"])
@pytest.mark.parametrize("kind", ROWS)
def test_the_preview_is_what_orpo_and_cpo_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stage: str
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    model = model_with_a_first_token(tmp_path)
    file = write_json_rows(tmp_path / "rows.jsonl", ROWS[kind])
    session = open_session(file, model, stage=stage)
    assert compared_by_preview(session, 24) == compared_by_trl(tmp_path, model, stage, 24)


@pytest.mark.training
@pytest.mark.parametrize(("room", "num_rows"), [(0, 0), (1, 1)])
def test_a_prompt_without_room_after_the_first_token_is_left_out(
    tmp_path: Path, room: int, num_rows: int
) -> None:
    from transformers import AutoTokenizer

    model = model_with_a_first_token(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    prompt = LONG.strip()
    row = {"prompt": prompt, "chosen": " a", "rejected": " b"}
    write_json_rows(tmp_path / "rows.jsonl", [row])
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="orpo")
    num_tokens = 1 + len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    kept = preferences_as_text(rows, tokenizer, num_tokens + room, "orpo")["train_dataset"]
    assert len(kept or ()) == num_rows


def test_tokens_that_the_trainer_adds_are_shown_in_their_place(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}]
    file = write_json_rows(tmp_path / "rows.jsonl", rows)
    (row,) = open_session(file, model_with_a_first_token(tmp_path), stage="cpo").show(0, 1, 64)
    assert row["pieces"] == [("<|endoftext|>1 + 1 =", False), (" 2<|im_end|>", True)]


def test_orpo_learns_the_chosen_text_whole_and_says_so(tmp_path: Path) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", [CHAT_PAIR])
    session = open_session(file, stage="orpo")
    (row,) = session.show(0, 1, 64)
    assert learnt_text(row).startswith("<|im_start|>user")
    assert learnt_text(row["rejected"]) == "a lot<|im_end|>"
    assert "learns whole" in " ".join(session.info()["notes"])


@pytest.mark.parametrize(("alone", "whole"), [([1, 2], [3]), ([1, 2, 3], [4, 5, 6, 7])])
def test_texts_that_the_trainer_cannot_divide_are_bad_rows(
    alone: list[int], whole: list[int]
) -> None:
    tokens = {"q": alone, "qa": whole, "qb": [*alone, 9]}
    encoder = PreferenceEncoder(lambda text, **_settings: {"input_ids": tokens[text]}, "cpo")
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRow, match="its prompt has"):
        encoder.prompt_length(row)


def test_a_row_that_the_trainer_cannot_divide_is_named_by_its_line(tmp_path: Path) -> None:
    tokens = {"q": [1, 2], "qa": [3]}
    (tmp_path / "rows.jsonl").write_text('\n\n{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="orpo")
    says = r"^dataset line 3, whose prompt ends with 'q', cannot be compared: its"
    with pytest.raises(TrainingError, match=says):
        preferences_as_text(rows, lambda text, **_settings: {"input_ids": tokens[text]}, 8, "orpo")
