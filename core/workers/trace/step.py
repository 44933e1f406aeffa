"""One run in miniature: load, one optimizer step with its states in place, one evaluation."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward

from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.model.load import Precision

from .allocation_log import Ledger
from .cuda import Card, as_on
from .generation import draw
from .kernels import SCRATCH
from .loss import LOSSES, Models, batch_of
from .model import dequantised_for_dora, mask_known, materialise
from .optimizers import optimizer_of


class Run:
    """A model at work, with a ledger of its memory."""

    def __init__(self, model: Any, job: Job, card: Card, precision: Precision):
        self.model = model
        self.job = job
        self.stage = STAGES[job.stage]
        self.card = card
        self.precision = precision
        self.batch = batch_of(job)
        self.ledger = Ledger({} if card.is_cpu else SCRATCH)
        self._workspaces: set[str] = set()
        self._optimizer: Any = None
        self._reference: Any = None

    def play(self, layers: Mapping[int, nn.Module]) -> Ledger:
        """Everything from loading to an evaluation; `layers` are the model's decoder layers, by the name of each."""
        ledger = self.ledger
        functions = as_on(self.card, ledger, self.batch.share_scored)
        with FakeTensorMode(allow_non_fake_inputs=True), ledger, functions, dequantised_for_dora():
            self._load()
            hooks = [hook for name in layers for hook in self._watch(layers, name)]
            kernel = self.model.config.get_text_config()._attn_implementation
            with mask_known(self.batch.has_mask and kernel != "causal"):
                self._train()
                self._evaluate()
            for hook in hooks:
                hook.remove()
            for parameter in self.model.parameters():
                parameter.grad = None
        return ledger

    def _load(self) -> None:
        """The model, and a copy of it if that is what it is held against."""
        materialise(self.model, self.precision)
        if self._needs_reference and not METHODS[self.job.method].trains_adapter:
            self._reference = copy.deepcopy(self.model).requires_grad_(False)

    def _train(self) -> None:
        """One optimizer step; its states exist before, as in every step but the first."""
        model, ledger = self.model.train(), self.ledger
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer = optimizer_of(
            self.job.optim, trained, on_gpu=not self.card.is_cpu
        )
        ledger.enter("optimizer_step")
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        _clear_gradients(trained)
        self._draw()
        for _ in range(
            min(self.job.gradient_accumulation_steps, 2)
        ):  # the third finds what the second found
            self._enter("forward")
            loss = self._loss()
            self._enter("backward")
            _run_backward(loss)
            del loss
        ledger.enter("optimizer_step")
        if self.job.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(
                trained, self.job.max_grad_norm, foreach=not self.card.is_cpu
            )
        optimizer.step()
        _clear_gradients(trained)

    def _draw(self) -> None:
        """Answers to the prompts of a whole step, and what each model makes of them, by micro-batches."""
        if not self.stage.generates:
            return
        models, batch = self._models(), self.batch
        num_rows = batch.rows * self.job.gradient_accumulation_steps
        with models.autocast():
            draw(self.model, num_rows, batch.tokens, batch.answer_tokens, self.ledger)
        self._ask_beforehand(models)

    def _ask_beforehand(self, models: Models) -> None:
        """What models say of answers that were drawn."""
        if self.stage.extra_pass == "generation":
            models.log_probs_without_graph(self.batch)
        if self._needs_reference:
            models.reference_log_probs(self.batch)

    @property
    def _needs_reference(self) -> bool:
        """True if the model as it was is asked in every step; a pull of no strength asks nothing."""
        needs = self.stage.reference != "none"
        return needs and self.job.beta > 0 and not self.job.precompute_ref_log_probs

    def _evaluate(self) -> None:
        """A forward pass without a graph, on a batch of the same size."""
        self.ledger.enter("eval")
        self.model.eval()
        with torch.no_grad():
            if self.stage.generates:
                self._ask_beforehand(self._models())
            self._loss()

    def _loss(self) -> Tensor:
        """The loss of the job's stage on one micro-batch."""
        return LOSSES[self.stage.loss](self._models(), self.job, self.batch)

    def _models(self) -> Models:
        return Models(self.model, self._reference, self.precision.autocast)

    def _enter(self, phase: str) -> None:
        """A phase begins; its thread takes a cuBLAS workspace at its first product, and keeps it."""
        self.ledger.enter(phase)
        if phase not in self._workspaces:
            self._workspaces.add(phase)
            if self.card.workspace_bytes:
                self.ledger.allocate(self.card.workspace_bytes, "cuBLAS workspace")

    def _watch(self, layers: Mapping[int, nn.Module], name: int) -> Sequence[Any]:
        """Tells the ledger at which layer a pass is, `forward/0` or `backward/31`: each keeps peaks of its own, for
        memory is linear in depth only where the same layer works."""
        layer, names = layers[name], tuple(layers)
        segment = Segment(
            self.ledger, str(name), is_first=name == names[0], is_last=name == names[-1]
        )
        return (
            layer.register_forward_pre_hook(segment.before, with_kwargs=True),
            layer.register_forward_hook(segment.after, with_kwargs=True),
        )


@dataclass(frozen=True)
class Segment:
    """The part of a pass that one decoder layer takes."""

    ledger: Ledger
    layer: str
    is_first: bool
    is_last: bool

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward: the layer begins. Backward: behind the first layer the embedding is left."""
        x = args[0] if args else kwargs["hidden_states"]
        if self.ledger.phase == "forward":
            self.ledger.enter(f"forward/{self.layer}")
            if self.is_first and x.requires_grad:
                x.register_hook(self._enters("backward"))

    def after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward: behind the last layer come the last norm and the head. Backward: the layer begins."""
        if self.ledger.phase != "forward":
            return
        x = output[0] if isinstance(output, tuple) else output
        if x.requires_grad:
            x.register_hook(self._enters(f"backward/{self.layer}"))
        if self.is_last:
            self.ledger.enter("forward")

    def _enters(self, segment: str) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self.ledger.enter(segment)

        return hook


def _run_backward(loss: Tensor) -> None:
    """`loss.backward()`, which itself would leave the functions of `as_on` while layers are computed again."""
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
    """`optimizer.zero_grad(set_to_none=True)`."""
    for parameter in parameters:
        parameter.grad = None
