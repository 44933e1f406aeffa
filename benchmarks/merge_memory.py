"""Measure the peak memory and the time of a merge: a random Llama in four files, with an adapter.

    python benchmarks/merge_memory.py [--layers 16] [--method qlora]

Prints the peak resident memory of the process that merges. The model is made in a temporary folder,
which needs twice its size of room (4 GB for the default of 1 billion parameters).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.after_training.export.records import ExportRequest  # noqa: E402
from core.training.contract.job import Job  # noqa: E402

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 2048, 8192, 32000, 32
NUM_SHARDS, RANK = 4, 16
MERGE = """
import json, sys
from pathlib import Path
from core.after_training.export.records import ExportRequest
from core.training.contract.job import Job
from core.workers.export.merge import merge
from core.workers.export.task import ExportTask
folder = Path(sys.argv[1])
job = Job.from_json(json.loads((folder / "run" / "job.json").read_text()))
task = ExportTask(folder, ExportRequest(**json.loads((folder / "request.json").read_text())))
(folder / "merged").mkdir(exist_ok=True)
merge(task, job, False, folder / "merged")
"""


def main() -> None:
    """Make a model, merge it in another process and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--method", default="lora", choices=("lora", "qlora"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merge-memory-") as name:
        folder = Path(name)
        numel = make_model(folder / "base", arguments.layers)
        make_run(folder, arguments.layers, arguments.method)
        started = time.monotonic()
        command = [sys.executable, "-c", MERGE, name]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{arguments.method}: {numel / 1e9:.2f} billion parameters in {NUM_SHARDS} files, "
        f"{seconds:.0f} s, peak {peak / 2**30:.2f} GiB"
    )


def make_model(folder: Path, layers: int) -> int:
    """Write a random Llama in several files and return its number of parameters."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 4,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = dict(_shapes(layers))
    names = list(shapes)
    places = {}
    for shard in range(NUM_SHARDS):
        file = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        own = names[shard::NUM_SHARDS]
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) for name in own}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def make_run(folder: Path, layers: int, method: str) -> None:
    """Write the run folder of a random adapter over all linear layers, and the request."""
    output = folder / "run" / "output"
    output.mkdir(parents=True)
    tensors = {}
    for name, shape in _shapes(layers):
        if ".layers." in name and len(shape) == 2:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, shape[1])
            tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], RANK)
    save_file(tensors, output / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in tensors})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": targets}
    (output / "adapter_config.json").write_text(json.dumps(settings))
    job = Job(model=str(folder / "base"), dataset="data/train.jsonl", method=method)
    (folder / "run" / "job.json").write_text(json.dumps(asdict(job)))
    request = ExportRequest(
        "merged", "merged", "trained", str(folder / "run"), str(folder / "base")
    )
    (folder / "request.json").write_text(json.dumps(asdict(request)))


def _shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 4), ("v", HIDDEN // 4), ("o", HIDDEN)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, HIDDEN)
        yield f"{prefix}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


if __name__ == "__main__":
    main()
