"""Load an exported folder with transformers, to answer suites."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.training.contract.checks.suite import Suite
from core.training.contract.job import Job
from core.training.loop.checks import Examinee, OnProgress
from core.workers.trained_model import TrainedModel, load_trained

BATCH_SIZE = 32


@dataclass(frozen=True)
class FolderExaminee:
    """Exported folder that answers suites."""

    model: TrainedModel
    on_progress: OnProgress

    def answers(self, suite: Suite) -> Sequence[str]:
        """Return the answer to each test."""
        model = self.model
        examinee = Examinee(model.model, model.tokenizer, BATCH_SIZE, self.on_progress)
        with model.inference():
            return examinee.answers(suite)


def examinee_of_folder(folder: Path, job: Job, on_progress: OnProgress) -> FolderExaminee:
    """Load a folder in the precision of the job that it comes from.

    It is loaded as a base without an adapter: nothing trains, so any precision will do.
    """
    own = Job(model=str(folder), dataset=job.dataset, method="lora", dtype=job.dtype)
    return FolderExaminee(load_trained(own, None), on_progress)
