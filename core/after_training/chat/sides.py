"""Models that can answer: a base, the result of a run, one of its checkpoints or exports. Loads
nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.after_training.chat.errors import ChatError
from core.after_training.export import list_exports
from core.after_training.export.tools import server_folder
from core.job import JobSpec, Problem, RunNotFound
from core.job.places import require_allowed
from core.models import ModelSource, find_model
from core.resolve import reference_of
from core.runs import Home, Run
from core.runs.results.checking import find_run
from core.training.contract.stages import STAGES

BASE = "base"
"""Written behind the id of a run and an @: its model before the training."""


@dataclass(frozen=True)
class ChatSide:
    """One model that answers."""

    key: str
    """As users and pages name it: demo, RUN, RUN@base, RUN@40, RUN@gguf-Q8_0."""
    label: str
    """Its name in messages."""
    job: JobSpec
    """Job whose base it is, loaded as the job trains it."""
    weights: Path | None = None
    """Folder of the trained weights or the adapter; None for the base alone."""
    gguf: Path | None = None
    """Exported file, which llama.cpp answers with."""
    tools: Path | None = None
    """Folder of llama.cpp for it; None if it is not installed."""

    @property
    def is_trained(self) -> bool:
        """True for what a run has made."""
        return bool(self.weights or self.gguf)

    @property
    def has_adapter(self) -> bool:
        return self.weights is not None and self.job.trains_adapter

    def shares_model_with(self, other: "ChatSide") -> bool:
        """Return True if both are one loaded model, with its adapter on or off."""
        if self.gguf or other.gguf:
            return self.gguf == other.gguf
        if self.job != other.job:
            return False
        is_before = self.weights is None and other.has_adapter
        return self.weights == other.weights or is_before


@dataclass(frozen=True)
class ChatModel:
    """Model to load, and the sides that it answers for."""

    job: JobSpec
    weights: Path | None
    gguf: Path | None = None
    tools: Path | None = None


def models_of(sides: Sequence[ChatSide]) -> tuple[tuple[ChatModel, ...], tuple[int, ...]]:
    """Return (the models to load, the place among them of the model of each side)."""
    models: list[ChatModel] = []
    places = []
    for side in sides:
        partner = side
        for other in sides:
            if side.shares_model_with(other):
                partner = other
        model = ChatModel(partner.job, partner.weights, partner.gguf, partner.tools)
        if model not in models:
            models.append(model)
        places.append(models.index(model))
    return tuple(models), tuple(places)


def sides_of(run: Run) -> tuple[ChatSide, ...]:
    """Return what can answer of a run: its base, its result, its checkpoints, newest first, and its
    exported GGUF files.

    () for a reward model, which writes no answers.
    """
    if STAGES[run.job.stage].head == "score":
        return ()
    base_name = reference_of(run.job.model)
    sides = [ChatSide(f"{run.id}@{BASE}", f"before ({base_name})", run.job)]
    output = run.folder / "output"
    if run.state == "finished" and output.is_dir():
        sides.append(ChatSide(run.id, f"after ({run.name})", run.job, output))
    for checkpoint in reversed(run.checkpoints):
        if checkpoint.is_complete:
            key, label = f"{run.id}@{checkpoint.step}", f"{run.name} at step {checkpoint.step}"
            sides.append(ChatSide(key, label, run.job, checkpoint.folder))
    tools = server_folder(run.home)
    for export in list_exports(run):
        if (gguf := export.gguf) and gguf.is_file():
            label = f"{run.name} as {export.name}"
            if tools is None:
                label += " (needs `make export`)"
            key = f"{run.id}@{export.name}"
            sides.append(ChatSide(key, label, run.job, gguf=gguf, tools=tools))
    return tuple(sides)


def find_side(home: Home, text: str) -> ChatSide:
    """Return the side that a text names: RUN, RUN@STEP, RUN@base, RUN@EXPORT, or a model.

    RUN is as check-model takes it. A run without a result answers with its newest checkpoint.
    Raises ChatError, ModelNotFound, SpecError.
    """
    name, sign, place = text.rpartition("@")
    reference = name if sign else text
    try:
        run = find_run(home, reference)
    except RunNotFound:
        return _model_side(text)
    if run.home != home:
        require_allowed(Path(reference), "chat")
    sides = sides_of(run)
    key = f"{run.id}@{place}" if sign else run.id
    wanted = [side for side in sides if side.key == key]
    if not sign and not wanted:
        wanted = [side for side in sides if side.weights][:1]
    if wanted:
        return wanted[0]
    if not sides:
        problem = f"{run.id} trained a reward model, which scores answers and writes none"
        raise ChatError(Problem("chat", problem, "choose another run"))
    known = ", ".join(side.key for side in sides)
    problem = f"{run.id} has no result yet"
    if sign:
        kind = "checkpoint" if place.isdecimal() else "result, checkpoint or exported GGUF file"
        problem = f"{run.id} has no {kind} {place}"
    raise ChatError(Problem("chat", problem, f"choose {known}"))


def _model_side(reference: str) -> ChatSide:
    """Return a model that no run has trained. Raises ModelNotFound, ChatError."""
    source = find_model(reference)
    if missing := source.missing_files():
        raise ChatError(missing)
    fields = {"model": source.location, "method": _method_to_load(source), "dataset": "demo"}
    return ChatSide(source.reference, source.title, JobSpec.parse(fields))


def _method_to_load(source: ModelSource) -> str:
    """Return a method that loads the model in the form in which it is published."""
    published = source.published
    for method in ("full", "lora", "qlora"):
        if published is None or published.problem_with(method) is None:
            return method
    return "qlora"
