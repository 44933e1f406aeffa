"""Preview shows the very tokens that TRL's trainers make of the same rows."""

import copy
from pathlib import Path
from typing import Any

import pytest

from core.training.data.rows import read_rows
from tests.builders.chat_templates import CONVERSATIONS, FAMILIES
from tests.builders.dataset_files import write_json_rows
from tests.builders.paths import DEMO
from tests.builders.preview_rows import PAIRS, ROWS, model_with_template, open_session

IGNORED = -100
QUICK = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none"}

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning"),
]


def demo_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO / "model", trust_remote_code=False)


def demo_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "model", trust_remote_code=False)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("max_length", [24, 1024])
def test_a_preference_has_the_tokens_of_dpo(tmp_path: Path, kind: str, max_length: int) -> None:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    session = open_session(write_json_rows(tmp_path / "rows.jsonl", PAIRS[kind]), stage="dpo")
    model = demo_model()
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(output_dir=str(tmp_path), max_length=max_length, **QUICK),
        train_dataset=read_rows(tmp_path, "rows.jsonl", "", 0.0, 0, stage="dpo").train,
        processing_class=demo_tokenizer(),
    )
    wanted = []
    for index in range(len(session.rows)):
        chosen, rejected = session.encoder.encode_all(session.rows.row(index))
        begin = chosen.first_in_loss
        if begin is not None and begin < max_length:
            prompt, answer, other = chosen.ids[:begin], chosen.ids[begin:], rejected.ids[begin:]
            wanted.append((list(prompt), list(answer), list(other)))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [tuple(row[name] for name in names) for row in trainer.train_dataset] == wanted


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("on_answers", [True, False])
@pytest.mark.parametrize("max_length", [24, 1024])
def test_the_preview_counts_exactly_what_sft_trains(
    tmp_path: Path, kind: str, on_answers: bool, max_length: int
) -> None:
    file = write_json_rows(tmp_path / "rows.jsonl", ROWS[kind])
    session = open_session(file, assistant_only_loss=on_answers)
    wanted = []
    for index in range(len(session.rows)):
        tokens = session.encoder.encode(session.rows.row(index))
        pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
        labels = [id if counts else IGNORED for id, counts in pairs][:max_length]
        if set(labels) != {IGNORED}:
            wanted.append((list(tokens.ids)[:max_length], labels))
    assert _prepared_by_trl(tmp_path, on_answers, max_length) == wanted


def _prepared_by_trl(
    folder: Path, on_answers: bool, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Return (tokens, labels) of each row as SFTTrainer makes them, set up as in builders.py."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = read_rows(folder, "rows.jsonl", "", 0.0, 0)
    on_answers = on_answers and rows.has_marked_answers
    settings = SFTConfig(
        output_dir=str(folder),
        max_length=max_length,
        assistant_only_loss=on_answers and rows.is_language_modeling,
        completion_only_loss=on_answers and not rows.is_language_modeling,
        **QUICK,
    )
    trainer = SFTTrainer(
        model=demo_model(),
        args=settings,
        train_dataset=rows.train,
        processing_class=demo_tokenizer(),
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


UNMARKED = ("llama_3_1", "gemma_3", "mistral_3", "qwen_3", "phi_3", "gpt_oss")
CHATS = [{"messages": CONVERSATIONS[kind]} for kind in ("one answer", "system", "thoughts")]
EXCHANGES = [{"question": "Hi", "answer": "Yes", "system": "Be brief."}]


@pytest.mark.parametrize("rows", [CHATS, EXCHANGES], ids=["messages", "exchanges"])
@pytest.mark.parametrize("name", UNMARKED)
def test_sft_trains_what_the_preview_shows_for_any_template(
    tmp_path: Path, name: str, rows: list[dict[str, Any]]
) -> None:
    family = next(each for each in FAMILIES if each.name == name)
    model = model_with_template(tmp_path, family.template)
    session = open_session(write_json_rows(tmp_path / "rows.jsonl", rows), model)
    shown = []
    for index in range(len(rows)):
        tokens = session.encoder.encode(session.rows.row(index))
        pairs = zip(tokens.ids, tokens.loss_mask, strict=True)
        shown.append([(id, id if counts else IGNORED) for id, counts in pairs])
    assert _given_to_trl(tmp_path, model, packing=False) == shown
    (packed,) = _given_to_trl(tmp_path, model, packing=True)
    assert sorted(packed) == sorted(pair for row in shown for pair in row)


def _given_to_trl(folder: Path, model: Path, packing: bool) -> list[list[tuple[int, int]]]:
    """Return (token, label) of each row that the trainer of builders.py takes."""
    from transformers import AutoTokenizer

    from core.training.contract.job import Job
    from core.training.model.load import LoadedModel, choose_precision
    from core.training.trainers.builders import sft

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    precision = choose_precision("auto", "full")
    plan = sft(
        Job(model=str(model), dataset="rows.jsonl", packing=packing),
        LoadedModel(demo_model(), tokenizer, precision, adapter=None),
        read_rows(folder, "rows.jsonl", "", 0.0, 0),
    )
    settings = plan.config(output_dir=str(folder), max_length=1024, **QUICK, **plan.settings)
    trainer = plan.trainer(
        model=demo_model(), args=settings, processing_class=tokenizer, **plan.arguments
    )
    columns = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    return [list(zip(ids, labels, strict=True)) for ids, labels in columns]
