"""ResolvedJob: a job with what it names, its estimate, forecast and fixes. Finds nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.advise import Case, Fix, Plan, Sharing, suggest_fixes, what_fits
from core.advise.batch import GPUS_TOGETHER, USUAL_COUNTS, USUAL_GPUS, Cell
from core.job import JobSpec, Problem, SpecError
from core.job.rules import refusals_to_train
from core.memory import MemoryEstimate, PastRun
from core.models import Gpu, ModelSource, gpus
from core.speed import RowStatistics, Speed, count_steps, mean_tokens, mfu, predict_speed
from core.speed.doubling import pays_up_to
from core.speed.work import stored_bytes
from core.training.contract.job import is_sharded
from core.training.contract.methods import METHODS

if TYPE_CHECKING:
    from core.dataset.token_lengths import Lengths


@dataclass(frozen=True)
class ResolvedJob:
    """Job together with what it names."""

    job: JobSpec
    """Includes the choices of its profile."""
    model: ModelSource
    gpu: Gpu
    datasets: Mapping[str, Path]
    """Field (`dataset`, `eval_dataset`) -> file; an empty field is missing."""
    mix: tuple[tuple[Path, float], ...] = ()
    """Further training files and their weights; `dataset` itself has weight 1."""
    plan: Plan = field(default_factory=Plan)
    """Choices of its profile with their reasons; empty for "custom" and unknown architectures."""
    rows: RowStatistics | None = None
    """Lengths of its rows, as far as they are known."""
    past: tuple[PastRun, ...] = ()
    """Runs of this machine that correct its memory."""
    division: str = ""
    """Sentence about what `auto` chose for several devices; "" where it had nothing to choose."""
    most_devices: int = 1
    """Number of devices that could train it together."""

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """(field, file) of all its data."""
        return (*self.datasets.items(), *(("mix", path) for path, _weight in self.mix))

    def sharing(self) -> Sharing:
        """Return how its devices share the model, and what it gains."""
        job, shape, speed = self.job, self.model.shape, self.speed()
        loaded_bytes, gain, most, one_holds_it = 0, None, None, True
        if shape is not None:
            loaded_bytes = round(stored_bytes(job, self.gpu) * shape.num_parameters)
            alone = job.model_copy(update={"num_devices": 1})
            one = predict_speed(alone, shape, self.gpu, self.rows)
            if speed and one:
                gain = speed.tokens_per_second / one.tokens_per_second
            most = pays_up_to(job, shape, self.gpu, self.rows, self.most_devices)
            one_holds_it = job.num_devices == 1 or self._is_held_by(1)
            if most is not None and not self._is_held_by(most):
                most = None
        is_divided = is_sharded(job.num_devices, job.parallelism)
        sharing = Sharing(job.num_devices, self.division, is_divided, loaded_bytes, gain, most)
        return replace(sharing, one_holds_it=one_holds_it)

    def _is_held_by(self, num_devices: int) -> bool:
        """Return True if so many devices have enough memory for this job."""
        job = self.job.model_copy(update={"num_devices": num_devices})
        return replace(self, job=job).estimate().verdict != "does_not_fit"

    def require_trainable(self) -> None:
        """Raise SpecError if the job can be estimated, but not trained on this machine."""
        found = (self.model.missing_files(), self._too_long_warm_up())
        problems = [*refusals_to_train(self.job), *filter(None, found)]
        if problems:
            raise SpecError(*problems)

    def _too_long_warm_up(self) -> Problem | None:
        """Return what is wrong if the rows are too few for the warm-up; packed, they only might."""
        num_steps = count_steps(self.job, self.rows)
        if not num_steps or self.job.packing or self.job.warmup_steps < num_steps:
            return None
        problem = f"a run of {num_steps:,} steps would end before the warm-up of "
        problem += f"{self.job.warmup_steps:,}"
        return Problem("warmup_steps", problem, "give fewer warm-up steps, or more epochs")

    def estimate(self) -> MemoryEstimate:
        """Estimate the memory of this job, corrected by past runs.

        Raises SpecError for an impossible job and for an unknown architecture.
        """
        if self.model.shape is None:
            problem = (
                f"{self.job.model} has an unknown architecture: its memory cannot be estimated"
            )
            fix = "use Check exactly, or choose a Llama, Mistral, Qwen, Gemma, Phi or similar model"
            raise SpecError(Problem("model", problem, fix))
        return Case(self.job, self.model.shape, self.gpu, self.rows, self.past).memory

    def row_statistics(
        self, lengths: "Lengths", evaluation: "Lengths | None" = None
    ) -> RowStatistics:
        """Return what a forecast needs of the lengths of the rows that this job trains on, and of
        those of its evaluation file."""
        job = self.job
        # a mix or a limit of rows is composed first, and the evaluation rows are held out of it
        is_composed = bool(self.mix or job.max_rows)
        num_rows = lengths.rows
        if is_composed and not job.eval_dataset:
            num_rows = round(num_rows / (1 - job.eval_fraction))
        measured = [lengths]
        covers_all_rows = not is_composed or job.eval_fraction == 0
        if job.eval_dataset:
            measured += [evaluation] if evaluation else []
            covers_all_rows = evaluation is not None
        max_tokens = None
        if covers_all_rows and all(each.is_complete and not each.generates for each in measured):
            max_tokens = max(each.max for each in measured)
        return RowStatistics(num_rows, max(1.0, lengths.mean_tokens), lengths.p95, max_tokens)

    def speed(self) -> Speed | None:
        """Forecast the speed of this job; None on a CPU and for an unknown architecture."""
        if self.model.shape is None:
            return None
        return predict_speed(self.job, self.model.shape, self.gpu, self.rows)

    def fixes(self) -> tuple[Fix, ...]:
        """Suggest changes that make it fit or, if it fits, faster. Raises SpecError."""
        shape = self.model.shape
        if shape is None or self.estimate().capacity_bytes == 0:
            return ()
        job, gpu = self.job, self.gpu
        return suggest_fixes(job, shape, gpu, self.rows, self.past, most_devices=self.most_devices)

    def largest_batches(self) -> tuple[Cell, ...]:
        """Return the largest batch that fits by method, usual GPU and number of them, with
        checkpointing.

        Rows have this job's length. () for an unknown architecture. Raises SpecError if the model
        has fewer positions.
        """
        if self.model.shape is None:
            return ()
        models = [(self.job.model, self.model.shape)]
        length = self.job.max_length
        alone = what_fits(models, METHODS, [gpus()[gpu] for gpu in USUAL_GPUS], length)
        cards = [gpus()[gpu] for gpu in GPUS_TOGETHER]
        return (*alone, *what_fits(models, METHODS, cards, length, USUAL_COUNTS))

    def forecast(self) -> dict[str, object]:
        """Return memory, speed and fixes as `estimate --json` prints them.

        {} for an unknown architecture; no speed on a CPU. Raises SpecError.
        """
        if self.model.shape is None:
            return {}
        speed = self.speed()
        rows = {"rows": asdict(self.rows)} if self.rows else {}
        return self.estimate().to_json() | {
            **rows,
            "fixes": [fix.to_json() for fix in self.fixes()],
            "speed": speed.to_json() if speed else {},
            "peak_tokens_per_second": self._peak_tokens_per_second(),
        }

    def _peak_tokens_per_second(self) -> float | None:
        """Return the rate at which the GPU would compute only the model's own arithmetic.

        Measured rate / this rate is the model FLOPs utilization (MFU).
        """
        assert self.model.shape
        tokens = mean_tokens(self.job, self.rows)
        utilization = mfu(1.0, self.job, self.model.shape, self.gpu, tokens)
        if not utilization:
            return None
        return 1 / utilization
