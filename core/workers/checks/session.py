"""One check: both models answer all suites. The answers of the model before come from a cache if
the same model has answered the same suite already."""

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig

from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.files import write_json
from core.training.contract.job import Job
from core.training.contract.methods import METHODS
from core.training.data.tokenizer import source_of
from core.training.loop.checks import Examinee
from core.workers.child import Reporter
from core.workers.trained_model import TrainedModel, load_trained

from .perplexity import RowsToPredict, rows_to_predict

BATCH_SIZE = 32
CACHE_VERSION = 1
SHARE_OF_LOADING = 0.1
"""Share of the progress that loading takes."""


@dataclass
class CheckSession:
    """Suites to answer, with what a model needs for it."""

    job: Job
    weights: Path
    """Folder of the result or of a checkpoint."""
    suites: Sequence[Suite]
    cache: Path
    """Folder for the answers of models before a training."""
    rows: RowsToPredict
    report: Reporter
    cached: list[str] = field(default_factory=list)
    """Suites whose answers before came from the cache."""

    @classmethod
    def of(cls, request: Mapping[str, Any], report: Reporter) -> Self:
        """Return the session that a request asks for."""
        job = Job.from_json(request["job"])
        suites = [parse_suite(each["lines"].encode(), each["name"]) for each in request["suites"]]
        return cls(
            job=job,
            weights=Path(request["weights"]),
            suites=suites,
            cache=Path(request["cache"]),
            rows=rows_to_predict(job, Path(request["run"])),
            report=report,
        )

    def run(self) -> dict[str, object]:
        """Return all answers, and the perplexities."""
        trained = load_trained(self.job, self.weights)
        keys = {suite.name: self._key(suite, trained.tokenizer) for suite in self.suites}
        rows_key = self._key_of(self.rows.key, trained.tokenizer)
        after = self._answers(trained, 0)
        perplexity: dict[str, object] = {"num_rows": len(self.rows.held_out)}
        with trained.inference():
            perplexity["after"] = self.rows.perplexity(trained.model)
            perplexity["trained_rows"] = self.rows.trained_perplexity(trained.model)
        base = _Base(trained, self.job)
        del trained  # so that a model trained whole is freed before the one before it is loaded
        before = {}
        for suite in self.suites:
            known = self._read(keys[suite.name])
            if known is None or len(known) != len(suite.tests):
                with base.answering() as model:
                    known = self._answers_to(suite, model, 1)
                self._write(keys[suite.name], known)
            else:
                self.cached.append(suite.name)
            before[suite.name] = known
        perplexity["before"] = self._perplexity_before(base, rows_key)
        self.report(1.0)
        return {"before": before, "after": after, "cached": self.cached, "perplexity": perplexity}

    def _perplexity_before(self, base: "_Base", key: str) -> float | None:
        if not self.rows.held_out:
            return None
        known = self._read(key)
        if known is None:
            with base.answering() as model, model.inference():
                known = [self.rows.perplexity(model.model)]
            self._write(key, known)
        return known[0] if known else None

    def _answers(self, model: TrainedModel, side: int) -> dict[str, Sequence[str]]:
        return {suite.name: self._answers_to(suite, model, side) for suite in self.suites}

    def _answers_to(self, suite: Suite, model: TrainedModel, side: int) -> tuple[str, ...]:
        """Let a model answer a suite: side 0 is after the training, 1 before."""
        total = sum(len(each.tests) for each in self.suites)
        earlier = sum(len(each.tests) for each in self.suites[: self.suites.index(suite)])

        def on_progress(done: int, _of: int) -> None:
            share = (side + (earlier + done) / total) / 2
            self.report(SHARE_OF_LOADING + (1 - SHARE_OF_LOADING) * 0.99 * share)

        examinee = Examinee(model.model, model.tokenizer, BATCH_SIZE, on_progress)
        with model.inference():
            return examinee.answers(suite)

    # Cache of the answers before

    def _key(self, suite: Suite, tokenizer: Any) -> str:
        return self._key_of(suite.sha256, tokenizer)

    def _key_of(self, what: str, tokenizer: Any) -> str:
        """Return what decides the answers of the model before: its weights, how they are stored
        and computed, and how a prompt is written."""
        job = self.job
        method = METHODS[job.method]
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        facts = [
            CACHE_VERSION,
            what,
            job.model,
            job.revision,
            _fingerprint(job),
            job.dtype,
            method.base_bits,
            method.trains_adapter or device == "cpu",
            job.bnb_4bit_quant_type,
            job.bnb_4bit_use_double_quant,
            tokenizer.chat_template,
            torch.__version__,
            device,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _read(self, key: str) -> Any:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8"))["answers"]
            return kept if isinstance(kept, list) else None
        return None

    def _write(self, key: str, answers: Sequence[object]) -> None:
        with suppress(OSError):  # a full disk only costs time
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(self.cache / f"{key}.json", {"answers": list(answers)})


@dataclass
class _Base:
    """Model before the training: the trained one without its adapter, else loaded when needed."""

    trained: TrainedModel | None
    job: Job

    def __post_init__(self) -> None:
        assert self.trained
        self._tokenizer = self.trained.tokenizer
        self._loaded: TrainedModel | None = None
        if not self.trained.has_adapter:
            self.trained = None

    @contextmanager
    def answering(self) -> Iterator[TrainedModel]:
        """Yield the model as it was before the training."""
        model = self.trained or self._load()
        switched_off: Callable[[], AbstractContextManager[None]] = model.without_adapter
        with switched_off() if self.trained else nullcontext():
            yield model

    def _load(self) -> TrainedModel:
        if self._loaded is None:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            base = load_trained(self.job, None)
            # The prompts of both sides must be the same.
            self._loaded = TrainedModel(base.model, self._tokenizer, base.precision)
        return self._loaded


def _fingerprint(job: Job) -> list[object]:
    """Return what changes when the files of a model do."""
    folder = Path(job.model)
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
        stats = [(path.name, path.stat()) for path in files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    config = AutoConfig.from_pretrained(
        **source_of(job.model, job.revision), trust_remote_code=False
    )
    return [getattr(config, "_commit_hash", None)]
