"""Compare the parameters of a shape with published counts and with transformers itself."""

import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError
from math import prod

import pytest

from core.job import UnknownArchitecture
from core.models import PRESETS_DIR, ModelPreset, ModelShape, Parameter, models
from core.models.shapes import FAMILIES

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
}
EXPERTS = {
    "num_experts": 6,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}

every_model = pytest.mark.parametrize("model", models().values(), ids=lambda model: model.id)
every_family = pytest.mark.parametrize("model_type", FAMILIES)


def shape(**changes: object) -> ModelShape:
    return ModelShape.from_config({**LLAMA, **changes})


def of_family(model_type: str, **changes: object) -> dict[str, object]:
    """Return a small config.json of a family."""
    config = {**LLAMA, **EXPERTS, "head_dim": 16, "sliding_window": 128, **changes}
    if FAMILIES[model_type].is_multimodal:
        return {
            "model_type": model_type,
            "text_config": {**config, "model_type": f"{model_type}_text"},
        }
    return {**config, "model_type": model_type}


def names(tensors: tuple[Parameter, ...]) -> list[str]:
    return [tensor.name for tensor in tensors]


@every_model
def test_a_preset_has_the_published_number_of_parameters(model: ModelPreset) -> None:
    assert model.shape.num_parameters == model.num_parameters


def test_the_menu_has_models_enough() -> None:
    assert len(models()) >= 60


def test_every_family_has_a_preset() -> None:
    multimodal = {"gemma3"}  # its class also has a vision part, which the shape leaves out
    assert {model.shape.model_type for model in models().values()} == set(FAMILIES) - multimodal


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnknownArchitecture, match="'mamba' is not known"):
        shape(model_type="mamba")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", 7),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("intermediate_size", -96),
        ("vocab_size", 0),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", None),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 3),
        ("head_dim", [16]),
        ("tie_word_embeddings", "true"),
        ("attention_bias", 1),
        ("final_logit_softcapping", -30.0),
        ("hidden_act", {}),
    ],
)
def test_a_bad_value_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: .*{key}"):
        shape(**{key: value})


@pytest.mark.parametrize("key", [key for key in LLAMA if key != "num_key_value_heads"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is missing"):
        ModelShape.from_config({each: value for each, value in LLAMA.items() if each != key})


def test_a_model_without_key_value_heads_has_one_for_each_query_head() -> None:
    assert shape(num_key_value_heads=None).num_key_value_heads == 4


def test_a_head_dim_of_its_own_goes_before_the_even_share() -> None:
    assert (shape().head_dim, shape(head_dim=32).head_dim) == (16, 32)


def test_a_tied_head_counts_once() -> None:
    tied, untied = shape(tie_word_embeddings=True), shape(tie_word_embeddings=False)
    assert untied.num_parameters - tied.num_parameters == 100 * 64
    assert names(tied.outer_parameters()) == ["model.embed_tokens.weight", "model.norm.weight"]
    assert names(untied.outer_parameters())[-1] == "lm_head.weight"


@every_family
def test_tensors_are_the_outer_ones_and_those_of_every_layer(model_type: str) -> None:
    model = ModelShape.from_config(of_family(model_type))
    inner = [
        f"model.layers.{i}.{name}" for i in range(4) for name in names(model.layer_parameters(i))
    ]
    assert sorted(names(model.parameters())) == sorted([*names(model.outer_parameters()), *inner])
    assert model.num_parameters == sum(tensor.numel for tensor in model.parameters())


@every_family
def test_linear_weights_are_matrices_of_modules_that_an_adapter_can_target(model_type: str) -> None:
    for tensor in ModelShape.from_config(of_family(model_type)).parameters():
        assert tensor.numel == prod(tensor.shape)
        assert tensor.is_linear == (
            tensor.module.endswith("_proj") and len(tensor.shape) == 2 and tensor.role != "expert"
        )


def test_the_head_is_no_linear_weight_of_a_block() -> None:
    assert not any(tensor.is_linear for tensor in shape().outer_parameters())


@every_family
def test_a_shape_is_hashable_and_frozen(model_type: str) -> None:
    model = ModelShape.from_config(of_family(model_type))
    assert hash(model) == hash(ModelShape.from_config(of_family(model_type)))
    with pytest.raises(FrozenInstanceError):
        model.hidden_size = 1  # type: ignore[misc]


def test_a_mixture_of_experts_may_have_dense_layers() -> None:
    model = ModelShape.from_config(
        of_family("qwen3_moe", mlp_only_layers=[3], decoder_sparse_step=2)
    )
    assert [model.has_experts(layer) for layer in range(4)] == [False, True, False, False]
    assert "mlp.gate_proj.weight" in names(model.layer_parameters(0))
    assert "mlp.experts.gate_up_proj" in names(model.layer_parameters(1))


def test_a_router_cannot_choose_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="num_experts_per_tok"):
        ModelShape.from_config(of_family("mixtral", num_experts_per_tok=7))


def test_the_text_part_of_a_multimodal_model_is_that_of_the_text_model() -> None:
    whole, text = (ModelShape.from_config(of_family(name)) for name in ("gemma3", "gemma3_text"))
    assert whole.parameters() == text.parameters()


def test_a_multimodal_model_without_a_text_config_is_refused() -> None:
    with pytest.raises(ValueError, match="text_config is missing"):
        ModelShape.from_config({"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("model_type", "changes", "sliding"),
    [
        ("llama", {}, []),
        ("mistral", {}, [0, 1, 2, 3]),
        ("mistral", {"sliding_window": None}, []),
        ("qwen2", {"use_sliding_window": False}, []),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, [3]),
        ("qwen3_moe", {"use_sliding_window": True}, [0, 1, 2, 3]),
        ("smollm3", {"use_sliding_window": True}, [3]),
        ("gemma2", {}, [0, 2]),
        ("gemma3_text", {"sliding_window_pattern": 3}, [0, 1, 3]),
        ("gpt_oss", {}, [0, 2]),
        ("gpt_oss", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, [3]),
    ],
)
def test_the_sliding_layers_are_those_of_the_family(
    model_type: str, changes: dict[str, object], sliding: list[int]
) -> None:
    model = ModelShape.from_config(of_family(model_type, **changes))
    assert [i for i, kind in enumerate(model.layer_types) if kind == "sliding_attention"] == sliding
    assert model.sliding_window == (128 if sliding else None)


def test_layer_types_must_be_one_for_each_layer() -> None:
    with pytest.raises(ValueError, match="layer_types has 1 items"):
        ModelShape.from_config(of_family("gpt_oss", layer_types=["full_attention"]))


def test_shapes_are_read_without_torch() -> None:
    heavy = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, core.models.shapes; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def parameters_in_transformers(config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and sizes of the (text) model that transformers builds from a config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = config.get("text_config", config)
    assert isinstance(text, dict)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text))
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
@every_family
def test_tensors_are_those_of_transformers(model_type: str, biased: bool) -> None:
    config = of_family(
        model_type,
        attention_bias=biased,
        mlp_bias=biased,
        tie_word_embeddings=biased,
        pad_token_id=0,
    )
    shape = ModelShape.from_config(config)
    assert [
        (tensor.name, tensor.shape) for tensor in shape.parameters()
    ] == parameters_in_transformers(config)


@pytest.mark.slow
@every_family
def test_families_that_scale_residuals_are_those_of_transformers(
    model_type: str,
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type).get_text_config()
    assert FAMILIES[model_type].scales_residuals == hasattr(config, "residual_multiplier")


@pytest.mark.slow
@every_model
def test_a_preset_has_the_tensors_of_transformers(model: ModelPreset) -> None:
    config = tomllib.loads((PRESETS_DIR / "models.toml").read_text(encoding="utf-8"))[model.id][
        "config"
    ]
    found = [(tensor.name, tensor.shape) for tensor in model.shape.parameters()]
    assert found == parameters_in_transformers(config)
