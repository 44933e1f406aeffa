"""The preview of preferences: two texts in the very tokens that each trainer compares."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.failures import TrainingError
from core.training.contract.row_reader import BadRow
from core.training.data.preferences import PreferenceEncoder
from core.training.data.prompts import preferences_as_text
from core.training.data.rows import read_rows
from core.workers.preview.session import PreviewSession
from tests.builders.training_runs import copy_model
from tests.workers.test_preview import LONG, PAIRS, TALKS, view, write

TOOLS = [{"name": "look", "parameters": {}}]
ROWS = PAIRS | {
    "with tools": [TALKS | {"tools": TOOLS}],
    "parts that merge": [{"prompt": "the mar", "chosen": "ket", "rejected": "k"}],
    "ended already": [{"prompt": "1 + 1 =", "chosen": " 2<|im_end|>", "rejected": " 3"}],
}


def model_with_a_beginning(folder: Path) -> Path:
    """The demo model, whose tokenizer names a token for the beginning, and whose template shows tools."""
    model = copy_model(folder / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(
        json.dumps(settings | {"bos_token": "<|endoftext|>"})
    )
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text("{{ tools[0].name if tools else '' }}" + template)
    return model


def compared_by_trl(
    folder: Path, model: Path, stage: str, max_length: int
) -> list[tuple[list[int], ...]]:
    """(tokens, answer) of both texts of each row as TRL's trainer makes them, from what core/training gives it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from core.training.trainers.builders import CPOConfig, CPOTrainer, ORPOConfig, ORPOTrainer

    trainer, config = {"orpo": (ORPOTrainer, ORPOConfig), "cpo": (CPOTrainer, CPOConfig)}[stage]
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    settings = {
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False),
        args=config(
            output_dir=str(folder), max_length=max_length, remove_unused_columns=False, **settings
        ),
        processing_class=tokenizer,
        **preferences_as_text(
            read_rows(folder, "rows.jsonl", "", 0.0, 0, stage=stage), tokenizer, max_length, stage
        ),
    )
    return [
        tuple([token for token in row[f"{name}_{kind}"] if token != -100])
        for row in made.train_dataset
        for name in ("chosen", "rejected")
        for kind in ("input_ids", "labels")
    ]


def compared_by_preview(seen: PreviewSession, max_length: int) -> list[tuple[int, ...]]:
    """The same of the rows that have an answer left."""
    found = []
    for index in range(len(seen.rows)):
        (chosen, begin), (rejected, other) = seen.encoder.split(seen.rows.row(index))
        assert seen.encoder.encode_all(seen.rows.row(index))[1].first_in_loss == other
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
    model = model_with_a_beginning(tmp_path)
    write(tmp_path / "rows.jsonl", ROWS[kind])
    seen = view(tmp_path / "rows.jsonl", model, stage=stage)
    assert compared_by_preview(seen, 24) == compared_by_trl(tmp_path, model, stage, 24)


@pytest.mark.training
def test_a_question_that_leaves_no_room_behind_the_first_token_is_left_out(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.data.prompts import preferences_as_text

    tokenizer = AutoTokenizer.from_pretrained(
        model_with_a_beginning(tmp_path), trust_remote_code=False
    )
    write(tmp_path / "rows.jsonl", [{"prompt": LONG.strip(), "chosen": " a", "rejected": " b"}])
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="orpo")
    num_tokens = 1 + len(tokenizer(LONG.strip(), add_special_tokens=False)["input_ids"])
    kept = [
        len(preferences_as_text(rows, tokenizer, num_tokens + more, "orpo")["train_dataset"] or ())
        for more in (0, 1)
    ]
    assert kept == [0, 1]


def test_tokens_that_the_trainer_adds_are_shown_where_they_stand(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}]
    (row,) = view(
        write(tmp_path / "rows.jsonl", rows), model_with_a_beginning(tmp_path), stage="cpo"
    ).show(0, 1, 64)
    assert row["pieces"] == [("<|endoftext|>1 + 1 =", False), (" 2<|im_end|>", True)]


def test_orpo_learns_the_chosen_text_whole_and_says_so(tmp_path: Path) -> None:
    seen = view(write(tmp_path / "rows.jsonl", [TALKS]), stage="orpo")
    (row,) = seen.show(0, 1, 64)
    learnt: Any = [
        "".join(text for text, counts in each["pieces"] if counts)
        for each in (row, row["rejected"])
    ]
    assert learnt[0].startswith("<|im_start|>user") and learnt[1] == "a lot<|im_end|>"
    assert "learns whole" in " ".join(seen.about()["notes"])


@pytest.mark.parametrize(("alone", "whole"), [([1, 2], [3]), ([1, 2, 3], [4, 5, 6, 7])])
def test_texts_that_the_trainer_cannot_divide_are_bad_rows(
    alone: list[int], whole: list[int]
) -> None:
    tokens = {"q": alone, "qa": whole, "qb": [*alone, 9]}
    comparer = PreferenceEncoder(lambda text, **_settings: {"input_ids": tokens[text]}, "cpo")
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRow, match="its prompt has"):
        comparer.prompt_length(row)


def test_a_row_that_the_trainer_cannot_divide_is_named_by_its_line(tmp_path: Path) -> None:
    tokens = {"q": [1, 2], "qa": [3]}
    (tmp_path / "rows.jsonl").write_text('\n\n{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    rows = read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="orpo")
    with pytest.raises(
        TrainingError, match=r"^dataset line 3, whose prompt ends with 'q', cannot be compared: its"
    ):
        preferences_as_text(rows, lambda text, **_settings: {"input_ids": tokens[text]}, 8, "orpo")
