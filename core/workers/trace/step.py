"""Trace a training in miniature: load, one optimizer step, one evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward

from core.training.contract.job import (
    CHECK_ANSWER_TOKENS,
    CHECK_BATCH_SIZE,
    CHECK_PROMPT_TOKENS,
    Job,
)
from core.training.contract.stages import STAGES
from core.training.model.load import ModelPrecision

from .allocation_log import AllocationLog
from .cuda import Card, emulate_cuda
from .generation import Prompts, generate
from .kernels import TEMPORARY_BYTES
from .loss import LOSSES, Batch, Models, longest_batch, tiles_as_mapped
from .model import assume_padding, dequantize_for_dora, frozen_copy, materialize
from .optimizers import Steppable, build_optimizer

MAX_MICRO_BATCHES = 2
"""Micro-batches of the traced step: the third finds the same memory as the second."""


class TracedTraining:
    """Training in miniature, with a log of its memory."""

    def __init__(
        self, model: Any, job: Job, card: Card, precision: ModelPrecision, evaluation_rows: int
    ):
        self.model = model
        self.job = job
        self.stage = STAGES[job.stage]
        self.card = card
        self.precision = precision
        self.batch = longest_batch(job, job.per_device_train_batch_size)
        self.evaluation_batch = longest_batch(job, evaluation_rows)
        self.log = AllocationLog({} if card.is_cpu else TEMPORARY_BYTES)
        self._optimizer: Steppable | None = None
        """Kept here, so that its states stay alive through the evaluation."""
        self._phases_with_workspace: set[str] = set()
        self._reference: Any = None

    def run(self, layers: Mapping[int, nn.Module]) -> AllocationLog:
        """Trace everything from loading to an evaluation; return the log.

        `layers` are the model's decoder layers by their index in the whole model, which names the
        segments of the log.
        """
        emulation = emulate_cuda(self.card, self.log, self.batch.share_in_loss)
        # Fake tensors have a shape and a storage, but no data. The order matters: the log must see
        # what the emulated functions do.
        fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
        num_words = self.model.config.get_text_config().vocab_size
        tiles = tiles_as_mapped(num_words, self.card.is_cpu)
        with fake_tensors, self.log, emulation, dequantize_for_dora(), tiles:
            self._load()
            hooks = [hook for index in layers for hook in self._add_hooks(layers, index)]
            kernel = self.model.config.get_text_config()._attn_implementation
            with assume_padding(self.batch.has_mask and kernel != "causal"):
                self._train()
                self._evaluate()
            for hook in hooks:
                hook.remove()
            for parameter in self.model.parameters():
                parameter.grad = None
        return self.log

    def _load(self) -> None:
        """Allocate the model, and a copy of it if that is the reference model."""
        materialize(self.model, self.precision)
        if self.needs_copy:
            self._reference = frozen_copy(self.model)

    def _train(self) -> None:
        """Trace one optimizer step. Its states exist before, as in every step but the first."""
        self.model.train()
        on_gpu = not self.card.is_cpu
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(self.job.optim, trained, on_gpu)
        self.log.enter("optimizer_step")
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        self._optimizer.step()
        _clear_gradients(trained)
        if self.stage.generates:
            self._generate()
        for _ in range(min(self.job.gradient_accumulation_steps, MAX_MICRO_BATCHES)):
            self._enter("forward")
            loss = self._loss(self.batch)
            self._enter("backward")
            _run_backward(loss)
            del loss
        self.log.enter("optimizer_step")
        if self.job.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(trained, self.job.max_grad_norm, foreach=on_gpu)
        self._optimizer.step()
        _clear_gradients(trained)

    def _generate(self) -> None:
        """Trace the answers to the prompts of a whole step, then their scoring by micro-batches."""
        models = self._models()
        num_rows = self.batch.rows * self.job.gradient_accumulation_steps
        with models.autocast():
            prompt_tokens = self.batch.tokens - self.batch.answer_tokens
            prompts = Prompts(num_rows, prompt_tokens, self.batch.answer_tokens)
            generate(self.model, prompts, self.log, "generation", do_sample=True)
        self._score_answers(models, self.batch)

    def _score_answers(self, models: Models, batch: Batch) -> None:
        """Trace the log-probabilities of generated answers before they are trained on."""
        if self.stage.extra_pass == "generation":
            models.log_probs_without_graph(batch)
        if self._needs_reference:
            models.reference_log_probs(batch)

    @property
    def needs_copy(self) -> bool:
        """True if the reference model is a copy of the model."""
        return self._needs_reference and not self.job.trains_adapter

    @property
    def _needs_reference(self) -> bool:
        """True if every step asks a reference model. With beta 0 there is nothing to ask."""
        has_reference = self.stage.reference != "none" and self.job.beta > 0
        return has_reference and not self.job.precompute_ref_log_probs

    def _evaluate(self) -> None:
        """Trace a forward pass without a graph on a batch of an evaluation, then the largest batch
        of tests, if the job checks the model."""
        self.log.enter("eval")
        self.model.eval()
        with torch.no_grad():
            if self.stage.generates:
                self._score_answers(self._models(), self.evaluation_batch)
            self._loss(self.evaluation_batch)
        if self.job.check_steps:
            prompts = Prompts(CHECK_BATCH_SIZE, self._check_prompt_tokens, CHECK_ANSWER_TOKENS)
            with self._models().autocast():
                generate(self.model, prompts, self.log, "eval", do_sample=False)

    @property
    def _check_prompt_tokens(self) -> int:
        """Tokens of a prompt: as many as planned, and no more than the model takes."""
        positions = self.model.config.get_text_config().max_position_embeddings
        return max(1, min(CHECK_PROMPT_TOKENS, positions - CHECK_ANSWER_TOKENS))

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss of the job's stage on one micro-batch."""
        return LOSSES[self.stage.loss](self._models(), self.job, batch)

    def _models(self) -> Models:
        return Models(self.model, self._reference, self.precision.autocast)

    def _enter(self, phase: str) -> None:
        """Begin a phase. Its thread allocates a cuBLAS workspace once, at its first product."""
        self.log.enter(phase)
        if phase not in self._phases_with_workspace:
            self._phases_with_workspace.add(phase)
            if self.card.workspace_bytes:
                self.log.allocate(self.card.workspace_bytes, "cuBLAS workspace")

    def _add_hooks(self, layers: Mapping[int, nn.Module], index: int) -> Sequence[Any]:
        """Make a layer enter its own segments, such as `forward/0` and `backward/31`.

        Memory is linear in depth only where the same layer is at work.
        """
        indices = tuple(layers)
        segment = LayerSegment(
            self.log, index, is_first=index == indices[0], is_last=index == indices[-1]
        )
        return (
            layers[index].register_forward_pre_hook(segment.before, with_kwargs=True),
            layers[index].register_forward_hook(segment.after, with_kwargs=True),
        )


@dataclass(frozen=True)
class LayerSegment:
    """Hooks that tell the log which decoder layer is at work."""

    log: AllocationLog
    index: int
    is_first: bool
    is_last: bool

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin the layer in a forward pass; in a backward pass, the embedding follows."""
        x = args[0] if args else kwargs["hidden_states"]
        if self.log.phase == "forward":
            self.log.enter(f"forward/{self.index}")
            if self.is_first and x.requires_grad:
                x.register_hook(self._enters("backward"))

    def after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Begin the layer in a backward pass; in a forward pass, norm and head follow the last."""
        if self.log.phase != "forward":
            return
        x = output[0] if isinstance(output, tuple) else output
        if x.requires_grad:
            x.register_hook(self._enters(f"backward/{self.index}"))
        if self.is_last:
            self.log.enter("forward")

    def _enters(self, segment: str) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self.log.enter(segment)

        return hook


def _run_backward(loss: Tensor) -> None:
    """Run `loss.backward()`, which itself would leave `emulate_cuda` in recomputed layers."""
    _engine_run_backward(
        (loss,),
        (torch.ones_like(loss),),
        False,
        False,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def _clear_gradients(parameters: Sequence[Tensor]) -> None:
    """Run `optimizer.zero_grad(set_to_none=True)`."""
    for parameter in parameters:
        parameter.grad = None
