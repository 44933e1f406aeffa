"""What is added to TRL's trainers, each a small class to put in front of one. Knows nothing of single stages."""

from pathlib import Path
from typing import Any

from peft import PeftModel

from ..loop.monitor import Watched
from ..model.adapter import prepare_start, rewrite_as_lora, save_one
from .length_groups import with_like_lengths
from .rewards import text_of

TIMES_SHOWN = 10
"""How often drawn answers are kept, over a whole run, unless sample_steps says it."""


class Staged(Watched):
    """A trainer of a stage: puts the start of its adapter in place, and writes a result that fits its base."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.job = self.watch.job
        self._start = Path(self.watch.record.folder) / ".start.safetensors"
        save_one(self.model)
        if isinstance(self.model, PeftModel):
            prepare_start(self.job, self.model, self._start)
            self._cast_adapters()  # LoftQ's are new, in float32

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return with_like_lengths(super()._get_train_sampler(*args, **kwargs), self)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Checkpoints keep weights as they train; the result has those that are meant: averaged, of a plain adapter."""
        is_result = output_dir is not None and Path(output_dir).name == "output"
        if is_result and self.job.optim.startswith("schedule_free"):
            optimizer: Any = self.optimizer
            optimizer.eval()
        super().save_model(output_dir, *args, **kwargs)
        if is_result and self._start.exists():
            rewrite_as_lora(Path(str(output_dir)), self._start)


class CountsTokens(Watched):
    """For trainers that do not log how many tokens they have trained on; they are counted under TRL's own name."""

    _total_train_tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            masks = (inputs[f"{name}_attention_mask"] for name in ("chosen", "rejected"))
            self._total_train_tokens += sum(int(mask.sum()) for mask in masks)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().log(
            logs | {"num_tokens": self._total_train_tokens} if "loss" in logs else logs,
            *args,
            **kwargs,
        )


class ShowsDrawn(Staged):
    """Tells drawing from training, and keeps some of the answers that the model drew beside those to the samples."""

    _logs: dict[str, Any]

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        is_training = self.watch.record.activity == "forward"
        if is_training:
            self.watch.begin("generation")
        drawn = super()._generate_and_score_completions(*args, **kwargs)  # type: ignore[misc]
        if is_training:
            self.watch.begin("forward")
        return drawn

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """Under autocast, as the model trains: PEFT's `generate` calls the base past the forward pass that has it."""
        with self.accelerator.autocast():
            return super()._generate(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        step = self.state.global_step
        every = self.job.sample_steps or max(1, self.state.max_steps // TIMES_SHOWN)
        if (
            "loss" in logs and step % every == 0 and step < self.state.max_steps
        ):  # at the end, the samples are answered
            drawn = zip(self._logs["prompt"], self._logs["completion"], strict=True)
            one_per_prompt = list(drawn)[:: self.job.num_generations]
            for prompt, answer in one_per_prompt[: self.job.num_samples]:
                self.watch.record.append_sample(step, text_of(prompt), text_of(answer))
