"""Stages as TRL 1.16 trains them: more sequences, other heads, extra models and forward passes.

The facts of a stage are those of its record in core/training/contract/stages.py; this file says
what they mean for a program.
"""

from dataclasses import replace

from core.job import JobSpec
from core.memory.program.program import (
    AuxiliaryModel,
    Generation,
    Head,
    NoGradForward,
    Program,
    When,
)
from core.training.contract.stages import STAGES


def with_stage(program: Program, job: JobSpec) -> Program:
    """Turn the program of supervised fine-tuning into that of the job's stage."""
    stage = STAGES[job.stage]
    sequences = stage.sequences_per_row - stage.forward_only_sequences
    head: Head
    if stage.head == "logits":
        head = "comparison" if job.loss_type == "simpo" else "preference"
    elif job.label_smoothing_factor:
        head = "smoothed"
    else:
        head = stage.head
    if job.evaluation_rows != job.per_device_train_batch_size:
        program = replace(program, evaluation_batch_size=job.evaluation_rows * sequences)
    program = replace(program, head=head, batch_size=program.batch_size * sequences)
    if stage.generates:
        program = _with_generation(program, job)
    forwards: list[NoGradForward] = []
    if stage.extra_pass:
        forwards.append(NoGradForward(replace(program, generation=None), stage.extra_pass))
    models: list[AuxiliaryModel] = []
    if _needs_reference(job):
        reference = frozen(program)
        when: When = "generation" if stage.generates else "after"
        forwards.append(NoGradForward(reference, when))
        if not job.trains_adapter:  # else the reference is the model with its adapter switched off
            models.append(AuxiliaryModel("reference_model", reference))
    if stage.generates and (job.reward_model or stage.trains_value_model):
        reward = _reward_program(program)
        forwards.append(NoGradForward(reward, "generation"))
        models.append(AuxiliaryModel("reward_model", reward))
    if stage.trains_value_model:
        value = replace(program, generation=None, head="score")
        models.append(AuxiliaryModel("value_model", value, trains=True))
    return replace(program, no_grad_forwards=tuple(forwards), auxiliary_models=tuple(models))


def _with_generation(program: Program, job: JobSpec) -> Program:
    """Add the generation of answers, whose tokens alone enter the loss.

    Answers are generated for all micro-batches of a step at once (steps_per_generation) and scored
    in micro-batches. Prompts are padded on the left. Sources: generation_batch_size in
    grpo_config.py, _get_per_token_logps_and_entropies in grpo_trainer.py.
    """
    completion_tokens = min(job.max_completion_length, program.sequence_length - 1)
    generation = Generation(
        batch_size=program.batch_size * program.accumulation_steps,
        prompt_tokens=program.sequence_length - completion_tokens,
        completion_tokens=completion_tokens,
    )
    return replace(program, generation=generation, scored_tokens=completion_tokens, has_mask=True)


def _needs_reference(job: JobSpec) -> bool:
    """Return True if every step runs the model as it was before training.

    Stages that generate do so only for a KL penalty, that is if beta is not 0.
    """
    stage = STAGES[job.stage]
    if stage.reference == "none" or (stage.generates and job.beta == 0):
        return False
    return stage.generates or not job.precompute_ref_log_probs


def _reward_program(program: Program) -> Program:
    """Return the program of the reward model, which scores all answers of a step at once.

    Its size is unknown here, so it is taken for as large as the trained model.
    """
    assert program.generation is not None
    batch_size = program.generation.batch_size
    return replace(frozen(program), quantization=None, head="score", batch_size=batch_size)


def frozen(program: Program) -> Program:
    """Return the program of the same model without an adapter and with nothing that trains."""
    return replace(
        program,
        generation=None,
        lora=None,
        num_trainable_layers=0,
        modules_to_save=frozenset(),
        checkpointing=False,
        offloads_activations=False,
    )
