"""The demo model in the forms in which quantized models are published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.builders.model_folders import DEMO_MODEL, change_config, copy_of_demo

LARGEST_FP8 = 448.0
BLOCK = 32


def fp8(folder: Path, *, in_blocks: bool) -> Path:
    """Write the demo in FP8: one scale a block of weights, or one a matrix."""
    tensors: dict[str, Any] = {}
    for name, weight in _demo_weights().items():
        if not name.endswith("proj.weight"):
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        size = (BLOCK, BLOCK) if in_blocks else (rows, columns)
        blocks = weight.float().reshape(rows // size[0], size[0], columns // size[1], size[1])
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / LARGEST_FP8
        stored = (blocks / scales).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[name] = stored
        kept = scales.reshape(scales.shape[0], scales.shape[2])
        tensors[f"{name}_scale_inv"] = kept if in_blocks else kept.reshape(())
    block = [BLOCK, BLOCK] if in_blocks else None
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    return _written(folder, tensors, settings)


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
    "bitsandbytes 4": lambda folder: bitsandbytes(folder, 4),
    "bitsandbytes 8": lambda folder: bitsandbytes(folder, 8),
}
"""Those that train without another package."""


def _packed(folder: Path, settings: dict[str, object]) -> Path:
    tensors: dict[str, Any] = {}
    for name, weight in _demo_weights().items():
        if not name.endswith("proj.weight"):
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        base = name.removesuffix(".weight")
        tensors[f"{base}.qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        tensors[f"{base}.qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
        tensors[f"{base}.scales"] = torch.ones(1, rows, dtype=torch.float16)
    return _written(folder, tensors, settings)


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
