"""Time edits of the page's form, without a browser: python benchmarks/page_edits.py

Prints for each kind of edit how many times the job was resolved, how long the answer took (fields,
estimate and all panels of the job) and how long it took until the suggestions were there too. Every
edit sets a value that was not seen before. Asserts nothing.

Medians on 2 cores, before the form was resolved once (commit ed057de) and after, in milliseconds:

    edit                              resolves  answer  with suggestions
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.resolve import jobs
from core.runs import Home
from ui.form import first_values
from ui.handlers import FIRST_STATE, Handlers, Suggestions, Undo, panels

LLAMA = "meta-llama/Llama-3.1-8B"
NUM_EDITS = 9
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Scenario:
    """Form, and a field that is edited again and again."""

    name: str
    form: Mapping[str, object]
    field: str
    values: Sequence[object]
    is_measured: bool = False
    """True: wait until the lengths of the rows are known."""


def form(model: str, method: str, stage: str = "sft", **changes: object) -> dict[str, object]:
    """Return the form as the page fills it for a model, with some changes."""
    named = {"model": model, "method": method, "stage": stage, "dataset": "demo"}
    return {**first_values(model, method, stage), **named, **changes}


RATES = [1e-4 + number * 1e-6 for number in range(NUM_EDITS)]
RANKS = list(range(20, 20 + NUM_EDITS))
LENGTHS = list(range(1500, 1500 + NUM_EDITS))
PLAIN = form(LLAMA, "qlora", gpu="rtx-4090", profile="custom")
TOO_LARGE = form(LLAMA, "full", gpu="rtx-4090", profile="custom")
FASTEST = form(LLAMA, "qlora", gpu="rtx-4090", profile="fastest")
SMALLEST = form(LLAMA, "qlora", gpu="rtx-4090", profile="smallest")
DPO = form("Qwen/Qwen2.5-7B", "full", "dpo", gpu="h200", profile="fastest")
DEMO = form("demo", "lora", gpu="rtx-4090", profile="custom")
SCENARIOS = (
    Scenario("plain, learning rate", PLAIN, "learning_rate", RATES),
    Scenario("plain, LoRA rank", PLAIN, "lora_r", RANKS),
    Scenario("too large, max length", TOO_LARGE, "max_length", LENGTHS),
    Scenario("fastest, learning rate", FASTEST, "learning_rate", RATES),
    Scenario("fastest, LoRA rank", FASTEST, "lora_r", RANKS),
    Scenario("fastest, max length", FASTEST, "max_length", LENGTHS),
    Scenario("fastest, full DPO, max length", DPO, "max_length", LENGTHS),
    Scenario("smallest, LoRA rank", SMALLEST, "lora_r", RANKS),
    Scenario("measured, LoRA rank", DEMO, "lora_r", RANKS, is_measured=True),
    Scenario(
        "measured, fastest, LoRA rank",
        {**DEMO, "profile": "fastest"},
        "lora_r",
        RANKS,
        is_measured=True,
    ),
)


class OpenPage:
    """Form of one open page: its values in the browser, and its states on the server."""

    def __init__(self, handlers: Handlers, values: Mapping[str, object]) -> None:
        self.handlers = handlers
        self.form = dict(values)
        self.states: dict[str, object] = {
            "form_state": replace(FIRST_STATE, values=self.form),
            "suggestions": Suggestions(),
            "undo": Undo(),
            "wanted_trace": "",
        }
        self.open_panels = {}

    def edit(self) -> tuple[float, float]:
        """Answer the form. Return the milliseconds to the answer, and to the suggestions."""
        start = time.perf_counter()
        updates = self.handlers.estimate.on_edit(**self.states, **self.form)
        answered = time.perf_counter()
        self._receive(updates)
        answer = updates["answer"]
        self._receive(self.handlers.rows.on_lengths(answer))
        self._receive(self.handlers.estimate.on_suggest(answer, **self.form))
        panels.on_redraw_panels(self.open_panels, answer)
        return 1000 * (answered - start), 1000 * (time.perf_counter() - start)

    def wait_for_lengths(self) -> None:
        """Wait until the rows are measured."""
        answer = self.handlers.estimate.on_edit(**self.states, **self.form)["answer"]
        while self.handlers.rows.on_lengths(answer)["lengths_timer"].active:
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _receive(self, updates: Mapping[str, object]) -> None:
        for name, update in updates.items():
            if name in self.states:
                self.states[name] = update
            elif name in self.form and isinstance(update, dict) and "value" in update:
                self.form[name] = update["value"]


@contextmanager
def counted_resolves() -> Iterator[list[int]]:
    """Count how often a job is resolved, in a list of one number."""
    number = [0]
    original = jobs.resolve_job

    def count(*args: object, **options: object) -> object:
        number[0] += 1
        return original(*args, **options)

    jobs.resolve_job = count
    try:
        yield number
    finally:
        jobs.resolve_job = original


def measure(handlers: Handlers, scenario: Scenario) -> str:
    """Return a line of the table."""
    page = OpenPage(handlers, scenario.form)
    if scenario.is_measured:
        page.wait_for_lengths()
    page.edit()
    answers, totals, resolves = [], [], []
    for value in scenario.values:
        page.form[scenario.field] = value
        with counted_resolves() as number:
            answer_ms, total_ms = page.edit()
        answers.append(answer_ms)
        totals.append(total_ms)
        resolves.append(number[0])
    medians = f"{statistics.median(answers):6.0f}{statistics.median(totals):18.0f}"
    return f"    {scenario.name:34}{max(resolves):8}  {medians}"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"    {'edit':34}resolves  answer  with suggestions")
    with tempfile.TemporaryDirectory() as folder:
        handlers = Handlers(Home.find(folder))
        for scenario in SCENARIOS:
            print(measure(handlers, scenario), flush=True)
        handlers.close()


if __name__ == "__main__":
    main()
