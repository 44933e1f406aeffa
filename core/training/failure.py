"""Why a training ended: the exceptions that are ours, and one plain sentence for any other. Catches nothing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


class UnusableJob(Exception):
    """The job file cannot be read or lacks a field."""


class TrainingError(Exception):
    """A failure whose message is already a plain sentence."""


class Stopped(BaseException):
    """The user asked for an end. Like KeyboardInterrupt it is no Exception, so that no library swallows it."""


@dataclass(frozen=True)
class Cause:
    """One kind of failure: how it is recognised and what to say about it."""

    pattern: str
    """Regular expression, searched in `TypeName: message` of the error and of the errors that led to it."""
    sentence: str
    """May name {model}, {activity} and the pattern's groups."""


CAUSES = (
    Cause(
        r"OutOfMemoryError: .*?Tried to allocate (?P<wanted>[\d.]+ \w+)"
        r".*?total capacity of (?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
        "Out of GPU memory {activity}: {wanted} more was needed, {free} of {total} was free.",
    ),
    Cause(
        r"OutOfMemoryError|(CUDA|HIP) (driver )?error: out of memory|out of memory at line",
        "Out of GPU memory {activity}.",
    ),
    Cause(r"^MemoryError|can't allocate memory|Cannot allocate memory", "Out of main memory {activity}."),
    Cause(
        r"No space left on device|PytorchStreamWriter failed|inline_container\.cc.*unexpected pos",
        "The disk is full: nothing more could be written {activity}.",
    ),
    Cause(
        r"^GatedRepoError",
        "{model} is gated: accept its licence at https://huggingface.co/{model}, then log in with `hf auth login`.",
    ),
    Cause(r"^RevisionNotFoundError", "{model} has no such revision on the Hugging Face Hub."),
    Cause(
        r"^RepositoryNotFoundError",
        "There is no model {model} on the Hugging Face Hub, or it is private and you are not logged in.",
    ),
    Cause(
        r"^(OfflineModeIsEnabled|LocalEntryNotFoundError|ConnectError|ConnectionError)|couldn't connect to 'http",
        "{model} is not on this machine, and the Hugging Face Hub cannot be reached.",
    ),
    Cause(
        r"does not appear to have a file named .*(safetensors|pytorch_model)|no file named model\.safetensors",
        "{model} has no weights in the safetensors format.",
    ),
    Cause(
        r"^OSError: .*is not a local folder and is not a valid model", "There is no model {model}, here or on the Hub."
    ),
    Cause(
        r"Target modules (?P<names>.+?) not found in the base model",
        "target_modules: {model} has no layers {names}; choose all-linear, or the names of its layers.",
    ),
    Cause(
        r"FlashAttention\d? has been toggled on",
        "attn_implementation: FlashAttention is not usable here; install flash-attn, or choose sdpa.",
    ),
    Cause(
        r"^ModuleNotFoundError: No module named '(?P<package>[\w-]+)",
        "A package is missing where the training runs: pip install {package}.",
    ),
)

ACTIVITIES = {
    "import": "while starting",
    "data": "while preparing the data",
    "load": "while loading the model",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer_step": "in the optimizer step",
    "eval": "in the evaluation",
    "save": "while saving",
}


def explain(error: BaseException, model: str, phase: str) -> str:
    """One sentence for what went wrong while `model` was in `phase` (of status.json or of the memory peaks)."""
    if isinstance(error, TrainingError):
        return str(error)
    words = {"model": model, "activity": ACTIVITIES.get(phase, "while training")}
    for link in _chain(error):
        text = f"{type(link).__name__}: {link}"
        for cause in CAUSES:
            if found := re.search(cause.pattern, text, re.DOTALL):
                return cause.sentence.format(**words, **found.groupdict())
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from or during."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
