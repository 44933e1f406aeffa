"""Forms of published quantized models: what each may be trained by, and what is said otherwise."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core.job import ModelNotFound, SpecError
from core.resolve import resolve
from core.training.contract.methods import METHODS
from core.training.contract.weights.forms import FORMS, published_form
from tests.builders import quantized
from tests.builders.model_folders import rewrite

ALL_METHODS = tuple(METHODS)
BITSANDBYTES_SETTINGS = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
FIND_SPEC = "core.training.contract.weights.forms.find_spec"


def said(folder: Path, method: str) -> str:
    """Return why a method cannot train a model; "" if it can."""
    try:
        resolve({"model": str(folder), "method": method}).require_trainable()
    except (ModelNotFound, SpecError) as error:
        return str(error)
    return ""


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gptq": (
        quantized.gptq,
        "quantized with GPTQ, which needs packages .* gptqmodel optimum, or choose",
    ),
    "awq": (quantized.awq, "quantized with AWQ, which needs a package .* gptqmodel, or choose"),
    "hqq": (
        quantized.hqq,
        "quantized with HQQ, which transformers cannot load; choose the 16-bit model",
    ),
    "compressed in 4 bits": (
        lambda folder: quantized.compressed(folder, 4),
        "quantized with compressed-tensors, .* pip install compressed-tensors",
    ),
    "compressed in 8 bits": (
        lambda folder: quantized.compressed(folder, 8),
        "quantized with compressed-tensors, .* pip install compressed-tensors",
    ),
    "torchao": (
        quantized.torchao,
        "quantized with torchao, which cannot be trained; choose the 16-bit model",
    ),
    "aqlm": (
        quantized.aqlm,
        "quantized with AQLM, which cannot be trained; choose the 16-bit model",
    ),
    "gguf": (quantized.gguf, "GGUF"),
    "gguf that config.json names": (
        lambda folder: quantized.named(folder, quant_method="gguf"),
        "quantized with GGUF, which is for running a model",
    ),
    "another": (
        lambda folder: quantized.named(folder, quant_method="new-method"),
        "quantized with new-method, which is not known here",
    ),
    "none named": (
        lambda folder: quantized.named(folder, bits=4),
        "quantized with a method that it does not name",
    ),
}


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIND_SPEC, lambda module: None)


@pytest.fixture
def every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FIND_SPEC, lambda module: object())


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", REFUSED)
def test_a_form_that_cannot_be_used_is_refused(tmp_path: Path, form: str, method: str) -> None:
    make, expected = REFUSED[form]
    assert re.search(expected, said(make(tmp_path / "model"), method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_blocks", [True, False])
def test_fp8_is_taken_by_every_method(tmp_path: Path, method: str, in_blocks: bool) -> None:
    assert said(quantized.fp8(tmp_path / "model", in_blocks=in_blocks), method) == ""


@pytest.mark.usefixtures("every_package")
@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_a_form_with_its_package_is_taken_by_qlora_alone(tmp_path: Path, form: str) -> None:
    folder = getattr(quantized, form)(tmp_path / "model")
    assert said(folder, "qlora") == ""
    assert "4 bits already, so LoRA cannot train it; choose the method qlora" in said(
        folder, "lora"
    )


@pytest.mark.usefixtures("every_package")
@pytest.mark.parametrize("form", ["hqq", "torchao", "aqlm", "gguf"])
def test_no_package_makes_these_forms_trainable(tmp_path: Path, form: str) -> None:
    make, expected = REFUSED[form]
    assert re.search(expected, said(make(tmp_path / "model"), "qlora"))


@pytest.mark.usefixtures("every_package")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_are_taken_by_every_method(
    tmp_path: Path, bits: int, method: str
) -> None:
    assert said(quantized.compressed(tmp_path / "model", bits), method) == ""


MEMORY: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "fp8 in blocks": (lambda folder: quantized.fp8(folder, in_blocks=True), ALL_METHODS),
    "fp8 per tensor": (lambda folder: quantized.fp8(folder, in_blocks=False), ALL_METHODS),
    "compressed in 4 bits": (lambda folder: quantized.compressed(folder, 4), ALL_METHODS),
    "compressed in 8 bits": (lambda folder: quantized.compressed(folder, 8), ALL_METHODS),
    "gptq": (quantized.gptq, ("qlora",)),
    "gptq in 8 bits": (lambda folder: quantized.gptq(folder, bits=8), ("lora-8bit",)),
    "awq": (quantized.awq, ("qlora",)),
    "bitsandbytes 4": (
        lambda folder: quantized.named(folder, quant_method="bitsandbytes", load_in_4bit=True),
        ("qlora",),
    ),
    "bitsandbytes 8": (
        lambda folder: quantized.named(folder, quant_method="bitsandbytes", load_in_8bit=True),
        ("lora-8bit",),
    ),
}
"""Form -> how to write it, and the methods whose memory is that of the 16-bit model."""


@pytest.mark.usefixtures("every_package")
@pytest.mark.parametrize("form", MEMORY)
def test_a_form_takes_the_memory_of_what_is_loaded(tmp_path: Path, form: str) -> None:
    make, methods = MEMORY[form]
    folder = str(make(tmp_path / "model"))
    for method in methods:
        found = resolve({"model": folder, "method": method})
        settings = {name: getattr(found.job, name) for name in BITSANDBYTES_SETTINGS}
        plain = resolve({"model": "demo", "method": method, **settings})
        assert found.estimate().total_bytes == plain.estimate().total_bytes


@pytest.mark.usefixtures("every_package")
def test_bits_that_cannot_be_trained_are_named(tmp_path: Path) -> None:
    assert "to 3 bits" in said(quantized.gptq(tmp_path / "model", bits=3), "qlora")


@pytest.mark.parametrize(("bits", "method"), [(4, "qlora"), (8, "lora-8bit")])
def test_bitsandbytes_is_taken_by_the_method_of_its_bits(bits: int, method: str) -> None:
    settings = {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
    published = published_form({"quantization_config": settings})
    assert published
    assert [each for each in METHODS if published.problem_with(each) is None] == [method]


def test_a_form_in_the_text_config_is_found() -> None:
    config = {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}
    published = published_form(config)
    assert published
    assert published.form is FORMS["gptq"]


def test_a_plain_model_has_no_form() -> None:
    assert published_form({"model_type": "llama", "quantization_config": None}) is None


def test_the_estimate_takes_the_settings_of_a_4_bit_base(tmp_path: Path) -> None:
    folder = quantized.named(
        tmp_path / "model",
        quant_method="bitsandbytes",
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=False,
    )
    job = resolve({"model": str(folder), "method": "qlora"}).job
    assert (job.bnb_4bit_quant_type, job.bnb_4bit_use_double_quant) == ("fp4", False)


@pytest.fixture
def four_bit(tmp_path: Path) -> str:
    folder = quantized.named(
        tmp_path / "model",
        quant_method="bitsandbytes",
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    return str(folder)


def test_a_profile_chooses_the_method_of_a_4_bit_base(four_bit: str) -> None:
    found = resolve({"model": four_bit, "profile": "fastest"})
    assert found.job.method == "qlora"
    assert found.plan.change["method"] == "qlora"


def test_a_profile_names_the_method_that_was_chosen_before(four_bit: str) -> None:
    found = resolve({"model": four_bit, "profile": "fastest", "method": "qlora"}, set_by_user=())
    assert found.plan.change["method"] == "qlora"


def test_defaults_follow_the_method_that_a_profile_chooses(four_bit: str) -> None:
    found = resolve({"model": four_bit, "profile": "fastest", "method": "full"}, set_by_user=())
    of_qlora = resolve({"model": "demo", "method": "qlora"}).job
    assert found.job.learning_rate == of_qlora.learning_rate


def test_a_profile_leaves_a_method_that_was_given(four_bit: str) -> None:
    with pytest.raises(SpecError, match="so LoRA cannot train it; choose the method qlora"):
        resolve({"model": four_bit, "profile": "fastest", "method": "lora"})


def test_the_cure_of_a_4_bit_base_is_its_method(four_bit: str) -> None:
    with pytest.raises(SpecError) as refused:
        resolve({"model": four_bit})
    cure = refused.value.problems[0].cure
    assert cure is not None
    assert cure.change == {"method": "qlora"}


def test_a_layer_missing_from_a_quantized_model_is_refused(tmp_path: Path) -> None:
    folder = quantized.fp8(tmp_path / "model", in_blocks=False)
    rewrite(folder, keep=lambda name: ".layers.2." not in name)
    assert "are not in its weights: model.layers.2." in said(folder, "lora")


@pytest.mark.parametrize("settings", ["gptq", ["gptq"], 4])
def test_settings_of_another_type_are_refused(settings: object) -> None:
    published = published_form({"quantization_config": settings})
    assert published is not None
    assert "is not known here" in str(published.problem_with("lora"))


def test_capitals_in_the_name_of_a_form_do_not_matter() -> None:
    published = published_form({"quantization_config": {"quant_method": "GPTQ", "bits": 4}})
    assert published is not None
    assert published.form.id == "gptq"
