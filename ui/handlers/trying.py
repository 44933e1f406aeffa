"""Events of the Try tab: ask two models the same, and keep what their answers should have been."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr

from core.after_training.chat import (
    AnswerSettings,
    ChatError,
    ChatMessage,
    ChatSide,
    find_side,
    keep_answer,
    keep_preference,
    sides_of,
)
from core.job import Problem, RunNotFound, TailorError
from core.runs import Home, Run, read
from core.runs.listing import list_runs
from ui import render
from ui.events import Updates
from ui.handlers.conversations import Conversations, PageConversation
from ui.render.conversation import ShownTurn, conversation

NO_SECOND = "-"
"""Value of the second menu for one model only."""
MAX_RUNS = 30
LEFT, RIGHT = 0, 1


@dataclass(frozen=True)
class TryHandlers:
    """Events of the Try tab, over one home folder."""

    home: Home
    conversations: Conversations

    def on_try_run(self, **view: str | None) -> Updates:
        """Show the chosen run before and after its training."""
        run = _find(self.home, view.get("run_id") or "")
        if run is None:
            return {}
        sides = sides_of(run)
        if len(sides) < 2:
            return {"run_message": render.notice("This run has nothing to try yet.", "bad")}
        updates = self._choices(run)
        for name, side in zip(("try_left", "try_right"), sides, strict=False):
            updates[name] = gr.update(choices=updates[name], value=side.key)
        return {**updates, "tabs": gr.update(selected="try")}

    def on_try_open(self, try_left: str, try_right: str) -> Updates:
        """List what can answer now. A new page begins with the newest result."""
        choices = self._choices(None)
        chosen = {"try_left": try_left, "try_right": try_right}
        if not try_left:
            newest = _newest(self.home)
            keys = [side.key for side in sides_of(newest)] if newest else ["demo", NO_SECOND]
            chosen = dict(zip(chosen, keys, strict=False))
        return {
            name: gr.update(choices=choices[name], value=value) for name, value in chosen.items()
        }

    def on_try_send(self, try_id: str, try_message: str, **try_settings: Any) -> Updates:
        """Ask the chosen models."""
        question = try_message.strip()
        found = self.conversations.find(try_id)
        if not question or (found and found.is_busy):
            return {}
        if found is None:
            try_id = self.conversations.add()
            found = self.conversations.find(try_id)
        assert found
        try:
            settings = _settings(try_settings)
            sides = self._sides(try_settings["try_left"], try_settings["try_right"])
        except TailorError as error:
            said = " ".join(map(render.sentences, error.problems))
            return {"try_status": _said(said, "bad")}
        system = try_settings["try_system"].strip()
        if sides != found.sides or system != found.system:
            found.turns.clear()  # the earlier answers are those of other models
        found.sides, found.system = sides, system
        self.conversations.ask(found, question, settings)
        return {
            "try_id": try_id,
            "try_message": "",
            "try_timer": gr.Timer(active=True),
            **_show(found),
            **_no_correction(),
        }

    def on_try_tick(self, try_id: str, try_message: str) -> Updates:
        """Show what was answered since the last time. A message without an answer comes back."""
        found = self._find(try_id)
        if found is None:
            return {"try_timer": gr.Timer(active=False)}
        found.seen = time.monotonic()
        shown = {**_show(found), "try_timer": gr.Timer(active=found.is_busy)}
        if found.unanswered and not found.is_busy:
            if not try_message.strip():
                shown["try_message"] = found.unanswered
            found.unanswered = ""
        return shown

    def on_try_stop(self, try_id: str) -> Updates:
        """Stop the answers; what was written stays."""
        found = self._find(try_id)
        if found and found.chat:
            found.chat.stop()
        return {}

    def on_try_new(self, try_id: str) -> Updates:
        """Begin a new conversation."""
        found = self._find(try_id)
        if found is None or found.is_busy:
            return {}
        found.turns.clear()
        found.status = found.problem = ""
        return {**_show(found), **_no_correction()}

    def on_try_correct(self, side: int, try_id: str) -> Updates:
        """Put an answer into the box in which it can be corrected."""
        found, turn = self._last(try_id)
        written = [place for place, answer in enumerate(turn.answers) if answer.text]
        if not written:
            raise ChatError(Problem("chat", "the answer is empty", "ask something else"))
        found.corrected = written[side]
        return {
            "try_edit": gr.update(value=turn.answers[found.corrected].text.strip(), visible=True),
            "try_keep": gr.update(visible=True),
            "try_keep_preference": gr.update(visible=True),
        }

    def on_try_keep(self, try_id: str, try_edit: str) -> Updates:
        """Keep the corrected answer as a row to train on."""
        found, turn = self._last(try_id)
        path = keep_answer(self.home, found.question_of(turn, found.corrected), try_edit)
        return {"try_status": _said(f"Kept as a row of {path.name}, on the Train tab.", "good")}

    def on_try_keep_preference(self, try_id: str, try_edit: str) -> Updates:
        """Keep the corrected answer as better than the one that was given."""
        found, turn = self._last(try_id)
        given = turn.answers[found.corrected].text
        return self._prefer(found.question_of(turn, found.corrected), try_edit, given)

    def on_try_prefer(self, side: int, try_id: str) -> Updates:
        """Keep which of two answers is better."""
        found, turn = self._last(try_id)
        if len(turn.answers) < 2:
            raise ChatError(Problem("chat", "there is one answer only", "choose a second model"))
        chosen, rejected = turn.answers[side].text, turn.answers[1 - side].text
        return self._prefer(found.question_of(turn, LEFT), chosen, rejected)

    def _prefer(self, question: list[ChatMessage], chosen: str, rejected: str) -> Updates:
        path = keep_preference(self.home, question, chosen, rejected)
        return {"try_status": _said(f"Kept as a row of {path.name}, for DPO.", "good")}

    def _sides(self, *keys: str) -> tuple[ChatSide, ...]:
        """Return the sides that the menus name, each once. Raises ChatError, ModelNotFound."""
        named = dict.fromkeys(key for key in keys if key not in ("", NO_SECOND))
        if not named:
            raise ChatError(Problem("chat", "no model is chosen", "choose one"))
        return tuple(find_side(self.home, key) for key in named)

    def _find(self, try_id: str) -> PageConversation | None:
        return self.conversations.find(try_id)

    def _last(self, try_id: str) -> tuple[PageConversation, ShownTurn]:
        """Return the conversation and its last message. Raises ChatError if nothing is answered."""
        found = self._find(try_id)
        if found is None or not found.turns or found.is_busy:
            raise ChatError(Problem("chat", "there is no answer yet", "write a message first"))
        return found, found.turns[-1]

    def _choices(self, first: Run | None) -> dict[str, object]:
        """Return what both menus offer: runs with their checkpoints, and the demo."""
        listed = [run for run in list_runs(self.home)[:MAX_RUNS] if run != first]
        offered = [
            (side.label, side.key) for run in (first, *listed) if run for side in sides_of(run)
        ]
        offered.append(("Demo model", "demo"))
        return {
            "try_left": offered,
            "try_right": [("nothing: one model only", NO_SECOND), *offered],
        }


def _show(found: PageConversation) -> Updates:
    """Return what a page shows of its conversation."""
    labels = [side.label for side in found.sides]
    turn = found.turns[-1] if found.turns else ShownTurn("")
    is_answered = not found.is_busy
    answers = [answer.text for answer in turn.answers if answer.text and is_answered]
    is_pair = len(answers) == 2
    status = _said(found.status, "plain")
    if found.problem:
        status = _said(found.problem, "bad")
    label = "Correct right" if is_pair else "Correct the answer"
    return {
        "try_log": conversation(labels, found.turns, is_busy=found.is_busy),
        "try_status": status,
        "try_send": gr.update(interactive=not found.is_busy),
        "try_stop": gr.update(visible=found.is_busy),
        "try_new": gr.update(visible=bool(found.turns) and not found.is_busy),
        "try_prefer_left": gr.update(visible=is_pair),
        "try_prefer_right": gr.update(visible=is_pair),
        "try_correct_left": gr.update(visible=is_pair),
        "try_correct_right": gr.update(visible=bool(answers), value=label),
    }


def _no_correction() -> Updates:
    """Return the boxes of a correction hidden: it belongs to an earlier answer."""
    return {
        "try_edit": gr.update(value="", visible=False),
        "try_keep": gr.update(visible=False),
        "try_keep_preference": gr.update(visible=False),
    }


def _said(text: str, kind: render.NoticeKind) -> str:
    """Return a line that screen readers say once it changes."""
    return f'<div role="status" aria-live="polite">{render.notice(text, kind)}</div>'


def _settings(boxes: Mapping[str, Any]) -> AnswerSettings:
    """Return the settings in the boxes; an empty one holds the default. Raises ChatError."""
    values = {name: boxes[f"try_{name}"] for name in asdict(AnswerSettings())}
    given = {name: value for name, value in values.items() if value is not None}
    settings = AnswerSettings(**given)
    return replace(settings, max_tokens=int(settings.max_tokens), seed=int(settings.seed))


def _find(home: Home, run_id: str) -> Run | None:
    try:
        return read(home, run_id)
    except (RunNotFound, TailorError):
        return None


def _newest(home: Home) -> Run | None:
    """Return the newest run with something to try."""
    runs = (run for run in list_runs(home) if len(sides_of(run)) > 1)
    return next(runs, None)
