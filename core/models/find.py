"""find_model: a base model from a preset, a folder or the Hugging Face Hub.

Never loads weights: what a folder holds is read by core/models/folder.py.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from core.job import Cure, ModelNotFound, Problem, SpecError, UnknownArchitecture
from core.job.places import in_time, is_there, require_allowed, unanswered, unquoted
from core.models.config_values import require_sound_values
from core.models.folder import (
    ADAPTER_CONFIG,
    ModelFolder,
    adapter_as_model,
    not_found,
    read_download,
    read_folder,
)
from core.models.presets import PRESETS_DIR, ModelPreset, models
from core.models.shapes import ModelShape
from core.models.weights import holds_experts, require_adapter_fits, require_all_parameters
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES
from core.training.contract.weights.adapters import read_adapter
from core.training.contract.weights.files import Tensors, UnusableWeights
from core.training.contract.weights.forms import Published, published_form

DEMO_DIR = PRESETS_DIR / "demo" / "model"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
ALL_LINEAR = "all-linear"
LAYER_NUMBER = re.compile(r"\.\d+\.")
MAX_NAMES = 12
"""Names of layers that a message offers."""
SECONDS_TO_READ = 20.0
"""Time for the headers of all weight files of a folder."""
HUB_TIMEOUT_SECONDS = 3
HUB_RETRY_SECONDS = 30
"""A Hub that did not answer is asked again after this long."""
OFFLINE = ("is not downloaded and the Hub cannot be reached", "go online once, or give a folder")
WRITES = "give the output of a run that writes answers, or leave it empty"
NO_REVISION = ("has no revision {revision!r}", "give a branch, tag or commit that it has")


@dataclass(frozen=True)
class ModelSource:
    """Base model that was found."""

    reference: str
    """As the user wrote it; of a preset, its id."""
    location: str
    """Hub id or absolute path of a folder, as from_pretrained takes it."""
    title: str
    shape: ModelShape | None
    """None for an unknown architecture: it can train, but has no estimate."""
    num_parameters: int | None
    is_local: bool
    """True for a folder on this machine."""
    config: Mapping[str, object] = field(repr=False, hash=False)
    """Content of config.json; of a preset, the keys that determine its shape."""
    tensors: Tensors | None = field(default=None, repr=False, hash=False, compare=False)
    """Tensors in its files; None if they are not all here."""
    num_tokens: int | None = None
    """Tokens of its tokenizer, if they are known."""
    has_tokenizer: bool = True
    """False for a folder without any file of a tokenizer."""

    @property
    def published(self) -> Published | None:
        """Form in which it is published, if it is quantized."""
        return published_form(self.config)

    @property
    def only_method(self) -> str | None:
        """Method that alone can train a base that is quantized already; None for any other base."""
        published = self.published
        return published.only_method if published else None

    def problems(self, stage: str, method: str | None = None) -> Iterator[Problem]:
        """Yield why its files cannot be trained in a stage, by a method if one is given."""
        published = self.published
        if published:
            found = published.problem_with(method)
            if found:
                yield Problem("model", f"{self.reference} {found[0]}", found[1], self._cure())
                return
        if self.shape is None or self.tensors is None:
            return
        has_score_head = STAGES[stage].head == "score"
        try:
            require_all_parameters(self.tensors, self.shape, published, has_score_head)
        except UnusableWeights as error:
            yield Problem("model", f"{self.reference}: {error.problem}", error.fix)
        if (self.num_tokens or 0) > self.shape.vocab_size:
            problem = f"the tokenizer of {self.reference} has {self.num_tokens:,} tokens, but the "
            problem += f"model only {self.shape.vocab_size:,} embeddings"
            fix = "call resize_token_embeddings on it and save it again, or take its own tokenizer"
            yield Problem("model", problem, fix)

    def _cure(self) -> Cure | None:
        method = self.only_method
        if method is None:
            return None
        return Cure(f"Choose the method {METHODS[method].title}", {"method": method})

    def adapter_problem(self, folder: Path) -> Problem | None:
        """Return why the adapter in a folder cannot continue over this model; None if it can."""
        try:
            adapter = read_adapter(folder)
            if adapter.settings.get("task_type") == "SEQ_CLS":
                return Problem("adapter", "it scores answers, and does not write any", WRITES)
            if self.shape is not None:
                require_adapter_fits(adapter, self.shape, self.reference)
        except UnusableWeights as error:
            return Problem("adapter", error.problem, error.fix)
        return None

    def target_problem(self, target_modules: str) -> Problem | None:
        """Return why there is no layer of these names for an adapter; None if there may be one.

        Names are read from the weights. Where the shape is known, the estimate says it.
        """
        if self.shape is not None or self.tensors is None or target_modules == ALL_LINEAR:
            return None
        modules = [name.removesuffix(".weight") for name in self.tensors]
        unknown = [
            target
            for target in target_modules.split(",")
            if not any(f".{module}".endswith(f".{target}") for module in modules)
            and not holds_experts(target, self.tensors)
        ]
        if not unknown:
            return None
        layers = {
            name.split(".")[-2]: None
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and len(tensor.shape) == 2 and LAYER_NUMBER.search(name)
        }
        problem = f"{self.reference} has no layer {' or '.join(unknown)}"
        names = ", ".join([*layers][:MAX_NAMES])
        return Problem("target_modules", problem, f"choose from {names}, or {ALL_LINEAR}")

    def missing_files(self) -> Problem | None:
        """Return what a folder lacks for a training; its memory can be estimated nevertheless."""
        fix = "give a folder written by save_pretrained"
        if self.is_local and self.tensors is None:
            return Problem("model", f"{self.reference} has no weights in its folder", fix)
        if not self.has_tokenizer:
            fix = "copy tokenizer.json and tokenizer_config.json of its base into the folder"
            return Problem("model", f"{self.reference} has no tokenizer in its folder", fix)
        return None


def find_model(reference: str, revision: str = "main") -> ModelSource:
    """Find `demo`, a preset by id or name ("llama 3.1 8b"), the path of a folder, or a Hub id.

    Presets are read offline. The config.json of a Hub id comes from the Hub's cache or, with the
    user's token, from the Hub. Raises ModelNotFound.
    """
    if reference == "demo":
        return _in_folder(reference, DEMO_DIR, "Demo model")
    reference = unquoted(reference)
    if reference.startswith((".", "~")) or Path(reference).is_absolute():
        folder = _folder(reference)
        return _in_folder(reference, folder, folder.name)
    if preset := models().get(reference) or _presets_by_name().get(_normalized(reference)):
        return ModelSource(
            reference=preset.id,
            location=preset.id,
            title=preset.name,
            shape=preset.shape,
            num_parameters=preset.num_parameters,
            is_local=False,
            config=preset.config,
        )
    if _is_folder(reference):  # as transformers does: a folder comes before the Hub
        folder = _folder(reference)
        return _in_folder(f"./{reference}", folder, folder.name)
    if HUB_ID.fullmatch(reference):
        try:
            config = hub_config_path(reference, revision)
        except ModelNotFound:
            _require_no_downloaded_adapter(reference, revision)
            raise
        found = read_download(reference, config)
        return _source(reference, reference, reference, found, is_local=False)
    fix = "choose a preset, or give owner/name, or a path such as ./model"
    if similar := _similar_presets(reference):
        fix = f"did you mean {' or '.join(similar)}?"
    raise not_found(f"{reference!r} is not a preset, a folder or a Hub id", fix)


def _require_no_downloaded_adapter(reference: str, revision: str) -> None:
    """Raise ModelNotFound if what the Hub's cache holds under a name is an adapter."""
    from huggingface_hub import errors, try_to_load_from_cache

    cached = None
    with suppress(errors.HFValidationError):
        cached = try_to_load_from_cache(reference, ADAPTER_CONFIG, revision=revision)
    if isinstance(cached, str):
        raise adapter_as_model(reference, Path(cached))


def _is_folder(reference: str) -> bool:
    return bool(reference) and is_there(Path(reference), Path.is_dir)


@cache
def _presets_by_name() -> Mapping[str, ModelPreset]:
    """Return presets by everything that users may call them: name, id, id without its owner."""
    found = {}
    for preset in reversed(
        tuple(models().values())
    ):  # of two with one name, the first in the file wins
        for name in (preset.name, preset.id.rpartition("/")[2], preset.id):
            found[_normalized(name)] = preset
    return found


def _similar_presets(reference: str) -> Sequence[str]:
    """Return up to three presets whose names contain every word of it, or else look similar."""
    words = re.findall(r"[a-z]+|[0-9.]+", reference.lower())
    if words:
        matches = [
            preset.id
            for preset in models().values()
            if all(word in preset.name.lower() for word in words)
        ]
        if matches:
            return matches[:3]
    names = get_close_matches(_normalized(reference), _presets_by_name(), 3)
    return tuple(dict.fromkeys(_presets_by_name()[name].id for name in names))


def _normalized(name: str) -> str:
    """Return a name without the spaces, signs and capitals that users write differently."""
    return re.sub(r"[^a-z0-9./]", "", name.lower())


def _folder(reference: str) -> Path:
    try:
        place = Path(reference).expanduser().absolute()
        require_allowed(place, "model")
        folder = in_time(place.resolve, place)
        if is_there(folder, Path.is_dir):
            return folder
        if is_there(folder):
            raise _file_as_model(reference, folder)
    except SpecError as error:
        raise ModelNotFound(*error.problems) from None
    except (OSError, RuntimeError, ValueError):  # unknown user, circular links, null byte
        pass
    fix = "give the folder that contains config.json and the weights"
    raise not_found(f"there is no folder {reference!r}", fix)


def _file_as_model(reference: str, file: Path) -> ModelNotFound:
    """Return what to give instead of a file: its folder, or for GGUF another model."""
    if file.suffix.lower() == ".gguf":
        problem = f"{reference} is a GGUF file, which is for running a model, not for training"
        return not_found(problem, "choose the model in safetensors that it was made of")
    return not_found(f"{reference} is a file, not a folder", f"give {file.parent}")


def _in_folder(reference: str, folder: Path, title: str) -> ModelSource:
    try:
        found = in_time(lambda: read_folder(reference, folder), folder, SECONDS_TO_READ)
    except TimeoutError as error:
        raise ModelNotFound(unanswered("model", folder, error)) from None
    return _source(reference, str(folder), title, found, is_local=True)


def _source(
    reference: str, location: str, title: str, found: ModelFolder, is_local: bool
) -> ModelSource:
    shape = num_parameters = None
    try:
        require_sound_values(found.config)
        shape = ModelShape.from_config(found.config)
        num_parameters = shape.num_parameters
        if shape.tower:
            num_parameters += shape.tower.num_parameters
    except UnknownArchitecture:
        pass
    except ValueError as error:
        fix = "repair its config.json, or choose another model"
        raise not_found(f"{reference}: {error}", fix) from None
    return ModelSource(
        reference,
        location,
        title,
        shape,
        num_parameters,
        is_local,
        found.config,
        found.tensors,
        found.num_tokens,
        found.has_tokenizer,
    )


@cache  # a form asks on every edit
def hub_config_path(repo_id: str, revision: str) -> Path:
    """Return the path of a Hub model's config.json, downloaded if it is not in the cache."""
    # slow to import, and only a Hub id needs it
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    # the first match counts: a gated repository is also a repository that is not found
    failures: Mapping[type[Exception], tuple[str, str]] = {
        errors.GatedRepoError: (
            "is gated",
            "accept its licence on huggingface.co, then run `hf auth login`",
        ),
        errors.RepositoryNotFoundError: (
            "is not on the Hub",
            "check owner and name; a private one needs `hf auth login`",
        ),
        errors.RevisionResolutionError: NO_REVISION,
        errors.RevisionNotFoundError: NO_REVISION,
        errors.RemoteEntryNotFoundError: (
            "has no config.json",
            "choose a model for transformers; of an adapter choose its base, and the adapter's "
            "downloaded folder as adapter",
        ),
        errors.HFValidationError: ("is not a Hub id", "give owner/name"),
        errors.LocalEntryNotFoundError: OFFLINE,
        OSError: ("cannot be read from the Hub", "try again, or give a folder"),
    }
    try:
        cached = try_to_load_from_cache(repo_id, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not hub_answers(int(time.monotonic() / HUB_RETRY_SECONDS)):
            raise not_found(f"{repo_id} {OFFLINE[0]}", OFFLINE[1])
        return Path(hf_hub_download(repo_id, "config.json", revision=revision))
    except tuple(failures) as error:
        problem, fix = next(said for kind, said in failures.items() if isinstance(error, kind))
        raise not_found(f"{repo_id} {problem.format(revision=revision)}", fix) from None


@lru_cache(maxsize=1)
def hub_answers(_period: int) -> bool:
    """Return False quickly where there is no network; a download would retry for half a minute.

    Cached for one period of HUB_RETRY_SECONDS, because a form asks on every edit.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception:  # any failure of any HTTP library means "no answer"
        return False
    return True
