"""Test exports of reward models: merged as PEFT does, and the same scores."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from core.after_training.export import list_exports
from core.after_training.export.card import new_card
from core.after_training.export.plan import Upload, plan_export
from core.after_training.export.sentences import asked_sentence, verified_sentence
from core.after_training.export.serve import serve_lines
from core.after_training.export_checks import can_be_checked
from core.job import SpecError
from core.runs import Home, read
from core.workers.export.forms import write_merged
from core.workers.export.scores import ScoredText, compare_scores
from core.workers.export.task import ExportTask
from tests.builders.exports import AdapterCase, job_over, make_case
from tests.builders.fake_runs import bare_run
from tests.builders.training_runs import FINISHED, make_stage_run, train
from ui.terminal import commands

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "plain": AdapterCase(),
    "tied": AdapterCase(config={"tie_word_embeddings": True}),
    "shards": AdapterCase(shard_size="100KB"),
    "qwen3": AdapterCase(family="qwen3"),
}


def scoring(folder: Path) -> AutoModelForSequenceClassification:
    """Return the model in a folder with a head of one score, in float32."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )


def scoring_case(folder: Path, case: AdapterCase) -> ExportTask:
    """Return the export of a run whose random adapter scores texts."""
    task = make_case(folder, case)
    output = Path(task.request.run_folder) / "output"
    shutil.rmtree(output)
    settings = LoraConfig(
        task_type="SEQ_CLS", init_lora_weights=False, r=4, lora_alpha=12, target_modules=ALL
    )
    get_peft_model(scoring(folder / "base"), settings).save_pretrained(output)
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(output)
    return task


@pytest.mark.parametrize("name", CASES)
def test_merging_a_reward_model_equals_peft(tmp_path: Path, name: str) -> None:
    task = scoring_case(tmp_path, CASES[name])
    job = job_over(tmp_path / "base", stage="reward")
    write_merged(task, job, task.files)
    found = dict(scoring(task.files).state_dict())
    output = Path(task.request.run_folder) / "output"
    merged = PeftModel.from_pretrained(scoring(tmp_path / "base"), output).merge_and_unload()
    wanted = dict(merged.state_dict())
    assert found.keys() == wanted.keys()
    assert torch.equal(found["score.weight"], wanted["score.weight"])
    rounded = {key: tensor.to(torch.bfloat16).float() for key, tensor in wanted.items()}
    others = rounded.keys() - {"score.weight"}
    assert [key for key in others if not torch.equal(found[key], rounded[key])] == []


def test_the_folder_says_what_scores_and_where_padding_begins(tmp_path: Path) -> None:
    task = scoring_case(tmp_path, CASES["plain"])
    write_merged(task, job_over(tmp_path / "base", stage="reward"), task.files)
    config = json.loads((task.files / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert not (task.files / "generation_config.json").exists()
    score = pipeline("text-classification", str(task.files), function_to_apply="none")
    alone, padded = score("hello"), score(["hello", "hello, who are you"], batch_size=2)[0]
    assert alone[0]["score"] == pytest.approx(padded["score"], abs=0.02)


def text(score: float, *tokens: int) -> ScoredText:
    return ScoredText("Who are you?", "training rows", tokens, score)


@pytest.mark.parametrize(
    ("exported", "note"),
    [
        (text(2.05, 1, 2), ""),
        (text(2.2, 1, 2), "has another score"),
        (text(2.0, 1, 3), "is other tokens"),
    ],
)
def test_scores_and_tokens_must_be_the_same(exported: ScoredText, note: str) -> None:
    verified = compare_scores([text(2.0, 1, 2)], [exported], "result")
    assert verified.trusted == (not note)
    assert note in verified.note


@pytest.mark.training
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_exported_reward_model_scores_as_trained(
    home: Home, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_stage_run(home.runs / "judge", "reward", method=method)
    assert train(folder) == FINISHED
    capsys.readouterr()
    words = {"home": str(home.path), "run": "judge", "to": "merged"}
    assert commands.run("export", **words, json=True) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert verified["trusted"]
    assert verified["same_answers"] == 16
    (export,) = list_exports(read(home, "judge"))
    assert "16 of 16 scores as trained" in verified_sentence(export.verified)
    assert asked_sentence(export.manifest) == "Texts: 16 of training rows."
    assert not can_be_checked(export)
    assert [name for name, _lines in serve_lines(export)] == ["transformers"]


def test_a_reward_model_is_no_gguf_file(home: Home) -> None:
    folder = bare_run(home, "judge", model="demo", dataset="demo", stage="reward")
    (folder / "output").mkdir()
    run = read(home, "judge")
    with pytest.raises(SpecError, match="a GGUF file is to answer; choose merged or hub"):
        plan_export(run, "gguf")
    with pytest.raises(SpecError, match="add --send merged or adapter"):
        plan_export(run, "hub", upload=Upload("me/model", "gguf"))
    assert "pipeline_tag: text-classification" in new_card(run, "me/model", "adapter")
