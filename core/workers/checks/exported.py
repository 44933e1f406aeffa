"""Check of an export: its file or folder answers suites, once its hashes are those it was made
with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from core.training.contract.checks.suite import Suite
from core.training.contract.checks.suite_files import parse_suite
from core.training.contract.failures import TrainingError
from core.training.contract.files import sha256_of
from core.training.contract.job import Job
from core.workers.child import Reporter
from core.workers.quick_imports import quick_imports

from .gguf import GgufExaminee

SHARE_OF_LOADING = 0.1
"""Share of the progress that hashing and loading take."""
AGAIN = "export it again"


class Answers(Protocol):
    """Model that answers suites."""

    def answers(self, suite: Suite) -> Sequence[str]:
        """Return the answer to each test."""
        ...


@dataclass
class ExportSession:
    """Export that answers suites."""

    folder: Path
    files: Mapping[str, str]
    """Name of each file with weights -> its SHA-256 when it was made."""
    tools: str
    """Folder of llama.cpp."""
    has_template: bool
    """True if the model has a chat template; llama.cpp would take another one."""
    job: Job
    suites: Sequence[Suite]
    report: Reporter
    done: int = field(default=0, init=False)
    """Tests of the suites that are finished."""

    @classmethod
    def of(cls, request: Mapping[str, Any], report: Reporter) -> Self:
        """Return the session that a request asks for."""
        export, suites = request["export"], request["suites"]
        return cls(
            folder=Path(export["folder"]),
            files=export["files"],
            tools=export["tools"],
            has_template=export["has_template"],
            job=Job.from_json(request["job"]),
            suites=[parse_suite(each["lines"].encode(), each["name"]) for each in suites],
            report=report,
        )

    def run(self) -> dict[str, object]:
        """Return the answers to all suites. Raises TrainingError."""
        for number, (name, sha256) in enumerate(self.files.items(), start=1):
            self._require_unchanged(name, sha256)
            self.report(SHARE_OF_LOADING * number / len(self.files))
        examinee = self._load()
        found = {}
        for suite in self.suites:
            found[suite.name] = examinee.answers(suite)
            self.done += len(suite.tests)
        self.report(1.0)
        return {"answers": found}

    def _require_unchanged(self, name: str, sha256: str) -> None:
        try:
            is_same = sha256_of(self.folder / name) == sha256
        except OSError:
            raise TrainingError(f"{name} is not there any more: {AGAIN}.") from None
        if not is_same:
            raise TrainingError(f"{name} has changed since it was exported: {AGAIN}.")

    def _load(self) -> Answers:
        ggufs = [name for name in self.files if name.endswith(".gguf")]
        if ggufs:
            return GgufExaminee.load(
                self.folder / ggufs[0],
                self.tools,
                self.suites,
                has_template=self.has_template,
                on_progress=self._progress,
            )
        with quick_imports():
            from .folder import examinee_of_folder

        return examinee_of_folder(self.folder, self.job, self._progress)

    def _progress(self, done: int, _of: int) -> None:
        share = (self.done + done) / sum(len(suite.tests) for suite in self.suites)
        self.report(SHARE_OF_LOADING + (1 - SHARE_OF_LOADING) * 0.99 * share)
