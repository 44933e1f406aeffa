"""Models of a chat: loaded when a side first needs them, as many at a time as fit."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.training.contract.job import Job
from core.training.data.tokenizer import load_tokenizer
from core.workers.trained_model import TOKENIZER, TrainedModel, load_trained

from .prompts import Prompt, require_bounded_template


@dataclass(frozen=True)
class Side:
    """Model that answers, with its adapter on or off."""

    name: str
    place: int
    """Place of its model among the models."""
    uses_adapter: bool


class LoadedModels:
    """Models of a chat by their place. The one that was used longest ago makes room."""

    def __init__(self, models: Sequence[Mapping[str, Any]], num_loaded: int) -> None:
        self._jobs = [Job.from_json(model["job"]) for model in models]
        self._weights = [Path(each["weights"]) if each["weights"] else None for each in models]
        self._num_loaded = num_loaded
        self._loaded: dict[int, TrainedModel] = {}

    def load_first(self) -> None:
        """Load as many models as are kept. Raises what their libraries raise."""
        for place in range(min(self._num_loaded, len(self._jobs))):
            self.get(place)

    def get(self, place: int) -> TrainedModel:
        """Return a model, loaded now if it is not yet."""
        if place in self._loaded:
            model = self._loaded.pop(place)
        else:
            self._require_sound_template(place)
            while len(self._loaded) >= self._num_loaded:
                del self._loaded[next(iter(self._loaded))]
                free_memory()
            model = load_trained(self._jobs[place], self._weights[place])
        self._loaded[place] = model  # last, as the one that was used last
        return model

    def name_of(self, place: int) -> str:
        """Return the model of a job, for messages."""
        return self._jobs[place].model

    def has_template(self, place: int) -> bool:
        """Return False for a model that only continues texts."""
        return bool(self._tokenizer(place).chat_template)

    def _require_sound_template(self, place: int) -> None:
        """Raise TrainingError if the chat template never ends. Loading would print with it."""
        require_bounded_template(Prompt(self._tokenizer(place), self.name_of(place), ()))

    def _tokenizer(self, place: int) -> Any:
        if place in self._loaded:
            return self._loaded[place].tokenizer
        job, weights = self._jobs[place], self._weights[place]
        source, revision = job.model, job.revision
        if weights is not None and (weights / TOKENIZER).is_file():
            source, revision = str(weights), "main"
        return load_tokenizer(source, revision, is_conversational=False)


@contextmanager
def answering(model: TrainedModel, uses_adapter: bool) -> Iterator[None]:
    """Let a model answer in the precision of its training, with its adapter on or off."""
    with nullcontext() if uses_adapter else model.without_adapter(), model.inference():
        yield


def free_memory() -> None:
    """Give what is no longer used back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
