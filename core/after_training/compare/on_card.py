"""Base models that a card can train: each preset by each method, with its batch and its speed.

Estimates only. What was found for a card is kept in the home folder, because hundreds of searches
take seconds.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from core.advise import Case, largest_batch
from core.device import identify, is_alive, local_gpu
from core.job import JobSpec, Problem, SpecError
from core.models import PRESETS_DIR, Gpu, ModelPreset, ModelShape, find_model, gpus, models
from core.runs import Home
from core.speed import RowStatistics, predict_speed
from core.training.contract.files import write_json
from core.training.contract.methods import METHODS

Order = Literal["largest", "fastest", "context"]
DEFAULT_LENGTH = 2048
CONTEXTS = tuple(2**power for power in range(9, 18))
"""Lengths of rows among which the longest that fits is searched: 512 to 131,072 tokens."""
MARKED_METHODS = ("full", "lora", "qlora")
"""Methods that a menu of models names, the most demanding first."""
MANY_SEARCHES = 24
"""More models than this are searched by several processes."""
ESTIMATE_ROOMS = ("advise", "job", "memory", "models", "training/contract")
"""Rooms of core whose code decides what fits: what was kept is of no use once they change."""


@dataclass(frozen=True)
class Setting:
    """Largest job of one model and method that fits a card."""

    method: str
    batch: int
    max_length: int
    total_bytes: int


@dataclass(frozen=True)
class ModelOnCard:
    """Base model that a card can train by a method."""

    model: str
    method: str
    per_device_train_batch_size: int
    """Largest that fits."""
    max_length: int
    total_bytes: int
    """Estimated memory at that batch size and length."""
    tokens_per_second: float | None
    """None for a card of unknown speed."""
    hours: float | None = None
    """For the user's data; None without data."""
    usd: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return the object that `models --json` lists; hours and price only with data."""
        fields = asdict(self)
        if self.hours is None:
            del fields["hours"], fields["usd"]
        return fields


@dataclass(frozen=True)
class Wish:
    """Question about a card: which stage, how long rows are, what is best."""

    gpu: Gpu
    stage: str = "sft"
    max_length: int = DEFAULT_LENGTH
    order: Order = "largest"
    only: tuple[str, ...] = ()
    """Presets to look at; () for all."""

    @property
    def models(self) -> Mapping[str, ModelPreset]:
        """Return the presets to look at by id."""
        return {name: models()[name] for name in self.only or models()}


def find_gpu(name: str) -> Gpu:
    """Return `local` or a preset by its id or name, however it is written. Raises SpecError."""
    if name == "local":
        return local_gpu()
    known = {_plain(gpu.id): gpu for gpu in gpus().values()}
    known |= {_plain(gpu.name): gpu for gpu in gpus().values()}
    if gpu := known.get(_plain(name)):
        return gpu
    near = get_close_matches(_plain(name), known, n=4, cutoff=0.5)
    ids = dict.fromkeys(known[each].id for each in near)
    fix = f"choose local, {', '.join(gpus())}"
    if ids:
        fix = f"did you mean {' or '.join(ids)}?"
    raise SpecError(Problem("gpu", f"{name!r} is not a preset", fix))


def models_on_card(
    home: Home | None, wish: Wish, rows: RowStatistics | None = None
) -> tuple[ModelOnCard, ...]:
    """Return every preset and method that fits, the best for the wish first.

    Without a home the search is kept in this process alone.

    Raises SpecError if no job can be like this.
    """
    JobSpec.parse({"stage": wish.stage, "max_length": wish.max_length})  # says what is wrong
    settings = _settings_of_all(home, wish)
    found = []
    for model in wish.models.values():
        for setting in settings[model.id]:
            if not any(find_model(model.id).problems(wish.stage, setting.method)):
                found.append(_with_speed(wish, model, setting, rows))
    return tuple(sorted(found, key=_RANKS[wish.order]))


@lru_cache(maxsize=64)
def most_demanding_methods(gpu: Gpu, stage: str) -> Mapping[str, str]:
    """Return preset -> the most demanding of MARKED_METHODS with which it fits, "" for none.

    It fits if rows of DEFAULT_LENGTH do, one at a time. The first card takes seconds.
    """
    wish = Wish(gpu, stage)
    by_shape: dict[ModelShape, list[str]] = {}
    found = {}
    for model in models().values():
        if model.shape not in by_shape:
            by_shape[model.shape] = list(_fitting_methods(wish, model.shape))
        known = find_model(model.id)
        usable = (each for each in by_shape[model.shape] if not any(known.problems(stage, each)))
        found[model.id] = next(usable, "")
    return found


def _fitting_methods(wish: Wish, shape: ModelShape) -> Iterator[str]:
    """Yield the MARKED_METHODS with which rows of a usual length fit, one at a time."""
    length = min(wish.max_length, shape.max_position_embeddings)
    for method in MARKED_METHODS:
        with suppress(SpecError):  # the stage or the method is not for this model
            job = _job(wish, method, length, _smallest_batch(wish, method))
            if Case(job, shape, wish.gpu).fits:
                yield method


def _by_size(each: ModelOnCard) -> tuple[float, ...]:
    return (-models()[each.model].num_parameters, *_by_speed(each))


def _by_speed(each: ModelOnCard) -> tuple[float, ...]:
    return (-(each.tokens_per_second or 0), each.total_bytes)


def _by_context(each: ModelOnCard) -> tuple[float, ...]:
    return (-each.max_length, *_by_size(each))


_RANKS: Mapping[Order, Callable[[ModelOnCard], tuple[float, ...]]] = {
    "largest": _by_size,
    "fastest": _by_speed,
    "context": _by_context,
}


def _plain(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("_", " ")
    return "-".join(words.replace("-", " ").split())


def _with_speed(
    wish: Wish, model: ModelPreset, setting: Setting, rows: RowStatistics | None
) -> ModelOnCard:
    job = _job(wish, setting.method, setting.max_length, setting.batch)
    speed = predict_speed(job, model.shape, wish.gpu, rows)
    rate = hours = usd = None
    if speed:
        rate = speed.tokens_per_second
    if speed and rows:
        hours, usd = speed.hours, speed.usd
    return ModelOnCard(
        model=model.id,
        method=setting.method,
        per_device_train_batch_size=setting.batch,
        max_length=setting.max_length,
        total_bytes=setting.total_bytes,
        tokens_per_second=rate,
        hours=hours,
        usd=usd,
    )


def _job(wish: Wish, method: str, max_length: int, batch: int = 0) -> JobSpec:
    fields = {"stage": wish.stage, "method": method, "max_length": max_length}
    if batch:
        fields["per_device_train_batch_size"] = batch
    return JobSpec.parse(fields)


def settings_of(wish: Wish, shape: ModelShape) -> tuple[Setting, ...]:
    """Return what fits of one model, a setting for each method that does."""
    search = _longest_rows if wish.order == "context" else _largest_batch
    found = []
    for method in METHODS:
        with suppress(SpecError):  # the stage, the method or the length is not for this model
            found.append(search(wish, shape, method))
    return tuple(filter(None, found))


def _largest_batch(wish: Wish, shape: ModelShape, method: str) -> Setting | None:
    job = _job(wish, method, wish.max_length)
    batch = largest_batch(job, shape, wish.gpu)
    if batch is None:
        return None
    return _setting(Case(_job(wish, method, wish.max_length, batch), shape, wish.gpu))


def _longest_rows(wish: Wish, shape: ModelShape, method: str) -> Setting | None:
    """Return the longest rows that fit one at a time, up to the positions of the model."""
    smallest = _smallest_batch(wish, method)
    longest = None
    lengths = [each for each in CONTEXTS if each <= shape.max_position_embeddings]
    low, high = 0, len(lengths)
    while low < high:
        middle = (low + high) // 2
        case = Case(_job(wish, method, lengths[middle], smallest), shape, wish.gpu)
        if case.fits:
            longest, low = case, middle + 1
        else:
            high = middle
    if longest:
        return _setting(longest)
    return None


def _smallest_batch(wish: Wish, method: str) -> int:
    for batch in (1, 2):
        with suppress(SpecError):
            _job(wish, method, CONTEXTS[0], batch)
            return batch
    return JobSpec.parse({"stage": wish.stage, "method": method}).per_device_train_batch_size


def _setting(case: Case) -> Setting:
    job = case.job
    batch, total_bytes = job.per_device_train_batch_size, case.memory.total_bytes
    return Setting(job.method, batch, job.max_length, total_bytes)


def _settings_of_all(home: Home | None, wish: Wish) -> Mapping[str, tuple[Setting, ...]]:
    """Return preset -> what fits of it, as it was kept, or searched now and kept."""
    if home is None:
        return _searched(wish)
    place = home.path / "models" / f"{_key(wish)}.json"
    kept = _kept(place, wish.models)
    if kept is not None:
        return kept
    found = _searched(wish)
    with suppress(OSError):  # a full disk
        place.parent.mkdir(exist_ok=True)
        write_json(place, {name: list(map(astuple, found[name])) for name in found})
    return found


@lru_cache(maxsize=32)
def _searched(wish: Wish) -> Mapping[str, tuple[Setting, ...]]:
    shapes = tuple(dict.fromkeys(model.shape for model in wish.models.values()))
    by_shape = dict(zip(shapes, _search_all(wish, shapes), strict=True))
    return {name: by_shape[model.shape] for name, model in wish.models.items()}


def _kept(place: Path, names: Iterable[str]) -> Mapping[str, tuple[Setting, ...]] | None:
    try:
        fields = json.loads(place.read_text(encoding="utf-8"))
        found = {name: tuple(Setting(*row) for row in fields[name]) for name in names}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):  # none, or damaged
        return None
    return found


def _search_all(wish: Wish, shapes: Sequence[ModelShape]) -> Iterable[tuple[Setting, ...]]:
    num_workers = min(os.cpu_count() or 1, 8)
    if num_workers == 1 or len(shapes) < MANY_SEARCHES:
        return [settings_of(wish, shape) for shape in shapes]
    with get_context("spawn").Pool(num_workers, _end_with_parent) as workers:
        return workers.starmap(settings_of, [(wish, shape) for shape in shapes], chunksize=2)


def _end_with_parent() -> None:
    """End this worker soon after the program that started it, even if that was killed."""
    parent = identify(os.getppid())

    def watch() -> None:
        while parent is not None and is_alive(parent):
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _key(wish: Wish) -> str:
    """Return a name for a search: the same card, stage and length under the same code."""
    length = 0 if wish.order == "context" else wish.max_length
    facts = (wish.gpu, wish.stage, length, wish.order == "context", wish.only)
    return sha256(f"{facts} {_code()}".encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """Return a hash of the code and the presets that decide what fits."""
    content = sha256()
    for path in _files_that_decide():
        content.update(path.read_bytes())
    return content.hexdigest()


def _files_that_decide() -> Iterator[Path]:
    core = Path(__file__).parents[2]
    for room in ESTIMATE_ROOMS:
        yield from sorted((core / room).rglob("*.py"))
    yield PRESETS_DIR / "models.toml"
