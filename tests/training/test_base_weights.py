"""Base weights: every tensor of the model comes from its files, or the run ends before step 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.resolve import resolve
from core.training.contract.failures import TrainingError
from core.training.contract.job import Job
from core.training.model.load import choose_precision, quantization_config
from core.training.model.weights import BaseRequest, load_base
from tests.builders import quantized
from tests.builders.model_folders import DEMO_MODEL, change_config, copy_of_demo, rewrite
from tests.builders.training_runs import FINISHED, error_of, make_run, make_stage_run, train

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


def loaded(folder: Path, method: str = "full", **settings: Any) -> Any:
    """Return the model of a folder as a method needs it."""
    precision = choose_precision("auto", method)
    job = Job(model=str(folder), dataset="rows.jsonl", method=method)
    request = BaseRequest(
        str(folder),
        "main",
        precision.weights,
        quantization=quantization_config(job, precision),
        method=method,
        compute_dtype=precision.weights,
        **settings,
    )
    return load_base(request)[0]


def problem(folder: Path, **settings: Any) -> str:
    """Return what is said when a folder is loaded."""
    with pytest.raises(TrainingError) as caught:
        loaded(folder, **settings)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_demo(tmp_path / "model")


def without_layer(name: str) -> bool:
    return ".layers.2." not in name


def times_at_q_proj(factor: float) -> Callable[[str, Any], Any]:
    """Return a change that multiplies the numbers of one tensor."""

    def change(name: str, tensor: Any) -> Any:
        return tensor * factor if name == Q_PROJ else tensor

    return change


# Complete


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "names with a prefix": (
        lambda folder: rewrite(folder, rename=lambda name: f"_orig_mod.{name}"),
        "of the model are not in its files: model.embed_tokens.weight (2048 × 128)",
    ),
    "a layer is missing": (
        lambda folder: rewrite(folder, keep=without_layer),
        "9 tensors of the model are not in its files: model.layers.2.",
    ),
    "the embedding is missing": (
        lambda folder: rewrite(folder, keep=lambda name: "embed" not in name),
        "model.embed_tokens.weight",
    ),
    "a layer too many": (
        lambda folder: change_config(folder, num_hidden_layers=2),
        "in its files have no place in the model: model.layers.2.",
    ),
    "sizes differ": (
        lambda folder: change_config(folder, num_key_value_heads=4),
        "of another size: model.layers.0.self_attn.k_proj.weight is ",
    ),
    "a number is missing": (
        lambda folder: rewrite(folder, times_at_q_proj(float("nan"))),
        f"holds numbers that are infinite or not a number: {Q_PROJ}",
    ),
    "a number is infinite": (
        lambda folder: rewrite(folder, times_at_q_proj(float("inf"))),
        f"holds numbers that are infinite or not a number: {Q_PROJ}",
    ),
}


@pytest.mark.parametrize("change", BROKEN)
def test_weights_that_are_not_the_models_end_the_run(folder: Path, change: str) -> None:
    make, expected = BROKEN[change]
    make(folder)
    assert expected in problem(folder)


@pytest.mark.parametrize("method", ["qlora", "lora-8bit"])
@pytest.mark.parametrize("change", ["a layer is missing", "a number is missing"])
def test_a_base_that_is_quantized_while_loading_is_checked(
    folder: Path, change: str, method: str
) -> None:
    make, expected = BROKEN[change]
    make(folder)
    assert expected.partition(":")[0] in problem(folder, method=method)


def test_old_rotary_tables_are_known_as_unused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(path) | tables, path, metadata={"format": "pt"})
    assert loaded(folder)


def test_names_without_the_models_own_prefix_are_understood(folder: Path) -> None:
    rewrite(folder, rename=lambda name: name.removeprefix("model."))
    expected = load_file(DEMO_MODEL / "model.safetensors")[Q_PROJ].float()
    assert torch.equal(loaded(folder).get_parameter(Q_PROJ), expected)


def test_a_run_over_incomplete_weights_fails_before_its_first_step(tmp_path: Path) -> None:
    folder = copy_of_demo(tmp_path / "model")
    rewrite(folder, keep=without_layer)
    run = make_run(tmp_path / "run", model=str(folder))
    assert "9 tensors of the model are not in its files" in error_of(run)
    assert not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text()


def test_a_score_head_may_be_new_but_nothing_else(folder: Path) -> None:
    request = BaseRequest(str(folder), "main", torch.float32, has_score_head=True)
    assert load_base(request)[1] == {"score.weight"}
    rewrite(folder, keep=without_layer)
    with pytest.raises(TrainingError, match="9 tensors of the model are not in its files"):
        load_base(request)


# Files


def test_adapter_files_left_in_a_merged_folder_are_not_loaded(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "owner/other", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(b"no adapter")
    expected = load_file(DEMO_MODEL / "model.safetensors")[Q_PROJ].float()
    assert torch.equal(loaded(folder).get_parameter(Q_PROJ), expected)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors"])
def test_nothing_outside_the_safetensors_files_is_opened(folder: Path, name: str) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "empty.safetensors").touch()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no file *.safetensors of the folder" in problem(folder)


def test_attention_that_config_names_does_not_beat_the_jobs(folder: Path) -> None:
    change_config(folder, _attn_implementation="eager", attn_implementation="eager")
    model = loaded(folder, attention="sdpa")
    assert model.config._attn_implementation == "sdpa"


# Published forms


@pytest.mark.parametrize("in_blocks", [True, False])
def test_fp8_is_dequantized(tmp_path: Path, in_blocks: bool) -> None:
    model = loaded(quantized.fp8(tmp_path / "model", in_blocks=in_blocks))
    expected = load_file(DEMO_MODEL / "model.safetensors")[Q_PROJ].float()
    largest = float(expected.abs().max())
    found = model.get_parameter(Q_PROJ).detach()
    assert float((found - expected).abs().max()) < largest / 16
    assert getattr(model.config, "quantization_config", None) is None
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_fp8_is_quantized_again_for_qlora(tmp_path: Path) -> None:
    model = loaded(quantized.fp8(tmp_path / "model", in_blocks=True), "qlora")
    assert type(model.get_parameter(Q_PROJ)).__name__ == "Params4bit"
    assert model.is_loaded_in_4bit
    assert model.get_parameter("model.norm.weight").dtype == torch.float32


def test_mxfp4_experts_are_those_of_the_file(tmp_path: Path) -> None:
    folder = quantized.mxfp4_gpt_oss(tmp_path / "model")
    stored = load_file(folder / "model.safetensors")[f"{GATE_UP}_blocks"]
    # Two 4-bit numbers a byte, the low half first, times 2 ** (120 - 127).
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * 2.0**-7
    table = torch.cat([values, -values])
    pairs = torch.stack([table[(stored & 15).long()], table[(stored >> 4).long()]], dim=-1)
    expected = pairs.reshape(*stored.shape[:2], -1).transpose(1, 2)
    assert torch.equal(loaded(folder).get_parameter(GATE_UP).float(), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_are_dequantized(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("compressed_tensors")
    model = loaded(quantized.compressed(tmp_path / "model", bits))
    expected = load_file(DEMO_MODEL / "model.safetensors")[Q_PROJ].float()
    found = model.get_parameter(Q_PROJ).detach()
    assert float((found - expected).abs().max()) < float(expected.abs().max()) / 7


def num_bytes(model: Any) -> int:
    """Return the size of a model's parameters and of what stands beside quantized ones."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


@pytest.mark.parametrize("method", ["full", "qlora", "lora-8bit"])
@pytest.mark.parametrize("in_blocks", [True, False])
def test_fp8_takes_the_memory_of_the_16_bit_model(
    tmp_path: Path, in_blocks: bool, method: str
) -> None:
    folder = quantized.fp8(tmp_path / "model", in_blocks=in_blocks)
    assert num_bytes(loaded(folder, method)) == num_bytes(loaded(DEMO_MODEL, method))


@pytest.mark.parametrize(("bits", "method"), [(4, "qlora"), (8, "lora-8bit")])
def test_bitsandbytes_takes_the_memory_of_its_method(
    tmp_path: Path, bits: int, method: str
) -> None:
    folder = quantized.bitsandbytes(tmp_path / "model", bits)
    assert num_bytes(loaded(folder, method)) == num_bytes(loaded(DEMO_MODEL, method))


def test_mxfp4_takes_the_memory_of_the_estimate(tmp_path: Path) -> None:
    folder = quantized.mxfp4_gpt_oss(tmp_path / "model")
    found = resolve({"model": str(folder), "method": "full"}).estimate()
    weights = next(part.bytes for part in found.components if part.name == "weights")
    assert num_bytes(loaded(folder)) == pytest.approx(weights, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "method"),
    [
        ("fp8 in blocks", "full"),
        ("fp8 per tensor", "lora"),
        ("fp8 in blocks", "qlora"),
        ("compressed in 4 bits", "lora"),
        ("compressed in 8 bits", "qlora"),
        ("mxfp4", "lora"),
        ("mxfp4", "qlora"),
        ("mxfp4", "full"),
        ("bitsandbytes 4", "qlora"),
        ("bitsandbytes 8", "lora-8bit"),
    ],
)
def test_a_published_form_trains(tmp_path: Path, form: str, method: str) -> None:
    if form.startswith("compressed"):
        pytest.importorskip("compressed_tensors")
    folder = quantized.FORMS[form](tmp_path / "model")
    run = make_run(tmp_path / "run", model=str(folder), method=method, max_steps=2)
    assert train(run) == FINISHED


@pytest.mark.slow
def test_the_reference_of_an_online_stage_is_the_model_itself(tmp_path: Path) -> None:
    folder = quantized.fp8(tmp_path / "model", in_blocks=True)
    run = make_stage_run(
        tmp_path / "run", "grpo", model=str(folder), method="full", beta=0.1, max_steps=1
    )
    assert train(run) == FINISHED


def test_a_form_of_another_method_is_refused(tmp_path: Path) -> None:
    folder = quantized.named(tmp_path / "model", quant_method="bitsandbytes", load_in_4bit=True)
    assert "choose the method qlora" in problem(folder, method="lora")


# Resuming


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_checkpoint_without_a_weight_is_not_resumed(tmp_path: Path, method: str) -> None:
    from core.training.checkpoints import seal
    from core.training.contract.checkpoint_files import read_manifest

    run = make_run(tmp_path / "run", method=method, max_steps=2, save_steps=1)
    assert train(run) == FINISHED
    shutil.rmtree(run / "output")
    shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    checkpoint = run / "checkpoints" / "checkpoint-1"
    path = checkpoint / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    tensors = load_file(path)
    dropped = sorted(name for name in tensors if "layers.1" in name)[0]
    del tensors[dropped]
    save_file(tensors, path, metadata={"format": "pt"})
    manifest = dict(read_manifest(checkpoint))
    del manifest["files"]
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, manifest)
    assert f"does not hold the weights of this model: {dropped}" in error_of(run)


def test_one_end_of_an_answer_stays_one(folder: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.model.ends import stop_at_all_ends

    model = loaded(folder)
    stop_at_all_ends(model, AutoTokenizer.from_pretrained(folder))
    assert model.generation_config.eos_token_id == 2


def test_an_end_that_the_tokenizer_does_not_have_is_left_out(folder: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.model.ends import stop_at_all_ends

    model = loaded(folder)
    model.generation_config.eos_token_id = [99_999, 2]
    stop_at_all_ends(model, AutoTokenizer.from_pretrained(folder))
    assert model.generation_config.eos_token_id == 2


def test_a_tokenizer_that_raises_is_said_in_words(folder: Path) -> None:
    from core.training.data.tokenizer import load_tokenizer

    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(TrainingError, match="cannot be read: its files are damaged or incomplete"):
        load_tokenizer(str(folder), "main", is_conversational=False)


def test_a_model_stops_at_the_end_of_its_templates_turns(folder: Path) -> None:
    from transformers import AutoTokenizer

    from core.training.model.ends import stop_at_all_ends

    for name, end in (("tokenizer_config.json", "<|endoftext|>"), ("generation_config.json", 0)):
        settings = json.loads((folder / name).read_text())
        key = "eos_token" if name.startswith("tokenizer") else "eos_token_id"
        (folder / name).write_text(json.dumps({**settings, key: end}))
    model = loaded(folder)
    stop_at_all_ends(model, AutoTokenizer.from_pretrained(folder))
    assert model.generation_config.eos_token_id == [0, 2]
