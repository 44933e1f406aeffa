"""Adapters on the experts of a mixture: how a job names them, and how they are read again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

from core.job import JobSpec
from core.memory import estimate
from core.models import ModelShape, settings_of_adapter
from core.models.shapes import FAMILIES
from core.models.weights import require_adapter_fits
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.contract.weights.adapters import read_adapter
from core.training.contract.weights.files import UnusableWeights
from core.training.contract.weights.parameters import AdaptedParameter, adapted_parameters
from core.training.model.adapter import add_adapter, lora_config
from core.training.model.experts import has_experts, shapes_of
from tests.builders.estimates import GPU
from tests.builders.mixtures import (
    GPT_OSS,
    MIXTRAL,
    MIXTURES,
    QWEN3,
    Mixture,
    adapted,
    changed_settings,
    logits,
    without_tensor,
)

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def settings_for(mixture: Mixture, **fields: Any) -> Any:
    job = Job(model="", dataset="", target_modules=mixture.target_modules, **fields)
    return lora_config(job, mixture.model())


def read_again(folder: Path, mixture: Mixture) -> Any:
    return add_adapter(mixture.model(), read_adapter(folder), "adapter", is_trainable=True)


@pytest.mark.parametrize("name", MIXTURES)
def test_an_adapter_on_experts_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    written = adapted(MIXTURES[name])
    written.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(read_again(tmp_path, MIXTURES[name])), logits(written), rtol=0, atol=0
    )


def test_an_adapter_on_experts_changes_the_answers() -> None:
    assert not torch.allclose(logits(adapted(QWEN3)), logits(QWEN3.model()), atol=1e-3)


def test_ranks_and_rslora_are_read_as_written(tmp_path: Path) -> None:
    written = adapted(MIXTRAL, use_rslora=True, lora_r=3)
    written.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(read_again(tmp_path, MIXTRAL)), logits(written), rtol=0, atol=0
    )


def test_fused_experts_have_twice_the_rank(tmp_path: Path) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    found = adapted_parameters(read_adapter(tmp_path), shapes_of(MIXTRAL.model()))
    experts = "model.layers.0.mlp.experts"
    assert found[:2] == (
        AdaptedParameter(f"{experts}.gate_up_proj", f"{experts}.base_layer", (4, 96, 32), 8),
        AdaptedParameter(f"{experts}.down_proj", experts, (4, 32, 48), 4),
    )


def test_names_of_parameters_mean_experts() -> None:
    assert settings_for(GPT_OSS).target_parameters == ["down_proj", "gate_up_proj"]


def test_names_of_layers_stay_layers() -> None:
    assert settings_for(GPT_OSS).target_modules == ["q_proj"]


@pytest.mark.parametrize("name", MIXTURES)
def test_all_linear_leaves_out_experts(name: str) -> None:
    mixture = Mixture(MIXTURES[name].family, "all-linear", MIXTURES[name].config)
    assert not settings_for(mixture).target_parameters


def test_a_dense_model_has_no_experts() -> None:
    assert not has_experts(Mixture("llama", "q_proj").model())


@pytest.mark.parametrize(
    ("target_modules", "named"),
    [("q_proj,down_proj", "down_proj hold all experts"), ("q_proj", ""), ("all-linear", "")],
)
def test_an_adapter_on_experts_is_announced(
    target_modules: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_for(Mixture("qwen3_moe", target_modules, QWEN3.config))
    printed = capsys.readouterr().out
    assert named in printed
    assert bool(printed) == bool(named)


@pytest.mark.parametrize("target_modules", ["in_proj,x_proj", "q_proj,conv1d"])
def test_convolutions_with_three_dimensions_are_no_experts(
    target_modules: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hybrid = Mixture("jamba", target_modules, {"attn_layer_period": 2, "attn_layer_offset": 1})
    settings_for(hybrid)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout: PEFT has none for gate_up_proj, down_proj"),
        ({"use_dora": True}, "use_dora: PEFT has none"),
        ({"init_lora_weights": "pissa"}, "choose default"),
    ],
)
def test_what_experts_cannot_have_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        settings_for(MIXTRAL, **fields)


def test_half_of_fused_experts_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"target_modules: Cannot convert.* w1 .*targeting w3"):
        settings_for(Mixture("mixtral", "w1"))


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_an_adapter_that_peft_cannot_load_is_refused(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="is on beside target_parameters"):
        read_adapter(changed_settings(tmp_path, **setting))


@pytest.mark.parametrize("name", [name for name in MIXTURES if MIXTURES[name].family in FAMILIES])
def test_the_estimate_counts_what_trains(name: str) -> None:
    model = adapted(MIXTURES[name])
    asked = {"lora_r": 4, "target_modules": MIXTURES[name].target_modules, "max_length": 64}
    shape = ModelShape.from_config(MIXTURES[name].model().config.to_dict())
    found = estimate(JobSpec.parse({"model": "m", "dataset": "demo", **asked}), shape, GPU)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert found.num_trainable_parameters == trained


@pytest.mark.parametrize("name", [name for name in MIXTURES if MIXTURES[name].family in FAMILIES])
def test_an_adapter_that_is_continued_is_counted_as_it_is(name: str, tmp_path: Path) -> None:
    adapted(MIXTURES[name]).save_pretrained(tmp_path)
    shape = ModelShape.from_config(MIXTURES[name].model().config.to_dict())
    settings = settings_of_adapter(tmp_path, shape)
    asked = set(MIXTURES[name].target_modules.split(","))
    assert set(str(settings["target_modules"]).split(",")) == asked


def test_an_adapter_of_another_shape_is_refused_before_a_run(tmp_path: Path) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    other = Mixture("mixtral", "", {"num_local_experts": 2}).model().config.to_dict()
    with pytest.raises(UnusableWeights, match=r"is 2 × 96 × 32 in the model"):
        require_adapter_fits(read_adapter(tmp_path), ModelShape.from_config(other), "m")


def test_experts_without_matrices_are_refused(tmp_path: Path) -> None:
    folder = without_tensor(adapted(MIXTRAL), tmp_path, "layers.1.mlp.experts.base_layer")
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp.*no matrices for it"):
        read_again(folder, MIXTRAL)


def test_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    other = Mixture("mixtral", MIXTRAL.target_modules, {"num_local_experts": 2})
    with pytest.raises(TrainingError, match=r"is 2 × 96 × 32 in the model, with rank 8"):
        read_again(tmp_path, other)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="which the model does not have: choose"):
        read_again(tmp_path, Mixture("mistral", "q_proj"))


def test_a_second_adapter_of_the_same_kind_can_be_compared_with(tmp_path: Path) -> None:
    model = adapted(QWEN3)
    model.add_adapter("ref", model.peft_config["default"])
    assert len(get_peft_model_state_dict(model, adapter_name="ref")) == 12


def test_names_of_experts_are_never_run_as_patterns(tmp_path: Path) -> None:
    adapted(MIXTRAL).save_pretrained(tmp_path)
    settings = read_adapter(tmp_path).settings
    assert settings["rank_pattern"] == {"gate_up_proj": 8}


def test_the_base_is_the_same_with_the_adapter_off(tmp_path: Path) -> None:
    adapted(QWEN3).save_pretrained(tmp_path)
    loaded = read_again(tmp_path, QWEN3)
    with loaded.disable_adapter():
        found = logits(loaded)
    torch.testing.assert_close(found, logits(QWEN3.model()), rtol=0, atol=0)


def test_the_mixtures_are_mixtures() -> None:
    assert all(has_experts(mixture.model()) for mixture in MIXTURES.values())
