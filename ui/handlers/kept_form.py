"""Form as the browser keeps it, so that it outlives a reload, a closed tab and the server.

The browser's copy is text that anyone may have written: every part of it is checked.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace

from core.advise import PLANNED_FIELDS
from ui import render
from ui.events import MESSAGE, Updates
from ui.form import FIRST_SHOWN, offers
from ui.handlers.answer import FIRST_STATE, FormState
from ui.inputs import sendable

FORMAT = 1
"""Number of this way to keep a form. Raise it when a field changes its meaning."""
OTHER_VERSION = (
    "This browser kept the form of another version of Tailor. Check it before you start: "
    "settings that are not known here were left out."
)


def plan_to_keep(state: FormState) -> str:
    """Return what the browser keeps of a form beside its values: what the profile chose."""
    return json.dumps(
        {
            "planned": dict(state.planned),
            "overwritten": dict(state.overwritten),
            "set_by_user": sorted(state.set_by_user),
        }
    )


def on_restore(kept_form: str) -> Updates:
    """Fill a new page with the form that the browser has kept, if it has. An edit follows."""
    filled: Updates = {"filled": str(time.monotonic_ns())}
    kept = _parse(kept_form)
    values = _sound_values(kept.get("values"))
    if not values:
        return filled
    plan = _parse(kept.get("plan"))
    names = plan.get("set_by_user")
    set_by_user = names if isinstance(names, list) else []
    state = replace(
        FIRST_STATE,
        values={**FIRST_STATE.values, **values},
        planned=_planned(plan.get("planned")),
        overwritten=_planned(plan.get("overwritten")),
        set_by_user=frozenset(name for name in PLANNED_FIELDS if name in set_by_user),
    )
    if state.planned.keys() != state.overwritten.keys():
        state = replace(state, planned={}, overwritten={})
    updates: Updates = {**filled, **values, "form_state": state}
    if kept.get("format") != FORMAT or values.keys() != FIRST_SHOWN.keys():
        updates[MESSAGE] = f'<div role="alert">{render.notice(OTHER_VERSION, "warned")}</div>'
    return updates


def _parse(text: object) -> Mapping[str, object]:
    """Return a JSON object, {} for anything else."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sound_values(values: object) -> dict[str, object]:
    """Return the fields of a form that are known, with values of the kind that a control holds."""
    if not isinstance(values, dict):
        return {}
    found = {
        name: values[name]
        for name, first in FIRST_SHOWN.items()
        if name in values and _is_alike(values[name], first) and offers(name, values[name])
    }
    numbers = {name: value for name, value in found.items() if type(value) is int}
    return {**found, **{name: sendable(value) for name, value in numbers.items()}}


def _planned(values: object) -> dict[str, object]:
    return {name: value for name, value in _sound_values(values).items() if name in PLANNED_FIELDS}


def _is_alike(value: object, first: object) -> bool:
    """Return whether a value can stand in the control that first showed `first`."""
    if isinstance(first, bool) or isinstance(value, bool):
        return isinstance(first, bool) and isinstance(value, bool)
    if isinstance(first, int | float):
        return value is None or isinstance(value, int | float)
    return isinstance(value, str)
