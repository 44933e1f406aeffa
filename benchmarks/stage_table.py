"""Print which stages train with which methods, and what is refused: the tables of docs/training.md.

    python benchmarks/stage_table.py

The slow tests of tests/training/test_stage_matrix.py compare every line with the training program.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.job import JobSpec, SpecError
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES

TRAINABLE = [stage.id for stage in STAGES.values() if stage.is_trainable]
WITH_ADAPTER = [method.id for method in METHODS.values() if method.trains_adapter]


@dataclass(frozen=True)
class Setting:
    """Fields of a job that some stages or methods refuse."""

    title: str
    fields: Mapping[str, object]
    axis: Literal["stage", "method"] = "method"
    """stage: tried with LoRA in every stage. method: tried in sft with every method of adapters."""
    needs_cuda: bool = False

    @property
    def tried_with(self) -> Sequence[str]:
        """Return the stages or methods to try."""
        return TRAINABLE if self.axis == "stage" else WITH_ADAPTER


SETTINGS = (
    Setting("DoRA", {"use_dora": True}),
    Setting("rsLoRA", {"use_rslora": True}),
    Setting("gaussian start", {"init_lora_weights": "gaussian"}),
    Setting("PiSSA", {"init_lora_weights": "pissa"}),
    Setting("OLoRA", {"init_lora_weights": "olora"}),
    Setting("LoftQ", {"init_lora_weights": "loftq"}, needs_cuda=True),
    Setting("embeddings trained whole", {"modules_to_save": "embed_tokens"}),
    Setting("head trained whole", {"modules_to_save": "lm_head"}),
    Setting("adapter on the head", {"target_modules": "q_proj,lm_head"}),
    Setting("PiSSA", {"init_lora_weights": "pissa"}, "stage"),
    Setting("DoRA", {"use_dora": True}, "stage"),
    Setting("continued adapter", {"adapter": "runs/earlier/output"}, "stage"),
    Setting("packing", {"packing": True}, "stage"),
    Setting("evaluation", {"eval_fraction": 0.1}, "stage"),
    Setting("precomputed reference", {"precompute_ref_log_probs": True}, "stage"),
    Setting("LoRA+", {"loraplus_lr_ratio": 16.0}, "stage"),
    Setting("NEFTune", {"neftune_noise_alpha": 5.0}, "stage"),
    Setting("smoothed labels", {"label_smoothing_factor": 0.1}, "stage"),
    Setting("best by eval_loss", {"eval_fraction": 0.1, "keep_best": "eval_loss"}, "stage"),
    Setting("best by eval_reward", {"eval_fraction": 0.1, "keep_best": "eval_reward"}, "stage"),
    Setting("activations offloaded", {"activation_offloading": True}, "stage", needs_cuda=True),
)


def refusal(**fields: object) -> str | None:
    """Return why a job cannot be trained; None if it can."""
    try:
        JobSpec.parse(fields)
    except SpecError as error:
        return "; ".join(problem.problem for problem in error.problems)
    return None


def stages_by_methods() -> Iterator[str]:
    """Yield a line for each stage, with a column for each method."""
    yield from _head(["stage", *METHODS])
    for stage in TRAINABLE:
        cells = [f"**{stage}**"]
        for method in METHODS:
            reason = refusal(stage=stage, method=method)
            cells.append("trains" if reason is None else f"refused: {reason}")
        yield _line(cells)


def settings_by_axis() -> Iterator[str]:
    """Yield a line for each setting: what it trains with, what it is refused with and why."""
    yield from _head(["setting", "trains with", "refused with"])
    for setting in SETTINGS:
        reasons: dict[str, str] = {}
        trains_with = []
        for name in setting.tried_with:
            reason = refusal(**{setting.axis: name}, **setting.fields)
            if reason is None:
                trains_with.append(name)
            else:
                reasons[name] = reason
        names = ", ".join(trains_with) or "none"
        if setting.needs_cuda:
            names += " on a CUDA device"
        yield _line([setting.title, names, "<br>".join(_grouped(reasons))])


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """Return each reason once, after the names it applies to; a name in the reason becomes "it"."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason.replace(name, "it"), []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _line(cells)
    yield _line(["---"] * len(cells))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print both tables as Markdown."""
    print(*stages_by_methods(), "", *settings_by_axis(), sep="\n")


if __name__ == "__main__":
    main()
