"""Compare methods on the page: estimates side by side, then one run each in the queue."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from core.advise import PLANNED_FIELDS
from core.after_training.compare import Study, Variant, conduct, plan_variants, record
from core.job import SpecError
from core.runs import Home
from ui import render
from ui.events import Updates
from ui.form import in_words
from ui.handlers.answer import Answer
from ui.handlers.rows import Previews
from ui.handlers.start import require_startable

METHODS = ("full", "lora", "qlora")


def study_of(answer: Answer) -> Study:
    """Return the comparison of the form's job by method. Raises SpecError.

    What its profile chose is left out, so that the profile chooses again for each method.
    """
    resolved = answer.require()
    planned = PLANNED_FIELDS & resolved.plan.change.keys()
    fields = {name: value for name, value in answer.values.items() if name not in planned}
    return Study.parse(fields, METHODS)


def variants_of(answer: Answer) -> tuple[Variant, ...]:
    """Return the job of the form by each method, estimated. Raises SpecError."""
    resolved = answer.require()
    return plan_variants(study_of(answer), resolved.rows, lambda _variant: resolved.past)


@dataclass(frozen=True)
class CompareHandlers:
    """Events of the comparison of methods, over one home folder."""

    home: Home
    previews: Previews
    show: Callable[..., Updates]
    """Returns what the Runs tab shows for a view with another comparison."""

    def on_compare(self, answer: Answer, **view: str | None) -> Updates:
        """Create one run for each method that fits, add them to the queue, and show them."""
        try:
            require_startable(answer.require(), self.previews)
            found = variants_of(answer)
            command = "python app.py compare job.json --methods full,lora,qlora"
            question = f"How do the methods compare for {answer.values['model']}?"
            comparison = record.new_comparison(self.home, found, question, command, has_checks=True)
            comparison = conduct.start(self.home, comparison)
        except SpecError as error:
            return {"compare_message": render.notice(f"Not started. {in_words(error)}.", "bad")}
        except OSError as error:
            said = f"Not started. {error.strerror}: {error.filename}"
            return {"compare_message": render.notice(said, "bad")}
        ids = [trial.id for trial in comparison.trials if trial.id]
        said = f"Queued {len(ids)} runs: the Runs tab shows them. Once all have ended, each is "
        said += "checked: what it has learnt and lost."
        for trial in comparison.trials:
            if trial.left_out:
                said += f" {trial.point.label} is left out: {trial.left_out}."
        chosen = {"comparison_id": comparison.id, "compared": " ".join(ids)}
        return {
            **self.show(**{**view, **chosen}),
            "compared": chosen["compared"],
            "comparisons_panel": gr.update(visible=True, open=True),
            "tabs": gr.update(selected="runs"),
            "compare_message": render.notice(said),
        }
