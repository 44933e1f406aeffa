"""Tables of presets/: every row is sound, and a broken one is refused by name."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from core.job import JobSpec, PresetError
from core.models import PRESETS_DIR, Gpu, ModelPreset, demo_fields, gpus, models
from core.models.presets import read_gpus, read_models
from core.training.contract.stages import STAGES

GIB = 2**30

every_gpu = pytest.mark.parametrize("gpu", gpus().values(), ids=lambda gpu: gpu.id)

CARD = """
[card]
name = "Card"
memory_mib = 24564
compute_capability = "8.9"
bf16 = true
memory_bandwidth_gb_per_second = 1008
tflops = 165.2
sources = ["memory, bandwidth, tflops: its datasheet"]
"""

MODEL = """
["owner/model"]
name = "Model"
family = "Llama 3"
license = "mit"
num_parameters = 1
source = "its config.json"

["owner/model".config]
model_type = "llama"
hidden_act = "silu"
hidden_size = 8
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
vocab_size = 32
max_position_embeddings = 64
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text, encoding="utf-8")
    return path


def line_replaced(text: str, key: str, line: str) -> str:
    return re.sub(rf"^{key} = .*$", line, text, flags=re.MULTILINE)


def test_the_menu_has_cards_enough() -> None:
    assert len(gpus()) >= 35


def test_the_menu_lists_cards_in_file_order() -> None:
    text = (PRESETS_DIR / "gpus.toml").read_text(encoding="utf-8")
    assert list(gpus()) == re.findall(r"^\[(.+)\]$", text, flags=re.MULTILINE)


def test_no_two_cards_have_the_same_name() -> None:
    assert len({gpu.name for gpu in gpus().values()}) == len(gpus())


@every_gpu
def test_a_card_has_an_id_in_kebab_case(gpu: Gpu) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", gpu.id)


@every_gpu
def test_a_card_has_sane_numbers(gpu: Gpu) -> None:
    assert 4 * GIB < gpu.capacity_bytes < 300 * GIB
    assert 200e9 < gpu.memory_bandwidth_bytes_per_second < 20e12
    assert 15e12 < gpu.flops < 5e15
    assert gpu.usd_per_hour is None or 0.1 < gpu.usd_per_hour < 20


@every_gpu
def test_a_card_computes_in_bfloat16_from_compute_capability_8_on(gpu: Gpu) -> None:
    assert gpu.supports_bf16 == (gpu.compute_capability >= (8, 0))


@every_gpu
def test_a_card_cites_a_source_for_every_number(gpu: Gpu) -> None:
    cited = [word for source in gpu.sources for word in source.partition(": ")[0].split(", ")]
    priced = ["price"] if gpu.usd_per_hour is not None else []
    linked = ["link"] if gpu.link_bytes_per_second is not None else []
    assert sorted(cited) == sorted(["memory", "bandwidth", "tflops", *priced, *linked])


def test_a_card_is_read_into_bytes_and_flops_per_second() -> None:
    gpu = gpus()["rtx-4090"]
    assert gpu.capacity_bytes == 24564 * 2**20
    assert gpu.memory_bandwidth_bytes_per_second == 1008e9
    assert gpu.flops == pytest.approx(165.2e12)
    assert gpu.compute_capability == (8, 9)


def test_a_card_without_a_price_has_none(tmp_path: Path) -> None:
    assert read_gpus(written(tmp_path, CARD))["card"].usd_per_hour is None


@pytest.mark.parametrize(
    ("key", "line", "problem"),
    [
        ("name", 'name = " "', "is empty"),
        ("memory_mib", 'memory_mib = "24 GB"', "is not a whole number"),
        ("memory_mib", "memory_mib = 0", "is not above 0"),
        ("memory_mib", "memory_mib = true", "is not a whole number"),
        ("compute_capability", "compute_capability = 8.9", "is not a text"),
        ("compute_capability", 'compute_capability = "sm_89"', "is not written like"),
        ("bf16", "bf16 = 1", "is not true or false"),
        ("tflops", "", "is missing"),
        ("tflops", "tflops = nan", "is not above 0"),
        ("tflops", "tflops = inf", "is not above 0"),
        ("sources", "sources = []", "is not a list of texts"),
        ("sources", "sources = [1]", "is not a list of texts"),
    ],
)
def test_a_bad_card_is_refused_by_file_table_and_key(
    tmp_path: Path, key: str, line: str, problem: str
) -> None:
    path = written(tmp_path, line_replaced(CARD, key, line))
    with pytest.raises(PresetError, match=rf"some\.toml: \[card\]: {key}: .*{problem}"):
        read_gpus(path)


def test_a_mistyped_key_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, CARD + "usd_per_hours = 1.0\n")
    with pytest.raises(PresetError, match="usd_per_hours: unknown key"):
        read_gpus(path)


@pytest.mark.parametrize(
    "text", ["[card", CARD + CARD, "\x00"], ids=["not toml", "the same card twice", "binary"]
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PresetError, match=r"some\.toml: cannot be read"):
        read_gpus(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="cannot be read"):
        read_gpus(tmp_path / "none.toml")


def test_a_value_outside_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"some\.toml: card: 1 is not a table"):
        read_gpus(written(tmp_path, "card = 1"))


def test_a_base_model_is_read_with_its_shape(tmp_path: Path) -> None:
    model = read_models(written(tmp_path, MODEL))["owner/model"]
    assert isinstance(model, ModelPreset)
    assert (model.id, model.shape.hidden_size) == ("owner/model", 8)


@pytest.mark.parametrize(
    ("key", "line", "said"),
    [
        ("license", "", "license: is missing"),
        ("num_parameters", "num_parameters = 8.0", "num_parameters: 8.0 is not a whole number"),
        ("hidden_size", "", "config: .*hidden_size"),
        ("model_type", 'model_type = "abacus"', "config: .*abacus"),
    ],
)
def test_a_bad_base_model_is_refused_by_table_and_key(
    tmp_path: Path, key: str, line: str, said: str
) -> None:
    path = written(tmp_path, line_replaced(MODEL, key, line))
    with pytest.raises(PresetError, match=rf"\[owner/model\]: {said}"):
        read_models(path)


def test_base_models_are_keyed_by_their_hub_ids() -> None:
    assert models()
    assert all(
        key == model.id and re.fullmatch(r"[\w.-]+/[\w.-]+", key) for key, model in models().items()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_demo_is_a_job_of_every_stage(stage: str) -> None:
    assert JobSpec.parse({"stage": stage, **demo_fields(stage)}).model == "demo"


def test_the_demo_brings_its_own_data() -> None:
    assert demo_fields()["dataset"] == "demo"


def test_the_demo_takes_smaller_steps_after_its_first_stage() -> None:
    first, second = (JobSpec.parse(demo_fields(stage)).learning_rate for stage in ("sft", "dpo"))
    assert second < first


def test_presets_are_read_once_and_cannot_be_changed() -> None:
    assert gpus() is gpus()
    with pytest.raises(FrozenInstanceError):
        gpus()["t4"].name = "T5"  # type: ignore[misc]
    with pytest.raises(TypeError):
        demo_fields()["model"] = "other"  # type: ignore[index]
