"""Compare the memory estimate with the trace of the same training program.

    python benchmarks/trace_agreement.py [--quick] [--json]

The estimate simulates a training step in closed form; the trace runs the step with the real classes
on tensors without data. Prints one line per family and per method: number of jobs, then median and
worst of the absolute error of the allocated peak, and its mean with sign (bias), as shares of the
traced peak. Asserts nothing; tests/workers/test_trace.py does.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.job import JobSpec, TraceError
from core.memory import estimate
from core.memory.trace_check import TraceRequest, TraceResult, trace_all
from core.models import Gpu, ModelShape, gpus
from core.training.contract.methods import METHODS

SIZES: Mapping[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32768,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    **{f"{token}_token_id": 0 for token in ("bos", "eos", "pad")},
}
"""Sizes of a small decoder, with the proportions of a large one."""
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 512},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 128, "tie_word_embeddings": True, "sliding_window": 512},
    "gemma3_text": {
        "head_dim": 128,
        "tie_word_embeddings": True,
        "sliding_window": 512,
        "num_hidden_layers": 7,
    },
    "phi3": {"sliding_window": None},
    "smollm3": {"tie_word_embeddings": True},
    "olmo2": {},
    "granite": {
        "tie_word_embeddings": True,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
    },
    "mixtral": {
        "intermediate_size": 1408,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen3_moe": {
        "head_dim": 128,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
    },
    "gpt_oss": {
        "head_dim": 64,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 1024,
    },
}
"""Model type -> values of its config.json that differ from SIZES or add to them."""
ONLY_EAGER = ("gemma2", "gpt_oss")
"""Families that always use eager attention, because SDPA has neither soft caps nor sinks."""
DEEP: Mapping[str, object] = {"num_hidden_layers": 30}
GPU, OLD_GPU = "rtx-4090", "t4"
ANSWERS: Mapping[str, object] = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 128,
}
LONG_ANSWERS: Mapping[str, object] = {"max_length": 1536, "max_completion_length": 1472}
"""Answers much longer than their prompts. Generating the last token then takes more memory than
reading the prompts."""
EXTRAS: tuple[tuple[str, Mapping[str, object], Mapping[str, object]], ...] = (
    ("llama", DEEP, {"method": "full"}),
    ("llama", DEEP, {"method": "lora", "max_length": 2048}),
    ("gemma3_text", DEEP, {"method": "qlora"}),
    ("gemma3_text", {"num_hidden_layers": 6}, {"method": "lora", "per_device_train_batch_size": 1}),
    ("gemma3_text", {"num_hidden_layers": 8}, {"method": "lora", "per_device_train_batch_size": 1}),
    (
        "llama",
        {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256},
        {"method": "qlora"},
    ),
    ("llama", {}, {"method": "lora", "lora_dropout": 0.05}),
    ("qwen3", {}, {"method": "qlora", "lora_dropout": 0.05, "gradient_checkpointing": False}),
    ("llama", {}, {"method": "lora", "packing": True}),
    ("qwen2", {}, {"method": "full", "packing": True, "gradient_checkpointing": False}),
    ("llama", {}, {"method": "lora", "per_device_train_batch_size": 1, "max_length": 2048}),
    (
        "llama",
        {},
        {"method": "full", "per_device_train_batch_size": 1, "gradient_checkpointing": False},
    ),
    ("mistral", {}, {"method": "lora", "per_device_train_batch_size": 1, "max_length": 2048}),
    ("llama", {}, {"method": "full", "gradient_accumulation_steps": 1}),
    ("llama", {}, {"method": "full", "dtype": "float32"}),
    ("llama", {}, {"method": "lora", "target_modules": "q_proj,v_proj"}),
    ("llama", {}, {"method": "lora", "lora_r": 256, "optim": "adamw_8bit"}),
    ("mixtral", {}, {"method": "lora", "target_modules": "q_proj,w1,w2,w3"}),
    ("qwen3_moe", {}, {"method": "qlora", "target_modules": "gate_proj,up_proj,down_proj,gate"}),
    (
        "gpt_oss",
        {},
        {
            "method": "lora",
            "target_modules": "q_proj,gate_up_proj,down_proj",
            "gradient_checkpointing": False,
        },
    ),
    ("llama", {}, {"method": "full", "optim": "adamw_torch"}),
    ("llama", {}, {"method": "full", "optim": "adamw_8bit"}),
    ("llama", {}, {"method": "full", "optim": "paged_adamw_32bit"}),
    ("llama", {}, {"method": "full", "optim": "lion_8bit"}),
    ("llama", {}, {"method": "full", "optim": "adafactor"}),
    ("llama", {}, {"method": "full", "optim": "sgd"}),
    ("llama", {}, {"method": "qlora", "bnb_4bit_use_double_quant": False}),
    ("llama", {}, {"method": "lora", "use_dora": True}),
    ("qwen3", {}, {"method": "qlora", "use_dora": True}),
    ("llama", {}, {"method": "lora", "gpu": OLD_GPU}),
    ("llama", {}, {"method": "full", "gpu": OLD_GPU, "gradient_checkpointing": False}),
    ("qwen2", {}, {"method": "qlora", "gpu": OLD_GPU, "attn_implementation": "eager"}),
    ("qwen3", {}, {"method": "qlora", "gpu": OLD_GPU, "gradient_checkpointing": False}),
    ("smollm3", {"head_dim": 64}, {"method": "lora", "gpu": OLD_GPU}),
    ("llama", {}, {"method": "full", "per_device_train_batch_size": 4}),
    ("llama", {}, {"method": "lora", "modules_to_save": "embed_tokens,lm_head"}),
    ("qwen2", {}, {"method": "qlora", "modules_to_save": "lm_head"}),
    ("llama", {"num_hidden_layers": 8}, {"method": "lora", "checkpoint_every_n_layers": 2}),
    ("llama", {"num_hidden_layers": 9}, {"method": "full", "checkpoint_every_n_layers": 3}),
    ("llama", {}, {"method": "lora", "packing": True, "attn_implementation": "varlen"}),
    ("gemma2", {}, {"method": "lora", "attn_implementation": "flex_attention"}),
    (
        "gemma2",
        {},
        {
            "method": "full",
            "attn_implementation": "flex_attention",
            "gradient_checkpointing": False,
        },
    ),
    ("llama", DEEP, {"method": "freeze", "num_trainable_layers": 5}),
    *(
        (family, {}, {"stage": stage, "method": method})
        for stage in ("reward", "dpo", "kto", "orpo", "cpo")
        for family, method in (
            ("llama", "full"),
            ("llama", "freeze"),
            ("qwen3", "lora"),
            ("gemma3_text", "qlora"),
        )
    ),
    ("llama", {}, {"stage": "dpo", "method": "full", "precompute_ref_log_probs": True}),
    ("llama", {}, {"stage": "dpo", "method": "lora", "gradient_checkpointing": False}),
    ("qwen2", {}, {"stage": "reward", "method": "lora-8bit", "gpu": OLD_GPU}),
    ("llama", {}, {"stage": "cpt", "method": "lora", "packing": True}),
    ("llama", {}, {"stage": "cpo", "method": "full", "loss_type": "simpo"}),
    ("qwen3", {}, {"stage": "cpo", "method": "lora", "loss_type": "simpo"}),
    *(
        (family, {}, {"stage": stage, "method": method, **ANSWERS, **fields})
        for stage, family, method, fields in (
            ("grpo", "llama", "full", {}),
            ("grpo", "llama", "full", {"beta": 0.04}),
            ("grpo", "qwen3", "lora", {"beta": 0.04}),
            ("grpo", "gemma3_text", "qlora", {}),
            ("grpo", "mistral", "lora", {"gpu": OLD_GPU}),
            ("grpo", "qwen2", "lora-8bit", {}),
            ("grpo", "qwen3_moe", "lora", {}),
            ("grpo", "gpt_oss", "lora", {}),
            ("grpo", "qwen3", "lora", LONG_ANSWERS),
            ("grpo", "gemma3_text", "qlora", LONG_ANSWERS),
            ("grpo", "llama", "lora", {**LONG_ANSWERS, "attn_implementation": "eager"}),
            ("rloo", "llama", "full", {}),
            ("rloo", "mixtral", "lora", {}),
            ("rloo", "qwen3", "lora", LONG_ANSWERS),
        )
    ),
)
"""(family, changes of its config.json, fields of the job), for what the grid leaves out."""


@dataclass(frozen=True)
class Case:
    """Job on a model."""

    name: str
    family: str
    config: Mapping[str, object]
    job: JobSpec

    @property
    def gpu(self) -> Gpu:
        """GPU of the job."""
        return gpus()[self.job.gpu]

    @property
    def request(self) -> TraceRequest:
        """Request to trace the job."""
        return TraceRequest(self.job, self.config, self.gpu)


@dataclass(frozen=True)
class Agreement:
    """Estimated and traced peak of one case."""

    name: str
    family: str
    method: str
    estimated_bytes: int
    traced_bytes: int

    @property
    def error(self) -> float:
        """Error of the estimate, as a share of the trace."""
        return self.estimated_bytes / self.traced_bytes - 1


def cases() -> Iterator[Case]:
    """Yield every family with every method, checkpointing and attention; then the extras."""
    for family in FAMILIES:
        attentions = ("eager",) if family in ONLY_EAGER else ("sdpa", "eager")
        for method, checkpointing, attention in product(METHODS, (True, False), attentions):
            fields = {
                "method": method,
                "gradient_checkpointing": checkpointing,
                "attn_implementation": attention,
            }
            yield _case(family, {}, fields)
    for family, config, fields in EXTRAS:
        yield _case(family, config, fields)


QUICK = (
    "llama full",
    "llama lora gradient_checkpointing=False",
    "qwen2 qlora gpu=t4 attn_implementation=eager",
    "dpo qwen3 lora",
    "cpo qwen3 lora loss_type=simpo",
    "grpo qwen3_moe lora per_device_train_batch_size=4 num_generations=4 max_completion_length=128",
)
"""Names of the cases that --quick compares."""


def compare(chosen: Iterable[Case]) -> Iterator[Agreement | TraceError]:
    """Yield the agreement of each case. One child process traces them one after the other."""
    chosen = tuple(chosen)
    for case, found in zip(chosen, trace_all(case.request for case in chosen), strict=True):
        yield found if isinstance(found, TraceError) else agreement(case, found)


def agreement(case: Case, traced: TraceResult) -> Agreement:
    """Return the estimate of a case with its trace."""
    estimated = estimate(case.job, ModelShape.from_config(case.config), case.gpu)
    return Agreement(
        case.name,
        case.family,
        case.job.method,
        estimated.peak_allocated_bytes,
        traced.peak_allocated_bytes,
    )


def _case(family: str, config: Mapping[str, object], fields: Mapping[str, object]) -> Case:
    words = [family, str(fields["method"])]
    if "stage" in fields:
        words.insert(0, str(fields["stage"]))
    shown = dict(config)
    for key, value in fields.items():
        if (key, value) not in NOT_IN_NAMES and value not in words:
            shown[key] = value
    name = " ".join([*words, *(f"{key}={value}" for key, value in shown.items())])
    whole_config = {"model_type": family, **SIZES, **FAMILIES[family], **config}
    job = JobSpec.parse({"stage": "sft", "gpu": GPU, "max_length": 1024, **fields})
    return Case(name, family, whole_config, job)


NOT_IN_NAMES = (("gradient_checkpointing", True), ("attn_implementation", "sdpa"))


def _summary(label: str, found: Iterable[Agreement]) -> dict[str, object]:
    errors = [agreement.error for agreement in found]
    sizes = sorted(map(abs, errors))
    return {
        "group": label,
        "n": len(errors),
        "median": statistics.median(sizes),
        "worst": sizes[-1],
        "bias": statistics.mean(errors),
    }


def _print_table(
    found: list[Agreement], failures: list[str], groups: list[dict[str, object]], seconds: float
) -> None:
    print(f"{'allocated peak':>24} {'n':>4} {'median':>8} {'worst':>8} {'bias':>8}")
    for group in groups:
        shares = " ".join(f"{group[key]:8.2%}" for key in ("median", "worst", "bias"))
        print(f"{group['group']!s:>24} {group['n']:4} {shares}")
    print("\nworst:")
    for agreement in sorted(found, key=lambda agreement: -abs(agreement.error))[:20]:
        print(f"  {agreement.error:+8.2%}  {agreement.name}")
    for failure in failures:
        print(f"  not traced: {failure}")
    print(f"\n{len(found)} jobs in {seconds:.0f} s")


def main() -> None:
    """Compare the cases and print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="compare only a few typical cases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    began = time.monotonic()
    chosen = [case for case in cases() if not asked.quick or case.name in QUICK]
    answers = dict(zip((case.name for case in chosen), compare(chosen), strict=True))
    found = [answer for answer in answers.values() if isinstance(answer, Agreement)]
    failures = [
        f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, TraceError)
    ]
    groups = [_summary("all", found)]
    if not asked.quick:
        for family in FAMILIES:
            groups.append(_summary(family, [each for each in found if each.family == family]))
    for method in METHODS:
        agreements = [each for each in found if each.method == method]
        if agreements:
            groups.append(_summary(method, agreements))
    if asked.json:
        rows = [asdict(agreement) | {"error": agreement.error} for agreement in found]
        print(json.dumps({"groups": groups, "cases": rows, "failures": failures}))
    else:
        _print_table(found, failures, groups, time.monotonic() - began)


if __name__ == "__main__":
    main()
