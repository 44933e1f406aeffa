"""What a stage does beside supervised fine-tuning, as its trainer in TRL 1.16 does it: more sequences, other heads,
forward passes without a graph, models kept beside the one that trains, answers drawn.

The facts of a stage are those of core/methods.py; here stands what they mean for a program.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from core.job import JobSpec
from core.memory.program.program import Companion, Generation, Head, Pass, Program
from core.models import ModelShape
from core.training.contract.stages import STAGES

HEADS: Mapping[str, Head] = MappingProxyType(
    {"fused": "fused", "logits": "preference", "score": "score"}
)
"""Head of a stage -> head of a program."""


def with_stage(program: Program, job: JobSpec, reward_shape: ModelShape | None = None) -> Program:
    """The program of supervised fine-tuning, changed into that of the job's stage.

    `reward_shape` is that of the reward model; without one it is taken for as large as the model that trains.
    """
    stage = STAGES[job.stage]
    sequences = stage.sequences_per_row - stage.forward_only_sequences
    head = "comparison" if job.loss_type == "simpo" else HEADS[stage.head]
    program = replace(program, head=head, rows=program.rows * sequences)
    if stage.generates:
        program = _with_answers(program, job)
    return _with_models(program, job, reward_shape or program.shape)


def _with_answers(program: Program, job: JobSpec) -> Program:
    """Answers are drawn for all micro-batches of a step at once (steps_per_generation), and scored in micro-batches.

    Prompts are padded on the left, and only the answers count. Sources: generation_batch_size in grpo_config.py,
    _get_per_token_logps_and_entropies in grpo_trainer.py.
    """
    answer_tokens = min(job.max_completion_length, program.row_tokens - 1)
    drawn = Generation(
        rows=program.rows * program.accumulation_steps,
        prompt_tokens=program.row_tokens - answer_tokens,
        completion_tokens=answer_tokens,
    )
    return replace(program, generation=drawn, scored_tokens=answer_tokens, has_mask=True)


def _with_models(program: Program, job: JobSpec, reward_shape: ModelShape) -> Program:
    """The models that are asked, and when."""
    stage = STAGES[job.stage]
    asked = replace(program, generation=None)
    passes, companions = [], []
    if stage.extra_pass:
        passes.append(Pass(asked, stage.extra_pass))
    if _needs_reference(job):
        reference = frozen(asked)
        passes.append(Pass(reference, "generation" if stage.generates else "after"))
        if not job.trains_adapter:
            companions.append(Companion("reference_model", reference))
    if stage.generates and (job.reward_model or not stage.is_trainable):
        rows = program.generation.rows if program.generation else program.rows
        judge = replace(
            frozen(asked), shape=reward_shape, quantization=None, head="score", rows=rows
        )
        passes.append(Pass(judge, "generation"))
        companions.append(Companion("reward_model", judge))
    if not stage.is_trainable:
        companions.append(Companion("value_model", replace(asked, head="score"), trains=True))
    return replace(program, passes=tuple(passes), companions=tuple(companions))


def _needs_reference(job: JobSpec) -> bool:
    """True if every step asks the model as it was. GRPO and RLOO do so for a pull back to it only."""
    stage = STAGES[job.stage]
    if stage.reference == "none" or (stage.generates and job.beta == 0):
        return False
    return not job.precompute_ref_log_probs or stage.generates


def frozen(program: Program) -> Program:
    """The same model, asked without its adapter, or a copy of it: nothing of it trains."""
    return replace(
        program,
        lora=None,
        trained_layers=0,
        saved_modules=frozenset(),
        checkpointing=False,
        offloads_activations=False,
    )
