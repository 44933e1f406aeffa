"""Loading of models as they were trained."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from core.models import DEMO_DIR
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.workers.trained_model import TrainedModel, load_trained

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

JOB = Job(model=str(DEMO_DIR), dataset="")
QUESTION = [{"role": "user", "content": "Who are you?"}]


def answer(trained: TrainedModel) -> str:
    inputs = trained.tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with trained.inference():
        output = trained.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return str(trained.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter that changes what the demo model answers."""
    folder = tmp_path_factory.mktemp("run") / "output"
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(DEMO_DIR), config)
    model.save_pretrained(folder)
    return folder


def test_a_model_without_a_run_answers_and_ends():
    trained = load_trained(JOB, None)
    assert answer(trained) == "I am a small language model.<|im_end|>"
    assert trained.end_ids == (2,)
    assert not trained.has_adapter


def test_an_adapter_can_be_switched_off(adapter: Path):
    trained = load_trained(JOB, adapter)
    assert trained.has_adapter
    assert not answer(trained).startswith("I am a small")
    with trained.without_adapter():
        assert answer(trained) == "I am a small language model.<|im_end|>"
    assert not answer(trained).startswith("I am a small")


def test_weights_of_a_full_training_replace_the_model(tmp_path: Path):
    changed = AutoModelForCausalLM.from_pretrained(DEMO_DIR)
    changed.model.norm.weight.data.zero_()
    changed.save_pretrained(tmp_path / "output")
    job = Job(model=str(DEMO_DIR), dataset="", method="full")
    trained = load_trained(job, tmp_path / "output")
    assert not trained.has_adapter
    assert not answer(trained).startswith("I am a small")


def test_a_damaged_adapter_is_refused_in_words(adapter: Path, tmp_path: Path):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["r"] = 7
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((adapter / name).read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(TrainingError, match="adapter"):
        load_trained(JOB, tmp_path)


def test_a_reward_model_cannot_answer():
    with pytest.raises(TrainingError, match="writes none"):
        load_trained(Job(model=str(DEMO_DIR), dataset="", stage="reward"), None)
