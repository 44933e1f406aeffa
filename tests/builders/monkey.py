"""Monkey in a browser: does random things on the page, and says what is wrong with it."""

import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response
from playwright.sync_api import Error as PlaywrightError

from tests.builders.paths import DATA

ACTION_MS = 1500
SECONDS_TO_ANSWER = 30
MIN_PLOT_PIXELS = 100
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
UPLOADS = ("messages.jsonl", "alpaca.jsonl", "truncated.jsonl", "preference.jsonl", "empty.jsonl",
           "tale.txt", "columns.json", "gzip.jsonl", "question_answer.jsonl")  # fmt: skip
NUMBERS = ("", "0", "-1", "1", "2", "7", "64", "3.5", "1e9", "1e-5", "999999999999999999999")
TEXTS = ("", "demo", "all-linear", "/proc/kmsg", "~nobody/x", "é" * 300, "<b>x</b>", "a = 0.5",
         "meta-llama/Llama-3.1-8B", "line 2", "\ud83d\ude48")  # fmt: skip
UNSPEAKABLE = re.compile(
    r"\b(None|NaN|undefined)\b|<class|object at 0x|\[object Object\]|Traceback|went wrong in Tailor"
    r"|\b\w+(Error|Exception)\b|__\w+__"
)
"""Words that no person should read on a page."""
SEEN_WORDS = """() => [document.body.innerText,
  ...[...document.querySelectorAll("input, textarea")].map(box => box.value)].join("\\n")"""
FLAT_PLOTS = """least => [...document.querySelectorAll(".js-plotly-plot")]
  .filter(plot => plot.checkVisibility() && plot.getBoundingClientRect().height < least)
  .map(plot => plot.closest("[id^=plot-]")?.id ?? "a plot")"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Monkey:
    """Random visitor of one page. `complaints` lists what went wrong."""

    def __init__(self, page: Page, url: str, seed: int) -> None:
        self.page, self.url = page, url
        self.random = random.Random(seed)
        self.complaints: list[str] = []
        self.done: list[str] = []
        """What it did, the newest last."""
        self._asked: dict[Request, float] = {}
        page.on("response", self._look_at_answer)
        page.on("console", self._look_at_console)
        page.on("pageerror", lambda error: self._complain(f"script: {error}"))
        page.on("request", self._note_request)
        page.on("requestfinished", lambda request: self._asked.pop(request, None))
        page.on("requestfailed", lambda request: self._asked.pop(request, None))

    def play(self, seconds: float) -> None:
        """Do random things for some time, or until something is wrong."""
        deadline = time.monotonic() + seconds
        self.page.goto(self.url)
        names = list(ACTIONS)
        weights = [ACTIONS[name][1] for name in names]
        while time.monotonic() < deadline and not self.complaints:
            (name,) = self.random.choices(names, weights)
            with suppress(PlaywrightError):  # what it reached for is gone or covered
                self.done.append(name)
                ACTIONS[name][0](self)
            self.page.wait_for_timeout(self.random.choice((50, 200, 800)))
            self.look()

    def look(self) -> None:
        """Complain about what can be seen."""
        try:
            words = self.page.evaluate(SEEN_WORDS)
            flat = self.page.evaluate(FLAT_PLOTS, MIN_PLOT_PIXELS)
            sideways = self.page.evaluate(SIDEWAYS)
        except PlaywrightError:  # the page is being loaded
            return
        if found := UNSPEAKABLE.search(words):
            around = words[max(0, found.start() - 80) : found.end() + 80]
            self._complain(f"words: {around!r}")
        if flat:
            self.page.wait_for_timeout(1000)  # it may be drawn just now
            flat = self.page.evaluate(FLAT_PLOTS, MIN_PLOT_PIXELS)
        if flat:
            self._complain(f"flat: {flat}")
        if sideways > 1:
            self._complain(f"{sideways} pixels to the side")
        for request, since in list(self._asked.items()):
            if time.monotonic() - since > SECONDS_TO_ANSWER:
                self._complain(f"no answer: {request.url}")

    def choose(self, places: Locator) -> Locator:
        """Return one of the visible elements. Raises PlaywrightError if there is none."""
        found = [each for each in places.all() if each.is_visible()]
        if not found:
            raise PlaywrightError("nothing to reach for")
        return self.random.choice(found)

    def _complain(self, what: str) -> None:
        self.complaints.append(f"{what} (after {', '.join(self.done[-8:])})")

    def _look_at_answer(self, answer: Response) -> None:
        if answer.status >= 400:
            self._complain(f"{answer.status} of {answer.url}")

    def _look_at_console(self, message: ConsoleMessage) -> None:
        # A reload ends the requests that are under way, which Chromium reports.
        if message.type == "error" and not message.text.startswith("AbortError"):
            self._complain(f"console: {message.text}")

    def _note_request(self, request: Request) -> None:
        if request.method == "POST":
            self._asked[request] = time.monotonic()


def edit_number(monkey: Monkey) -> None:
    box = monkey.choose(monkey.page.locator("input[type=number]"))
    monkey.done.append(number := monkey.random.choice(NUMBERS))
    box.fill(number, timeout=ACTION_MS)


def edit_text(monkey: Monkey) -> None:
    box = monkey.choose(monkey.page.locator("input[type=text], input:not([type]), textarea"))
    monkey.done.append(text := monkey.random.choice(TEXTS))
    box.fill(text, timeout=ACTION_MS)
    if monkey.random.random() < 0.5:
        box.press("Enter", timeout=ACTION_MS)


def tick(monkey: Monkey) -> None:
    boxes = monkey.page.locator("input[type=checkbox], input[type=radio]")
    monkey.choose(boxes).click(timeout=ACTION_MS)


def choose_option(monkey: Monkey) -> None:
    monkey.choose(monkey.page.locator("input[role=listbox]")).click(timeout=ACTION_MS)
    monkey.choose(monkey.page.get_by_role("option")).click(timeout=ACTION_MS)


def press_button(monkey: Monkey) -> None:
    button = monkey.choose(monkey.page.locator("button:enabled"))
    monkey.done.append(button.inner_text(timeout=ACTION_MS)[:30])
    button.click(timeout=ACTION_MS)


def start(monkey: Monkey) -> None:
    monkey.page.get_by_role("tab", name="Train").click(timeout=ACTION_MS)
    monkey.page.locator("#start").click(timeout=ACTION_MS)


def upload(monkey: Monkey) -> None:
    file = monkey.random.choice(UPLOADS)
    monkey.done.append(file)
    monkey.page.locator("#upload input[type=file]").set_input_files(DATA / file, timeout=ACTION_MS)


def switch_tab(monkey: Monkey) -> None:
    monkey.choose(monkey.page.get_by_role("tab")).click(timeout=ACTION_MS)


def reload(monkey: Monkey) -> None:
    monkey.page.reload()


def scroll(monkey: Monkey) -> None:
    monkey.page.mouse.wheel(0, monkey.random.randint(-3000, 3000))


ACTIONS: Mapping[str, tuple[Callable[[Monkey], None], int]] = {
    "number": (edit_number, 6),
    "text": (edit_text, 4),
    "tick": (tick, 5),
    "option": (choose_option, 5),
    "button": (press_button, 10),
    "start": (start, 3),
    "upload": (upload, 2),
    "tab": (switch_tab, 3),
    "reload": (reload, 1),
    "scroll": (scroll, 3),
}
"""Name -> (what it does, how often)."""


def tracebacks_in(log: Path) -> list[str]:
    """Return the lines of what the app printed that begin an error."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if "Traceback" in line or "Error" in line]
