"""Compare what one of several GPUs holds by the simulation with what others have published.

    python benchmarks/published_ranks.py

Rows of FSDP2 are those that Tailor answers for. FSDP1 joins the tensors of a layer and gathers them
otherwise, so its rows are told apart. All are reserved memory, but those of PEFT's guide, which
gives that of the whole process. Needs no GPU, and a minute.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.memory.program import OPTIMIZERS, Lora, Quantization
from core.memory.simulator import Allocator
from core.resolve import resolve
from tests.measured.other_loops import OtherLoop, OtherProgram
from tests.measured.rows import PROCESS_BYTES, shape_of

GIB, MIB = 2**30, 2**20
FSDP2, FSDP1 = "FSDP2", "FSDP1"
TORCHTUNE = {
    "model": "meta-llama/Llama-3.1-70B",
    "method": "lora",
    "gpu": "a100-80gb",
    "lora_r": 8,
    "per_device_train_batch_size": 2,
    "max_length": 2048,
    "num_devices": 8,
    "parallelism": "fsdp",
    "gradient_checkpointing": True,
    "optim": "adamw_torch_fused",
}
"""README of September 2024: 27.6 GiB, packed rows, compiled."""
KEPT_BYTES = 2 * (4096 + 1024 + 14336 + 4096 + 4096)
"""Bytes of a token that a layer of Llama 3.1 8B keeps under torchtitan's selective checkpointing:
every second product (queries, values, gate, output of the MLP) and the output of attention."""
PEFT_GIB = 1000 * MIB / GIB
"""What the guide calls a GB: 80 of them are 98 % of an H100, which has 81,559 MiB.

It says 72 to 80 GB of the LoRA run (a chart, of which the middle is taken) and 35.6 of the QLoRA
run. It does not say whether the second is the peak of a step or of the load, in which each process
held the whole quantized model: 34 GiB.
https://huggingface.co/docs/peft/accelerate/fsdp
"""
ADAPTED = frozenset({"k_proj", "q_proj", "v_proj", "up_proj", "down_proj", "gate_proj"})


@dataclass(frozen=True)
class PublishedRow:
    """A published peak of one GPU, and the simulated one."""

    group: str
    title: str
    published_gib: float
    simulated_gib: float

    @property
    def error(self) -> float:
        """Error of the simulation as a share of what was published."""
        return self.simulated_gib / self.published_gib - 1


def rows() -> Iterator[PublishedRow]:
    """Yield the rows with enough said about them to be simulated."""
    reserved = resolve(TORCHTUNE).estimate().peak_reserved_bytes
    yield PublishedRow(FSDP2, "torchtune, 70B LoRA, 8 x A100, 2 x 2,048", 27.6, reserved / GIB)
    titan = "torchtitan, 8B full, {} x H100, 2 x 8,192"
    for count, is_compiled, published in (
        (8, False, 82.4),
        (8, True, 77.0),
        (128, False, 67.0),
        (128, True, 62.0),
    ):
        title = titan.format(count) + (", compiled" if is_compiled else "")
        loop = OtherLoop(_torchtitan(count, is_compiled))
        yield PublishedRow(FSDP2, title, published, _reserved_gib(loop))
    answers = "Answer.AI, {}, 2 x RTX 3090, {} x {:,}"
    for model, shape, is_4bit, batch, length, published in (
        ("7B QLoRA", "Llama-2-7B", True, 1, 512, 4.98),
        ("7B QLoRA", "Llama-2-7B", True, 1, 2048, 5.21),
        ("7B QLoRA", "Llama-2-7B", True, 4, 2048, 11.22),
        ("7B QLoRA", "Llama-2-7B", True, 10, 2048, 20.97),
        ("7B LoRA", "Llama-2-7B", False, 1, 512, 10.24),
        ("7B LoRA", "Llama-2-7B", False, 1, 2048, 10.22),
        ("7B LoRA", "Llama-2-7B", False, 4, 2048, 16.14),
        ("7B LoRA", "Llama-2-7B", False, 6, 2048, 21.35),
        ("34B QLoRA", "Yi-34B", True, 2, 2048, 23.05),
    ):
        loop = OtherLoop(_answer_ai(shape, is_4bit, batch, length))
        title = answers.format(model, batch, length)
        yield PublishedRow(FSDP1, title, published, _reserved_gib(loop))
    for title, is_4bit, published in (
        ("PEFT, 70B LoRA, 8 x H100, 8 x 2,048", False, 76.0),
        ("PEFT, 70B QLoRA, 2 GPUs, 2 x 2,048", True, 35.6),
    ):
        simulated = _reserved_gib(OtherLoop(_peft(is_4bit))) + PROCESS_BYTES / GIB
        yield PublishedRow(FSDP1, title, PEFT_GIB * published, simulated)


def _torchtitan(num_devices: int, is_compiled: bool) -> OtherProgram:
    """Return the program of torchtitan's benchmarks of December 2024."""
    return OtherProgram(
        shape=shape_of("Llama-3-8B"),
        batch_size=2,
        sequence_length=8192,
        num_devices=num_devices,
        is_sharded=True,
        autocast=True,
        optimizer=OPTIMIZERS["adamw_torch_fused"],
        compiles_layers=is_compiled,
        kept_token_bytes=KEPT_BYTES,
        workspace_bytes=32 * MIB,
    )


def _answer_ai(shape: str, is_4bit: bool, batch_size: int, length: int) -> OtherProgram:
    """Return the program of fsdp_qlora's benchmarks of March 2024."""
    return OtherProgram(
        shape=shape_of(shape),
        batch_size=batch_size,
        sequence_length=length,
        num_devices=2,
        is_sharded=True,
        autocast=True,
        lora=Lora(64, 2, ADAPTED, dropout=0.1),
        quantization=Quantization(4, True) if is_4bit else None,
    )


def _peft(is_4bit: bool) -> OtherProgram:
    """Return the program of the guide of PEFT to FSDP, which loads what is not quantized in 32
    bits."""
    program = OtherProgram(
        shape=shape_of("Llama-2-70B"),
        batch_size=8,
        sequence_length=2048,
        num_devices=8,
        is_sharded=True,
        autocast=True,
        frozen_itemsize=4,
        lora=Lora(8, 2, dropout=0.1),
        accumulation_steps=2,
    )
    if not is_4bit:
        return program
    quantization = Quantization(4, True)
    return replace(
        program, batch_size=2, num_devices=2, frozen_itemsize=None, quantization=quantization
    )


def _reserved_gib(loop: OtherLoop) -> float:
    """Return what the second step of a loop reserves: it finds the optimizer's states."""
    loop.load()
    loop.step()
    loop.step()
    allocator = Allocator(expandable_segments=False)
    allocator.replay(loop.memory.log, loop.memory.sizes)
    return allocator.peak_reserved_bytes / GIB


def table(found: Sequence[PublishedRow]) -> Iterator[str]:
    """Yield the lines of a table, and the median of each group."""
    yield "| | | published, GiB | simulated, GiB | error |"
    yield "|---|---|--:|--:|--:|"
    for row in found:
        numbers = f"{row.published_gib:.1f} | {row.simulated_gib:.1f} | {row.error:+.1%}"
        yield f"| {row.group} | {row.title} | {numbers} |"
    yield ""
    for group in dict.fromkeys(row.group for row in found):
        errors = [abs(row.error) for row in found if row.group == group]
        median, worst = statistics.median(errors), max(errors)
        yield f"{group}: {len(errors)} rows, median {median:.1%}, worst {worst:.1%}"


def main() -> int:
    """Print the table."""
    for line in table(list(rows())):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
