"""Models of a chat: loaded when a side first needs them, as many at a time as fit.

Imports no torch before a model needs it, because exported ones do not.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.training.contract.job import Job
from core.workers.quick_imports import quick_imports

from .question import Answerer


@dataclass(frozen=True)
class Side:
    """Model that answers, with its adapter on or off."""

    name: str
    place: int
    """Place of its model among the models."""
    uses_adapter: bool


class LoadedModels:
    """Models of a chat by their place. The one that was used longest ago makes room."""

    def __init__(
        self, models: Sequence[Mapping[str, Any]], num_loaded: int, num_tokens: int
    ) -> None:
        """Keep at most `num_loaded` models of transformers; exported ones all stay."""
        self._models = models
        self._jobs = [Job.from_json(model["job"]) for model in models]
        self._num_loaded = num_loaded
        self._num_tokens = num_tokens
        self._loaded: dict[int, Answerer] = {}
        self._exported: dict[int, Answerer] = {}

    def load_first(self) -> None:
        """Load as many models as are kept. Raises what their libraries raise."""
        num_left = self._num_loaded
        for place, model in enumerate(self._models):
            if model["gguf"] or num_left > 0:
                self.get(place)
            if not model["gguf"]:
                num_left -= 1

    def get(self, place: int) -> Answerer:
        """Return a model, loaded now if it is not yet."""
        if self._models[place]["gguf"]:
            if place not in self._exported:
                self._exported[place] = self._load_exported(place)
            return self._exported[place]
        if place in self._loaded:
            model = self._loaded.pop(place)
        else:
            model = self._load(place)
        self._loaded[place] = model  # last, as the one that was used last
        return model

    def name_of(self, place: int) -> str:
        """Return the model of a job, for messages."""
        return self._jobs[place].model

    def has_template(self, place: int) -> bool:
        """Return False for a model that only continues texts."""
        found = self._exported.get(place) or self._loaded.get(place)
        if found is not None:
            return found.has_template
        from .generation import read_tokenizer

        return bool(read_tokenizer(self._jobs[place], self._weights(place)).chat_template)

    def _load(self, place: int) -> Answerer:
        """Return a model of transformers, once others have made room for it."""
        with quick_imports():
            from .generation import TrainedAnswerer, require_sound_template

        job, weights = self._jobs[place], self._weights(place)
        require_sound_template(job, weights)
        while len(self._loaded) >= self._num_loaded:
            del self._loaded[next(iter(self._loaded))]
            free_memory()
        return TrainedAnswerer.load(job, weights)

    def _load_exported(self, place: int) -> Answerer:
        from .exported import ExportedAnswerer

        model = self._models[place]
        return ExportedAnswerer.load(model["tools"], Path(model["gguf"]), self._num_tokens)

    def _weights(self, place: int) -> Path | None:
        weights = self._models[place]["weights"]
        return Path(weights) if weights else None


def free_memory() -> None:
    """Give what is no longer used back to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
