"""RUN_ACTIONS: actions of `python app.py runs`. Imports nothing heavy: --help stays quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from core.after_training.export.forms import DEFAULT_QUANT, FORMS, QUANTS
from core.job import JobSpec


@dataclass(frozen=True)
class RunAction:
    """Words that an action needs, and what it does."""

    help: str
    words: tuple[str, ...] = ()
    more: str = ""
    """Further words that it accepts, such as `WORD ...`."""


RUN_ACTIONS: Mapping[str, RunAction] = {
    "list": RunAction("list all runs, or those that contain every WORD", more="WORD ..."),
    "show": RunAction("show one run: state, memory, answers, advice", ("ID",)),
    "stop": RunAction("stop it after the current step, with a checkpoint", ("ID",)),
    "resume": RunAction("continue it from its newest checkpoint, where it was or --on", ("ID",)),
    "publish": RunAction("make a checkpoint its result; STEP original undoes it", ("ID", "STEP")),
    "continue": RunAction("train it for more --epochs N, as a new run", ("ID",)),
    "queue": RunAction("list the waiting runs, the next first"),
    "move": RunAction("move a waiting run up or down in the queue", ("ID", "up|down")),
    "delete": RunAction("move it to the trash", ("ID",)),
    "restore": RunAction("move it back from the trash", ("ID",)),
    "empty-trash": RunAction("remove the deleted runs for good"),
    "title": RunAction("give it a title", ("ID",), more="WORD ..."),
    "note": RunAction("write a note about it", ("ID",), more="WORD ..."),
    "tag": RunAction("replace its tags", ("ID",), more="TAG ..."),
    "compare": RunAction("compare settings and results of runs", ("ID", "ID"), more="ID ..."),
    "bundle": RunAction("write everything that repeats it elsewhere", ("ID", "FILE.zip")),
}


PLACEMENT_FLAGS: Mapping[str, tuple[str, str]] = {
    "on": ("ENGINE", "where it trains: here, slurm, ray, or torchrun by hand (default here)"),
    "nodes": ("N", "machines of the cluster (default 1)"),
    "partition": ("NAME", "partition of Slurm, as sinfo lists it"),
    "account": ("NAME", "account on the cluster"),
    "time": ("LIMIT", "time limit, such as 12:00:00; a checkpoint is saved before it is over"),
    "gres": ("DEVICES", "devices of each node, such as gpu:2"),
    "address": ("ADDRESS", "Ray's dashboard (default RAY_ADDRESS), or torchrun's first machine"),
}
"""Flag that says where a run trains -> (metavar, help)."""


MAX_DIGITS = 9
"""Of a whole number that is typed: Python reads no endless ones."""


def is_whole(text: str) -> bool:
    """Return True for a whole number of 0 or more that is not longer than any that is meant."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def flag_of(field: str) -> str:
    """Return the flag of a job field, such as --lora-r."""
    return f"--{field.replace('_', '-')}"


def unknown_argument(word: str) -> str:
    """Return what is wrong with an argument that no command knows, and which flag may be meant."""
    flags = [flag_of(name) for name in JobSpec.model_fields]
    if word.partition("=")[0] in flags:
        return f"{word} sets a job, and this command takes no job"
    similar = [flag for flag in flags if flag.endswith(word.lstrip("-"))]
    similar += get_close_matches(word, flags, n=1, cutoff=0.7)
    hint = f", did you mean {similar[0]}?" if similar else ""
    return f"unknown argument {word}{hint}"


def call_of(action: str) -> str:
    """Return how an action is called, such as `show ID`."""
    usage = RUN_ACTIONS[action]
    more = f"[{usage.more}]" if usage.more else ""
    return " ".join(filter(None, (action, *usage.words, more)))


def help_on_actions() -> str:
    """Return a title and one line for each action."""
    lines = (f"  {call_of(name):24} {usage.help}" for name, usage in RUN_ACTIONS.items())
    return "\n".join(("actions:", *lines))


def help_on_exports() -> str:
    """Return one line for each form of export, and the types of numbers."""
    lines = [f"  {form.name:<14}{form.help}" for form in FORMS.values()]
    quants = f"--quant is one of {', '.join(QUANTS)} (default {DEFAULT_QUANT})"
    return "\n".join(["forms:", *lines, "", quants])
