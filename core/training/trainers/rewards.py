"""Built-in reward functions of GRPO and RLOO, and the reward model. Never runs a user's code."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import regex
from transformers import AutoTokenizer

from ..contract.failures import TrainingError
from ..contract.job import Job
from ..contract.row_columns import parse_text
from ..contract.row_reader import RIGHT_ANSWERS
from ..contract.weights.adapters import SETTINGS
from ..data.rows import Rows
from ..data.tokenizer import source_of
from ..model.adapter import add_adapter, read_adapter
from ..model.load import ModelPrecision
from ..model.weights import BaseRequest, load_base

MAX_PATTERN_SECONDS = 0.2
"""An answer for which a pattern takes longer has not matched: some patterns backtrack forever."""
MAX_SEARCHED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Completion:
    """Answer that the model generated."""

    text: str
    num_tokens: int
    right_answer: str | None
    """Answer in the row beside the prompt; None if there is none."""


RewardFunction = Callable[[Completion], float]


def exact_match(job: Job) -> RewardFunction:
    """Reward the right answer, or one of several, with 1, ignoring case and white space.

    Only what follows `####` counts, as in GSM8K.
    """

    def reward(completion: Completion) -> float:
        right_answer = completion.right_answer
        if right_answer is None:
            return 0.0
        given = _final_answer(completion.text)
        return float(any(given == _final_answer(each) for each in _right_answers(right_answer)))

    return reward


def _right_answers(text: str) -> Sequence[str]:
    """Return the right answers that a text holds: one, or those of a list of texts in JSON.

    A list of numbers is one answer.
    """
    found = parse_text(text)
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return [text, *found]
    return [text]


def pattern_match(job: Job) -> RewardFunction:
    """Reward an answer in which reward_pattern is found with 1."""
    try:
        pattern = regex.compile(job.reward_pattern, regex.DOTALL)
    except regex.error as error:
        raise TrainingError(
            f"reward_pattern: {job.reward_pattern!r} is no regular expression: {error}."
        ) from error

    def reward(completion: Completion) -> float:
        text = completion.text[:MAX_SEARCHED_CHARACTERS]
        try:
            match = pattern.search(text, timeout=MAX_PATTERN_SECONDS)
        except TimeoutError:
            return 0.0
        return float(match is not None)

    return reward


def valid_json(job: Job) -> RewardFunction:
    """Reward an answer that is JSON and nothing else with 1."""

    def reward(completion: Completion) -> float:
        try:
            json.loads(completion.text)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    return reward


def brevity(job: Job) -> RewardFunction:
    """Reward short answers: from 1 for no token down to 0 for max_completion_length tokens."""
    return lambda completion: 1 - min(1.0, completion.num_tokens / job.max_completion_length)


REWARDS: Mapping[str, Callable[[Job], RewardFunction]] = MappingProxyType(
    {"exact_match": exact_match, "regex": pattern_match, "json": valid_json, "length": brevity}
)


def choose_rewards(job: Job, rows: Rows, precision: ModelPrecision) -> tuple[list[Any], list[Any]]:
    """Return (reward functions and models, tokenizer of each or None), as TRL takes them.

    Raises TrainingError if there is nothing that scores the answers.
    """
    names = [name for name in job.reward_functions.split(",") if name]
    unknown = [name for name in names if name not in REWARDS]
    if unknown:
        raise TrainingError(
            f"reward_functions: {', '.join(unknown)} is not one of {', '.join(REWARDS)}."
        )
    if "exact_match" in names and None in rows.train["answer"]:
        raise TrainingError(
            "The reward exact_match needs the right answer in every row: "
            f"a column {', '.join(RIGHT_ANSWERS[:4])} or completion."
        )
    rewards: list[Any] = [_for_trl(name, REWARDS[name](job)) for name in names]
    tokenizers: list[Any] = [None] * len(rewards)
    if job.reward_model:
        model, tokenizer = _load_reward_model(job.reward_model, precision)
        rewards.append(model)
        tokenizers.append(tokenizer)
    if not rewards:
        raise TrainingError(
            "reward_functions: nothing scores the answers: name a function or a reward_model."
        )
    return rewards, tokenizers


def content_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a text, or the content of the last of some messages."""
    if isinstance(content, str):
        return content
    return str(content[-1].get("content") or "")


def _for_trl(name: str, reward_function: RewardFunction) -> Callable[..., list[float]]:
    """Return a reward function over a batch, as TRL calls it. Its `__name__` names the metrics."""

    def rewards(
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str | None],
        **_: Any,
    ) -> list[float]:
        found = []
        for content, ids, right in zip(completions, completion_ids, answer, strict=True):
            completion = Completion(content_text(content), len(ids), right)
            found.append(reward_function(completion))
        return found

    rewards.__name__ = name
    return rewards


def _final_answer(text: str) -> str:
    return " ".join(text.rpartition("####")[2].split()).casefold()


def _load_reward_model(place: str, precision: ModelPrecision) -> tuple[Any, Any]:
    """Load the result of a run of the stage reward, with its tokenizer.

    `place` is the folder of a run or a model, or a Hub id. An adapter is merged into its base.
    """
    folder = Path(place)
    if (folder / "output").is_dir():
        folder = folder / "output"
    base, revision = str(folder) if folder.is_dir() else place, "main"
    adapter = None
    if (folder / SETTINGS).exists():
        adapter = read_adapter(place, "reward_model")
        folder, base, revision = adapter.folder, adapter.base, adapter.revision
    source = source_of(base, revision)
    request = BaseRequest(base, revision, precision.weights, has_score_head=True)
    model, fresh = load_base(request)
    if fresh and adapter is None:
        raise TrainingError(
            f"reward_model: {place} gives no scores: name the result of a run of the stage reward."
        )
    if adapter is not None:
        with_adapter = add_adapter(model, adapter, "reward_model", is_trainable=False)
        model = with_adapter.merge_and_unload()
    model.config._name_or_path = "reward_model"  # TRL names its metrics by this
    if folder.is_dir():  # the tokenizer is saved with the result
        source["pretrained_model_name_or_path"] = str(folder)
    return model.eval(), AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
