"""Mixins in front of TRL's trainers: adapters, results, token counts and generated answers.

Never names a stage; builders.py says which trainer gets which mixin.
"""

from pathlib import Path
from typing import Any

from peft import PeftModel

from ..contract.stages import SFT_TERM
from ..loop.losses import Count, TokenTerm, count_labels
from ..loop.trainer import MonitoredTrainer
from ..model.adapter import convert_to_lora, init_adapter, save_only_trained_adapter
from .length_groups import group_by_length
from .rewards import content_text

NLL_LOSS = 4
"""Place of the loss over tokens in what `concatenated_forward` of ORPO and CPO returns."""
SAMPLED_STEPS = 10
"""Steps of a run whose generated answers are kept, unless sample_steps sets an interval."""


class StageTrainer(MonitoredTrainer):
    """Mixin that initializes the adapter and writes a result that fits its base."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.job = self.monitor.job
        rank = self.monitor.run_files.rank
        name = ".start.safetensors" if rank.is_first else f".start-{rank.index}.safetensors"
        self._initial_file = self.monitor.run_files.folder / name
        save_only_trained_adapter(self.model)
        if isinstance(self.model, PeftModel):
            init_adapter(self.job, self.model, self._initial_file)
            self._cast_adapters()  # LoftQ's new adapters are in float32

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return group_by_length(super()._get_train_sampler(*args, **kwargs), self)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint with the weights as they train, or a result with those to use.

        A schedule-free optimizer averages the weights of a result. An adapter that changed its base
        becomes a plain LoRA.
        """
        is_result = output_dir is not None and Path(output_dir).name == "output"
        if is_result and self.job.optim.startswith("schedule_free"):
            optimizer: Any = self.optimizer
            optimizer.eval()
        super().save_model(output_dir, *args, **kwargs)
        if is_result and self._initial_file.exists() and self.args.should_save:
            convert_to_lora(Path(str(output_dir)), self._initial_file)


class TakesTokens(MonitoredTrainer):
    """Mixin for preference trainers, which get prompts and answers in tokens."""

    calculate_KL: bool = False

    def _prepare_dataset(self, dataset: Any, _tokenizer: Any, args: Any, name: str) -> Any:
        """Leave out the rows whose prompt alone fills max_length, as TRL does."""

        def fits(prompt_ids: list[int]) -> bool:
            return len(prompt_ids) < args.max_length

        fitting = dataset.filter(fits, input_columns="prompt_ids")
        if not self.calculate_KL:
            return fitting
        batch_size = args.per_device_eval_batch_size
        if name == "train":
            batch_size = args.per_device_train_batch_size
        return fitting.map(_with_answers_of_others, batched=True, batch_size=batch_size)


def _with_answers_of_others(batch: dict[str, Any]) -> dict[str, Any]:
    """Add the answer of another row of its batch to each row, which KTO's KL term needs."""
    answers = batch["completion_ids"]
    return {**batch, "KL_completion_ids": [answers[-1], *answers[:-1]]}


class CountsTokens(MonitoredTrainer):
    """Mixin for preference trainers that do not log `num_tokens` as other trainers of TRL do."""

    _total_train_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            for name in ("chosen", "rejected"):
                self._total_train_tokens += int(inputs[f"{name}_attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = {**logs, "num_tokens": self._total_train_tokens}
        super().log(logs, *args, **kwargs)


class LearnsChosenPrompt(MonitoredTrainer):
    """Mixin for ORPO, whose loss has a term over the tokens of the chosen prompt and answer."""

    def count_term_tokens(self, inputs: Any) -> Count:
        return inputs["chosen_attention_mask"][..., 1:].sum()

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        outputs = super().concatenated_forward(model, batch)  # type: ignore[misc]
        self.token_term = TokenTerm(outputs[NLL_LOSS], self.count_term_tokens(batch))
        return outputs


class LearnsChosenAnswer(MonitoredTrainer):
    """Mixin for CPO, whose loss has a term over the tokens of the chosen answer; SimPO has none."""

    cpo_alpha: float

    def count_term_tokens(self, inputs: Any) -> Count:
        return count_labels(inputs, "chosen_labels") if self.cpo_alpha else 0

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        outputs = super().concatenated_forward(model, batch)  # type: ignore[misc]
        if self.cpo_alpha:
            num_tokens = self.count_term_tokens(batch)
            self.token_term = TokenTerm(outputs[NLL_LOSS], num_tokens, self.cpo_alpha)
        return outputs


class LearnsChosenAnswerToo(MonitoredTrainer):
    """Mixin for DPO, whose loss may be the sum of one over pairs and one over tokens."""

    loss_types: list[str]
    loss_weights: list[float]

    def count_term_tokens(self, inputs: Any) -> Count:
        if SFT_TERM not in self.loss_types:
            return 0
        chosen, _rejected = inputs["completion_mask"][..., 1:].chunk(2)
        return chosen.sum()

    def _compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if SFT_TERM not in self.loss_types:
            return super()._compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        log_probs = []

        def kept(**arguments: Any) -> Any:
            outputs = model(**arguments)
            log_probs.append(outputs.log_probs)
            return outputs

        loss = super()._compute_loss(kept, inputs, *args, **kwargs)  # type: ignore[misc]
        num_tokens = self.count_term_tokens(inputs)
        chosen, _rejected = log_probs[0].chunk(2)  # 0 where no token counts
        weight = self.loss_weights[self.loss_types.index(SFT_TERM)]
        self.token_term = TokenTerm(-chosen.sum() / num_tokens, num_tokens, weight)
        return loss


class LogsCompletions(StageTrainer):
    """Mixin for online stages: reports generation as an activity, and samples generated answers."""

    _logs: dict[str, Any]
    """Prompts and completions of the current step, kept by TRL."""

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        is_training = self.monitor.run_files.activity == "forward"
        if is_training:
            self.monitor.begin("generation")
        completions = super()._generate_and_score_completions(*args, **kwargs)  # type: ignore[misc]
        if is_training:
            self.monitor.begin("forward")
        return completions

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        # PEFT's `generate` calls the base model without the autocast of the forward pass.
        with self.accelerator.autocast():
            return super()._generate(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        step = self.state.global_step
        every = self.job.sample_steps or max(1, self.state.max_steps // SAMPLED_STEPS)
        # At the last step the sample questions are answered instead.
        if "loss" in logs and step % every == 0 and step < self.state.max_steps:
            self._append_samples(step)

    def _append_samples(self, step: int) -> None:
        """Add one answer to each of the first prompts to samples.jsonl."""
        pairs = list(zip(self._logs["prompt"], self._logs["completion"], strict=True))
        one_per_prompt = pairs[:: self.job.num_generations]
        for prompt, answer in one_per_prompt[: self.job.num_samples]:
            self.monitor.run_files.append_sample(step, content_text(prompt), content_text(answer))
