"""DATASET_TYPES: the ways of writing rows, and which one a row is written in. Never looks at a column's value."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.training.contract.stages import STAGES

ROWS_OF_EVIDENCE = 1000


@dataclass(frozen=True)
class DatasetType:
    """One way of writing rows: the keys that give it away, and what TRL calls it."""

    id: str
    dataset_type: str
    columns: tuple[str, ...]
    """Keys that a row must have, in the order that a person reads them."""
    optional: tuple[str, ...] = ()
    """Further keys that are read if a row has them."""
    is_chat: bool = False
    """True if its texts become messages, for the model's chat template."""


DATASET_TYPES = (
    DatasetType("messages", "language modeling", ("messages",), ("tools",)),
    DatasetType("ShareGPT", "language modeling", ("conversations",), ("system", "tools")),
    DatasetType("preference", "preference", ("prompt", "chosen", "rejected"), ("tools",)),
    DatasetType("preference without prompt", "preference", ("chosen", "rejected"), ("tools",)),
    DatasetType(
        "unpaired preference", "unpaired preference", ("prompt", "completion", "label"), ("tools",)
    ),
    DatasetType("prompt and completion", "prompt-completion", ("prompt", "completion"), ("tools",)),
    DatasetType(
        "instruction and output",
        "prompt-completion",
        ("instruction", "output"),
        ("input", "system"),
        is_chat=True,
    ),
    DatasetType(
        "question and answer",
        "prompt-completion",
        ("question", "answer"),
        ("system",),
        is_chat=True,
    ),
    DatasetType("text", "language modeling", ("text",)),
    DatasetType("prompt only", "prompt-only", ("prompt",), ("tools",)),
)
"""In order of precedence: a row with the keys of several is taken for the first that the stage accepts."""

KINDS: Mapping[str, DatasetType] = {kind.id: kind for kind in DATASET_TYPES}


def kind_of(keys: Iterable[str], stage: str) -> DatasetType | None:
    """The way in which a row with these keys is written, as the stage would read it."""
    present = frozenset(keys)
    fitting = [kind for kind in DATASET_TYPES if present.issuperset(kind.columns)]
    return next((kind for kind in fitting if accepts(stage, kind)), fitting[0] if fitting else None)


def accepts(stage: str, kind: DatasetType) -> bool:
    """True if a stage can train on rows of this kind."""
    return kind.dataset_type in accepted_types(stage)


USUAL_STAGES: Mapping[str, str] = {
    "language modeling": "sft",
    "prompt-completion": "sft",
    "preference": "dpo",
    "unpaired preference": "kto",
    "prompt-only": "grpo",
}
"""Dataset type -> the stage that people most likely want it for."""


def stages_for(dataset_type: str) -> tuple[str, ...]:
    """The stages that can train on rows of a type."""
    return tuple(
        stage.id
        for stage in STAGES.values()
        if dataset_type in stage.dataset_types and stage.is_trainable
    )


def accepted_types(stage: str) -> tuple[str, ...]:
    """The dataset types that a stage can train on, as TRL names them."""
    return STAGES[stage].dataset_types


def detect(
    rows_keys: Sequence[tuple[str, ...]], stage: str, is_all: bool
) -> tuple[DatasetType | None, str]:
    """(what most of the first rows are, why it was taken for that); `is_all` says that there are no further rows."""
    votes = Counter(kind_of(keys, stage) for keys in rows_keys)
    if not votes:
        return None, ""
    kind, num_rows = max(votes.items(), key=lambda vote: (vote[0] is not None, vote[1]))
    total = f"{len(rows_keys):,} rows" if is_all else f"the first {len(rows_keys):,} rows"
    if kind is None:
        return None, f"none of {total} has columns of a known kind"
    if num_rows == len(rows_keys):
        share = (
            "the only row" if is_all and num_rows == 1 else f"all{'' if is_all else ' of'} {total}"
        )
    else:
        share = f"{num_rows:,} of {total}"
    return kind, f"{' and '.join(kind.columns)} in {share}"
