"""The demo model in the forms in which quantized models are published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.builders.model_folders import DEMO_MODEL, change_config, copy_of_demo

LARGEST_FP8 = 448.0
BLOCK = 32
GROUP = 32
"""Weights that share a scale."""
Store = Callable[[str, Any], dict[str, Any]]
"""Function of the name of a layer and its weight to the tensors that stand for it."""


def fp8(folder: Path, *, in_blocks: bool) -> Path:
    """Write the demo in FP8: one scale a block of weights, or one a matrix."""

    def store(base: str, weight: Any) -> dict[str, Any]:
        rows, columns = weight.shape
        size = (BLOCK, BLOCK) if in_blocks else (rows, columns)
        blocks = weight.float().reshape(rows // size[0], size[0], columns // size[1], size[1])
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / LARGEST_FP8
        stored = (blocks / scales).reshape(rows, columns).to(torch.float8_e4m3fn)
        kept = scales.reshape(scales.shape[0], scales.shape[2])
        if not in_blocks:
            kept = kept.reshape(())
        return {f"{base}.weight": stored, f"{base}.weight_scale_inv": kept}

    block = [BLOCK, BLOCK] if in_blocks else None
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    return _written(folder, _stored(store), settings)


def bitsandbytes(folder: Path, bits: int) -> Path:
    """Write the demo as transformers saves it after quantizing with bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    copy_of_demo(folder)
    settings = BitsAndBytesConfig(load_in_8bit=True)
    if bits == 4:
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        DEMO_MODEL, dtype=torch.bfloat16, quantization_config=settings
    )
    model.save_pretrained(folder)
    return folder


def gptq(folder: Path, **settings: object) -> Path:
    """Write a folder with the tensors of GPTQ, filled with zeros."""
    return _packed(folder, {"quant_method": "gptq", "bits": 4, "group_size": 128, **settings})


def awq(folder: Path) -> Path:
    """Write a folder with the tensors of AWQ, filled with zeros."""
    return _packed(folder, {"quant_method": "awq", "bits": 4, "group_size": 128})


def named(folder: Path, **settings: object) -> Path:
    """Write a folder whose config.json names a form; its weights do not matter."""
    return _packed(folder, settings)


def hqq(folder: Path) -> Path:
    """Write the demo with the tensors of HQQ: packed numbers, a scale and a zero a group."""

    def store(base: str, weight: Any) -> dict[str, Any]:
        num_groups = weight.numel() // GROUP
        return {
            f"{base}.W_q": torch.zeros(num_groups, GROUP // 2, dtype=torch.uint8),
            f"{base}.scale": torch.ones(num_groups, 1, dtype=weight.dtype),
            f"{base}.zero": torch.zeros(num_groups, 1, dtype=weight.dtype),
            f"{base}.nbits": torch.tensor(4),
            f"{base}.shape": torch.tensor(weight.shape),
        }

    weights = {"nbits": 4, "group_size": GROUP, "axis": 1}
    settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": weights}}
    return _written(folder, _stored(store), settings)


def compressed(folder: Path, bits: int) -> Path:
    """Write the demo as compressed-tensors stores it: in FP8 with a scale a row, or in 4 bits with
    a scale a group."""
    stored_types = {4: "int", 8: "float"}
    weights: dict[str, object] = {
        "num_bits": bits,
        "type": stored_types[bits],
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
    }
    store = _fp8_rows
    if bits == 4:
        store = _packed_groups
        weights |= {"strategy": "group", "group_size": GROUP}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if bits == 4 else "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return _written(folder, _stored(store), settings)


def torchao(folder: Path) -> Path:
    """Write the demo with the tensors of torchao: whole numbers and a scale a row."""

    def store(base: str, weight: Any) -> dict[str, Any]:
        return {
            f"{base}._weight_qdata": torch.zeros(weight.shape, dtype=torch.int8),
            f"{base}._weight_scale": torch.ones(len(weight), 1, dtype=weight.dtype),
        }

    settings = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnly"}}}
    return _written(folder, _stored(store), settings)


def aqlm(folder: Path) -> Path:
    """Write the demo with the tensors of AQLM: codes, their codebooks and a scale a row."""

    def store(base: str, weight: Any) -> dict[str, Any]:
        rows, columns = weight.shape
        return {
            f"{base}.codes": torch.zeros(rows, columns // 8, 1, dtype=torch.int16),
            f"{base}.codebooks": torch.zeros(1, 256, 1, 8, dtype=torch.float16),
            f"{base}.scales": torch.ones(rows, 1, 1, 1, dtype=torch.float16),
        }

    settings = {"quant_method": "aqlm", "nbits_per_codebook": 16, "num_codebooks": 1}
    return _written(folder, _stored(store), settings)


def gguf(folder: Path) -> Path:
    """Write the demo's other files beside a GGUF file."""
    copy_of_demo(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF\x03\0\0\0")
    return folder


def mxfp4_gpt_oss(folder: Path) -> Path:
    """Write a tiny random gpt-oss with experts in MXFP4, as it is published."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        max_position_embeddings=512,
    )
    copy_of_demo(folder)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    experts = ("experts.gate_up_proj", "experts.down_proj")
    for name in [name for name in tensors if name.endswith(experts)]:
        count, num_in, num_out = tensors.pop(name).shape
        shape = (count, num_out, num_in // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 255, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full(shape, 120, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "lm_head"]}
    change_config(folder, quantization_config=settings)
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "fp8 in blocks": lambda folder: fp8(folder, in_blocks=True),
    "fp8 per tensor": lambda folder: fp8(folder, in_blocks=False),
    "mxfp4": mxfp4_gpt_oss,
    "compressed in 4 bits": lambda folder: compressed(folder, 4),
    "compressed in 8 bits": lambda folder: compressed(folder, 8),
    "bitsandbytes 4": lambda folder: bitsandbytes(folder, 4),
    "bitsandbytes 8": lambda folder: bitsandbytes(folder, 8),
}
"""Those that train on a CPU. `compressed` needs its package."""


def _packed(folder: Path, settings: dict[str, object]) -> Path:
    def store(base: str, weight: Any) -> dict[str, Any]:
        rows, columns = weight.shape
        return {
            f"{base}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
            f"{base}.qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
            f"{base}.scales": torch.ones(1, rows, dtype=torch.float16),
        }

    return _written(folder, _stored(store), settings)


def _fp8_rows(base: str, weight: Any) -> dict[str, Any]:
    scale = weight.float().abs().amax(dim=1, keepdim=True) / LARGEST_FP8
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {f"{base}.weight": stored, f"{base}.weight_scale": scale.to(torch.bfloat16)}


def _packed_groups(base: str, weight: Any) -> dict[str, Any]:
    """Pack eight numbers from 0 to 15 into each int32, the first in its lowest bits."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // GROUP, GROUP)
    scales = groups.abs().amax(dim=2, keepdim=True) / 7
    numbers = ((groups / scales).round() + 8).reshape(rows, columns // 8, 8).long()
    shifted = numbers << (4 * torch.arange(8))
    packed = shifted.sum(dim=2)
    return {
        f"{base}.weight_packed": packed.to(torch.int32),
        f"{base}.weight_scale": scales[..., 0].to(torch.bfloat16),
        f"{base}.weight_shape": torch.tensor([rows, columns]),
    }


def _stored(store: Store) -> dict[str, Any]:
    """Return the demo's tensors, with others in place of the weight of each layer."""
    tensors: dict[str, Any] = {}
    for name, weight in _demo_weights().items():
        if name.endswith("proj.weight"):
            tensors |= store(name.removesuffix(".weight"), weight)
        else:
            tensors[name] = weight
    return tensors


def _demo_weights() -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(DEMO_MODEL / "model.safetensors")


def _written(folder: Path, tensors: dict[str, Any], settings: dict[str, object]) -> Path:
    from safetensors.torch import save_file

    copy_of_demo(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder
