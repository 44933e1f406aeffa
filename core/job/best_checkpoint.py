"""REFUSALS_OF_CHECKS: evaluations, checks and the best checkpoint, where they cannot work."""

from collections.abc import Iterator
from pathlib import PurePath

from core.job.fields import JobFields
from core.job.refusal import Refusal
from core.training.contract.checks.suite_files import SUFFIXES
from core.training.contract.job import USUAL_SUITES, suite_of

MOST_PERCENT = 100
CHOICES = "choose off, eval_loss, eval_reward, or a suite of check_suites"


def evaluates(job: JobFields) -> bool:
    """Return True if rows are held out for evaluations."""
    return bool(job.eval_dataset) or job.eval_fraction > 0


def asked_suites(job: JobFields) -> Iterator[str]:
    """Yield the names of the suites that a job may be checked with while it trains."""
    named = [name.strip() for name in job.check_suites.split(",") if name.strip()]
    for reference in named or USUAL_SUITES:
        path = PurePath(reference.replace("\\", "/"))
        yield path.stem if path.suffix.lower() in SUFFIXES else reference


def _judges(job: JobFields) -> bool:
    return job.keep_best != "off" or job.early_stopping_patience > 0


def _judges_evaluations(job: JobFields) -> bool:
    return _judges(job) and suite_of(job.keep_best) is None


REFUSALS_OF_CHECKS = (
    Refusal(
        "keep_best",
        lambda job, stage, method: (
            suite_of(job.keep_best) is not None and job.keep_best not in asked_suites(job)
        ),
        "{job.keep_best} is no measure, and no suite of that name is asked during the training",
        CHOICES,
    ),
    Refusal(
        "keep_best",
        lambda job, stage, method: job.keep_best in asked_suites(job) and job.check_steps == 0,
        "the suite {job.keep_best} is not asked during the training, because check_steps is 0",
        "set check_steps, or choose eval_loss",
    ),
    Refusal(
        "keep_best",
        lambda job, stage, method: (
            job.keep_best != "off" and _judges_evaluations(job) and not evaluates(job)
        ),
        "nothing is evaluated, so no checkpoint is known to be the best",
        "set eval_fraction, give an eval_dataset, or choose off",
    ),
    Refusal(
        "keep_best",
        lambda job, stage, method: job.keep_best == "eval_loss" and stage.generates,
        "the loss of {stage.id} does not say how good the answers are",
        "choose eval_reward, or off",
    ),
    Refusal(
        "keep_best",
        lambda job, stage, method: job.keep_best == "eval_reward" and not stage.generates,
        "{stage.id} gives no rewards",
        "choose eval_loss, or off",
    ),
    Refusal(
        "keep_best",
        lambda job, stage, method: job.keep_best != "off" and job.optim.startswith("schedule_free"),
        "{job.optim} averages the weights of all steps in its result",
        "choose off, or another optimizer",
    ),
    Refusal(
        "early_stopping_patience",
        lambda job, stage, method: (
            job.early_stopping_patience > 0 and _judges_evaluations(job) and not evaluates(job)
        ),
        "nothing is evaluated, so nothing says when to stop",
        "set eval_fraction, give an eval_dataset, choose a suite for keep_best, or give 0",
    ),
    Refusal(
        "early_stopping_threshold",
        lambda job, stage, method: (
            job.early_stopping_threshold > 0 and job.early_stopping_patience == 0
        ),
        "without early_stopping_patience no run stops early",
        "set early_stopping_patience, or give 0",
    ),
    Refusal(
        "early_stopping_threshold",
        lambda job, stage, method: (
            job.early_stopping_threshold >= MOST_PERCENT and suite_of(job.keep_best) is not None
        ),
        "no suite improves by more than 100 percent of its tests",
        "give less than 100, such as 1",
    ),
    Refusal(
        "check_steps",
        lambda job, stage, method: job.check_steps > 0 and stage.head == "score",
        "a reward model writes no answers",
        "give 0",
    ),
    Refusal(
        "check_steps",
        lambda job, stage, method: job.check_steps > 0 and job.num_devices > 1,
        "takes one device, and the job has more",
        "give 0, and check the result",
    ),
)
