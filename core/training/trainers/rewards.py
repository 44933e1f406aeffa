"""The built-in rewards of GRPO and RLOO, and the reward model: what drawn answers are worth. Never a user's code."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import regex
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..data.rows import Rows
from ..data.tokenizer import source_of
from ..model.adapter import find_adapter
from ..model.load import Precision

SECONDS_FOR_A_PATTERN = 0.2
"""A pattern that backtracks without end must not hold a training: an answer that takes it longer has not matched."""
LONGEST_SEARCHED = 20_000
"""Characters of an answer that a pattern is looked for in."""


@dataclass(frozen=True)
class Drawn:
    """An answer that the model drew."""

    text: str
    num_tokens: int
    right_answer: str | None
    """What the row holds beside its prompt."""


Judge = Callable[[Drawn], float]


def exact_match(job: Job) -> Judge:
    """1 for the right answer, without regard to case and white space; what follows `####` counts alone, as in GSM8K."""
    return lambda drawn: float(
        drawn.right_answer is not None and _bare(drawn.text) == _bare(drawn.right_answer)
    )


def pattern_found(job: Job) -> Judge:
    """1 for an answer in which reward_pattern is found."""
    try:
        pattern = regex.compile(job.reward_pattern, regex.DOTALL)
    except regex.error as error:
        raise TrainingError(
            f"reward_pattern: {job.reward_pattern!r} is no regular expression: {error}."
        ) from error

    def judge(drawn: Drawn) -> float:
        try:
            found = pattern.search(drawn.text[:LONGEST_SEARCHED], timeout=SECONDS_FOR_A_PATTERN)
        except TimeoutError:
            return 0.0
        return float(found is not None)

    return judge


def valid_json(job: Job) -> Judge:
    """1 for an answer that is JSON and nothing else."""

    def judge(drawn: Drawn) -> float:
        try:
            json.loads(drawn.text)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    return judge


def brevity(job: Job) -> Judge:
    """The shorter the better: from 1 for no token to 0 for max_completion_length of them."""
    return lambda drawn: 1 - min(1.0, drawn.num_tokens / job.max_completion_length)


REWARDS: Mapping[str, Callable[[Job], Judge]] = MappingProxyType(
    {"exact_match": exact_match, "regex": pattern_found, "json": valid_json, "length": brevity}
)


def choose_rewards(job: Job, rows: Rows, precision: Precision) -> tuple[list[Any], list[Any]]:
    """(what a job's answers are judged by, the tokenizer that each needs or None), as TRL takes them.

    Raises TrainingError if there is nothing to judge by.
    """
    names = [name for name in job.reward_functions.split(",") if name]
    if unknown := [name for name in names if name not in REWARDS]:
        raise TrainingError(
            f"reward_functions: {', '.join(unknown)} is not one of {', '.join(REWARDS)}."
        )
    if "exact_match" in names and None in rows.train["answer"]:
        raise TrainingError(
            "The reward exact_match needs the right answer in every row: a column answer, solution or completion."
        )
    judges: list[Any] = [_for_batches(name, REWARDS[name](job)) for name in names]
    tokenizers: list[Any] = [None] * len(judges)
    if job.reward_model:
        model, tokenizer = _load_reward_model(job.reward_model, precision)
        judges, tokenizers = [*judges, model], [*tokenizers, tokenizer]
    if not judges:
        raise TrainingError(
            "reward_functions: nothing judges the answers: name a function or a reward_model."
        )
    return judges, tokenizers


def _for_batches(name: str, judge: Judge) -> Callable[..., list[float]]:
    """A judge as TRL calls it, which names its metrics by it."""

    def reward(
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str | None],
        **_: Any,
    ) -> list[float]:
        drawn = zip(completions, completion_ids, answer, strict=True)
        return [judge(Drawn(text_of(said), len(ids), right)) for said, ids, right in drawn]

    reward.__name__ = name
    return reward


def text_of(said: str | Sequence[Mapping[str, Any]]) -> str:
    """An answer, or the last of some messages, as text."""
    return said if isinstance(said, str) else str(said[-1].get("content") or "")


def _bare(text: str) -> str:
    return " ".join(text.rpartition("####")[2].split()).casefold()


def _load_reward_model(where: str, precision: Precision) -> tuple[Any, Any]:
    """The model of a finished run of the stage reward, with its tokenizer; an adapter is merged into its base."""
    given = Path(where)
    home = given / "output" if (given / "output").is_dir() else given
    has_adapter = (home / "adapter_config.json").exists()
    base, revision = str(home) if home.is_dir() else where, "main"
    if has_adapter:
        home, settings = find_adapter(where, "reward_model")
        base, revision = settings["base_model_name_or_path"], settings.get("revision") or "main"
    source = source_of(base, revision)
    settled: dict[str, Any] = {"num_labels": 1, "dtype": precision.weights, "use_safetensors": True}
    model, found = AutoModelForSequenceClassification.from_pretrained(
        **source, **settled, output_loading_info=True, trust_remote_code=False
    )
    if found["missing_keys"] and not has_adapter:
        raise TrainingError(
            f"reward_model: {where} gives no scores: name the result of a run of the stage reward."
        )
    if has_adapter:
        model = PeftModel.from_pretrained(
            model, str(home), trust_remote_code=False
        ).merge_and_unload()
    model.config._name_or_path = "reward_model"  # what TRL calls its metrics by
    source |= {"pretrained_model_name_or_path": str(home)} if home.is_dir() else {}
    return model.eval(), AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
