"""`python app.py models`: what a card can train. Prints; decides nothing."""

from pathlib import Path
from typing import get_args

from core import dataset
from core.after_training.compare.on_card import (
    DEFAULT_LENGTH,
    ModelOnCard,
    Order,
    Wish,
    find_gpu,
    models_on_card,
)
from core.job import Problem, SpecError
from core.job.places import is_there
from core.models import models
from core.resolve import dataset_path
from core.runs import Home
from core.speed import RowStatistics
from core.training.contract.methods import METHODS
from core.training.contract.stages import DEFAULT_STAGE
from core.wording import count, memory, rough_duration
from ui.terminal.printing import out, print_json, wide_table
from ui.terminal.usage import is_whole

MAX_SHOWN = 60
CHARACTERS_PER_TOKEN = 4
"""Of English text with the vocabularies of today; --json and the table say that hours are rough."""


def show_models(
    *,
    home: str | None = None,
    gpu: str = "local",
    stage: str = DEFAULT_STAGE,
    max_length: str = str(DEFAULT_LENGTH),
    dataset: str = "",
    sort: str = "largest",
    json: bool = False,
) -> int:
    """Print every preset and method that fits a card. Raises TailorError."""
    wish = Wish(find_gpu(gpu), stage, _length(max_length), _order(sort))
    rows = _rows_of(dataset, stage) if dataset else None
    found = models_on_card(Home.find(home), wish, rows)
    if json:
        print_json([each.to_json() for each in found])
    else:
        _print(wish, found, rows)
    return 0


def _length(text: str) -> int:
    if not is_whole(text):
        raise SpecError(
            Problem("max_length", f"{text[:40]!r} is not a number", "give 2048 or the like")
        )
    return int(text)


def _order(text: str) -> Order:
    for order in get_args(Order):
        if order == text:
            return order
    choices = ", ".join(get_args(Order))
    raise SpecError(Problem("sort", f"{text!r} is not one of {choices}", "choose one of these"))


def _rows_of(reference: str, stage: str) -> RowStatistics:
    """Return the number of rows of a file, and their length by its size. Raises TailorError."""
    path = dataset_path(reference, stage)
    if not is_there(path):
        raise SpecError(Problem("dataset", f"there is no file {reference}", "give its path"))
    report = dataset.check_file(path, stage)
    if not report.is_usable:
        fix = f"`python app.py check {reference}` says what is wrong with it"
        raise SpecError(Problem("dataset", f"{Path(reference).name} cannot be used", fix))
    mean = path.stat().st_size / CHARACTERS_PER_TOKEN / max(1, report.valid_rows)
    return RowStatistics(report.valid_rows, mean)


def _print(wish: Wish, found: tuple[ModelOnCard, ...], rows: RowStatistics | None) -> None:
    gpu = wish.gpu
    what = f"{wish.stage} on {gpu.name} with {memory(gpu.capacity_bytes)}"
    if not found:
        out.print(f"{what}: no preset fits. Lower --max-length, or choose a larger card.")
        return
    num_models = len({each.model for each in found})
    out.print(f"{what}: {num_models} of {len(models())} models fit, {len(found)} ways.")
    heads = ["model", "size", "method", "batch", "length", "memory", "tokens/s"]
    heads += ["time", "price"] if rows else []
    out.print(wide_table(tuple(heads), [_row(each) for each in found[:MAX_SHOWN]]))
    if len(found) > MAX_SHOWN:
        out.print(f"And {len(found) - MAX_SHOWN} more; --json prints all.")
    if rows:
        out.print(
            f"Time and price: {rows.num_rows:,} rows of about {rows.mean_tokens:,.0f} tokens, "
            "three passes, ± 25 %; a token is taken for 4 bytes."
        )


def _row(each: ModelOnCard) -> tuple[str, ...]:
    model = models()[each.model]
    speed = "–" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}"
    cells = (
        model.name,
        count(model.num_parameters),
        METHODS[each.method].title,
        str(each.per_device_train_batch_size),
        f"{each.max_length:,}",
        memory(each.total_bytes),
        speed,
    )
    if each.hours is None:
        return cells
    price = "–" if each.usd is None else f"${each.usd:,.2f}"
    return (*cells, rough_duration(3600 * each.hours), price)
