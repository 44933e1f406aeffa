"""Shapes in which people publish rows: the trainer of a stage gets the tokens of the preview."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.training.contract.job import Job
from core.training.contract.row_formats import ROW_FORMATS_BY_ID, accepts
from core.training.contract.stages import STAGES
from core.training.data.model_rows import rows_for_model
from core.training.data.prompts import preferences_as_text, prompt_ids, prompts_up_to
from core.training.data.rows import read_rows
from core.training.data.tokenized import IGNORED
from core.training.data.tokens import Tokens
from tests.builders.chat_templates import FAMILIES
from tests.builders.paths import DATA
from tests.builders.preview_rows import model_with_template, open_session

pytestmark = [pytest.mark.training, pytest.mark.slow]
SHAPES: Mapping[str, Mapping[str, Any]] = json.loads(
    (DATA / "real_rows" / "expected.json").read_text(encoding="utf-8")
)
TEMPLATE = next(family.template for family in FAMILIES if family.name == "qwen_3")
"""One that prints tools, calls and thoughts."""
LONG = 100_000
ANSWERS = ("chosen", "rejected")
ANSWER_IDS = ("chosen_ids", "rejected_ids")
IN_EACH_STAGE = [
    (name, stage.id)
    for name, shape in SHAPES.items()
    for stage in STAGES.values()
    if stage.is_trainable and accepts(stage.id, ROW_FORMATS_BY_ID[shape["kind"]])
]

Compared = list[tuple[Any, ...]]
"""Columns of each row that a trainer compares or learns."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_template(tmp_path_factory.mktemp("model"), TEMPLATE)


def previewed(file: Path, model: Path, stage: str) -> Compared:
    """Return what the preview shows of each row, as `trained` returns it."""
    session = open_session(file, model, stage=stage, use_chat_template=True)
    found: Compared = []
    for index in range(len(session.rows)):
        row = session.plain_text.row(session.rows.row(index), session.tokenizer)
        found += _columns(session.encoder.encode_all(row, with_text=True), stage)
    return found


def _columns(texts: Sequence[Tokens], stage: str) -> Compared:
    facts = STAGES[stage]
    ids = [tuple(each.ids) for each in texts]
    if facts.takes_pairs_as_text:
        return [tuple(each.text for each in texts)]
    if facts.generates:
        return [(each,) for each in ids]
    begins = [each.first_in_loss for each in texts]
    if "unpaired preference" in facts.dataset_types:
        return list(zip(ids, begins, strict=True))
    if len(texts) == 2:
        is_compared_whole = facts.head == "score"
        return [(*ids, 0 if is_compared_whole else begins[0])]
    (text,) = texts
    pairs = zip(text.ids, text.loss_mask, strict=True)
    return [(*ids, tuple(token if counts else IGNORED for token, counts in pairs))]


def trained(file: Path, model: Path, stage: str) -> Compared:
    """Return what the trainer of a stage gets of each row."""
    from core.training.model.load import LoadedModel, choose_precision
    from core.training.trainers.builders import BUILDERS

    job = Job(model=str(model), dataset=file.name, stage=stage)
    tokenizer, rows = rows_for_model(job, read_rows(file.parent, file.name, "", 0, 0, stage=stage))
    facts = STAGES[stage]
    if facts.generates:
        prompts = prompts_up_to(rows, tokenizer, LONG)["train_dataset"]
        return [(tuple(prompt_ids(row, tokenizer)),) for row in prompts or ()]
    if facts.takes_pairs_as_text:
        texts = preferences_as_text(rows, tokenizer, LONG, stage)["train_dataset"]
        return [tuple(row["prompt"] + row[n] for n in ANSWERS) for row in texts or ()]
    loaded = LoadedModel(None, tokenizer, choose_precision("auto", "full"), adapter=None)
    unshuffled = replace(job, shuffle=False, precompute_ref_log_probs=True)
    plan = BUILDERS[stage](unshuffled, loaded, rows)
    return [_given(row) for row in plan.arguments["train_dataset"]]


def _given(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if "input_ids" in row:
        return tuple(row["input_ids"]), tuple(row["labels"])
    prompt = tuple(row.get("prompt_ids", ()))
    answers = [row[name] for name in (*ANSWER_IDS, "completion_ids") if name in row]
    return (*(prompt + tuple(answer) for answer in answers), len(prompt))


@pytest.mark.parametrize(("name", "stage"), IN_EACH_STAGE)
def test_a_trainer_gets_the_tokens_of_the_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, name: str, stage: str
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    file = Path(shutil.copy(DATA / "real_rows" / f"{name}.jsonl", tmp_path))
    assert trained(file, model, stage) == previewed(file, model, stage)
