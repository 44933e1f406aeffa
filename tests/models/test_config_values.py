"""Values of config.json: a wrong one is refused from the files alone, and no sound one is."""

import json
from pathlib import Path

import pytest

from core.job import ModelNotFound
from core.models import find_model, models
from core.models.architectures import language_model_types
from core.models.config_values import ACTIVATIONS, require_sound_values
from tests.builders.model_folders import change_config, copy_of_demo

WRONG: list[tuple[str, object, str]] = [
    ("rope_scaling", {"rope_type": "spiral", "factor": 2.0}, "the rope_type of rope_scaling"),
    ("rope_scaling", {"type": "spiral", "factor": 2.0}, "the rope_type of rope_scaling"),
    ("rope_scaling", {"rope_type": ["yarn"]}, "the rope_type of rope_scaling"),
    ("rope_scaling", {"rope_type": "yarn"}, "has no factor"),
    ("rope_scaling", {"rope_type": "linear", "factor": "2"}, "factor of rope_scaling"),
    ("rope_scaling", {"rope_type": "linear", "factor": 0}, "factor of rope_scaling"),
    ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "has no low_freq_factor"),
    ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0] * 16}, "has no long_factor"),
    (
        "rope_scaling",
        {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 16},
        "short_factor of rope_scaling has 3 numbers; it must have 16",
    ),
    ("rope_scaling", "yarn", 'rope_scaling is "yarn"'),
    ("rope_parameters", {"full_attention": {"rope_type": "spiral"}}, "of full_attention"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": -1}, "rope_theta"),
    ("hidden_act", "silly", 'hidden_act is "silly"'),
    ("hidden_act", 7, "hidden_act is 7"),
    ("rms_norm_eps", 0.0, "rms_norm_eps is 0.0"),
    ("rms_norm_eps", 1, "rms_norm_eps is 1; it must be a number written with a point"),
    ("rms_norm_eps", "1e-6", 'rms_norm_eps is "1e-6"'),
    ("rms_norm_eps", float("nan"), "rms_norm_eps is NaN"),
    ("attention_dropout", 1.5, "attention_dropout is 1.5; it must be a number from 0 to below 1"),
    ("attention_bias", "no", 'attention_bias is "no"'),
    ("tie_word_embeddings", "true", 'tie_word_embeddings is "true"'),
    ("use_cache", [True], "use_cache is [true]; it must be true or false"),
    ("vocab_size", True, "vocab_size is true"),
    ("use_cache", 3, "use_cache is 3; it must be true or false"),
    ("initializer_range", "0.02", 'initializer_range is "0.02"'),
    ("pad_token_id", 999_999, "pad_token_id is 999999; it must be below vocab_size"),
    ("eos_token_id", "two", 'eos_token_id is "two"; it must be a whole number or a list'),
    ("eos_token_id", ["two"], 'eos_token_id is ["two"]'),
    ("dtype", "half", 'dtype is "half"; it must be one of float32'),
    ("torch_dtype", "64", 'torch_dtype is "64"'),
    ("initializer_range", float("nan"), "initializer_range is NaN"),
    ("output_hidden_states", "yes", 'output_hidden_states is "yes"'),
    ("layer_types", "full_attention", 'layer_types is "full_attention"; it must be a list'),
    ("layer_types", ["full_attention"], "layer_types has 1 items"),
    ("num_key_value_heads", 3, "num_key_value_heads 3 does not divide"),
    ("num_attention_heads", -4, "num_attention_heads is -4"),
    ("hidden_size", "64", 'hidden_size is "64"; it must be a whole number'),
    ("max_position_embeddings", 0, "max_position_embeddings is 0"),
    ("vocab_size", 2049, "of another size"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_a_wrong_value_is_refused_in_words(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    folder = copy_of_demo(tmp_path / "model")
    change_config(folder, **{key: value})
    try:
        problems = list(find_model(str(folder)).problems("sft", "lora"))
    except ModelNotFound as error:
        problems = list(error.problems)
    assert problems
    assert said in str(problems[0])
    assert problems[0].fix


@pytest.mark.parametrize("name", ["chunked_attention", "spiral"])
def test_a_layer_type_that_the_family_has_not_is_refused(tmp_path: Path, name: str) -> None:
    config = models()["Qwen/Qwen3-0.6B"].config
    num_layers = int(str(config["num_hidden_layers"]))
    changed = {**config, "sliding_window": 64, "layer_types": [name] * num_layers}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelNotFound, match="layer_types may name"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("model", models().values(), ids=lambda model: model.id)
def test_the_values_of_a_preset_are_sound(model: object) -> None:
    require_sound_values(model.config)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_what_transformers_writes_itself_is_sound() -> None:
    from transformers import CONFIG_MAPPING

    refused = {}
    for model_type in sorted(language_model_types() - {"gemma4_assistant"}):  # has no defaults
        config = CONFIG_MAPPING[model_type]().to_json_string(use_diff=False)
        try:
            require_sound_values(json.loads(config))
        except ValueError as error:
            refused[model_type] = str(error)
    assert not refused


@pytest.mark.parametrize("place", ["config", "rope_parameters"])
def test_a_share_of_a_head_may_be_rotated(place: str) -> None:
    factors = [1.0] * 12
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    config: dict[str, object] = {"hidden_size": 128, "num_attention_heads": 4}
    share = {"partial_rotary_factor": 0.75}
    if place == "config":
        config |= share
    else:
        rope |= share
    require_sound_values({**config, "rope_parameters": rope})


def test_the_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN

    assert set(ACT2FN) == ACTIVATIONS
