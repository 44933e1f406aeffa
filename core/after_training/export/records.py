"""Records of exports: what is asked, how far it is, and what is there. Read from files and written
to files; nothing here exports."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from core.after_training.export.forms import BaseChoice, FormName
from core.runs import Run
from core.runs.checks import SuiteResult
from core.runs.files import read_json
from core.training.contract.files import write_json
from core.training.contract.typed_json import WrongType, types_of, value_as

MANIFEST = "export.json"
NO_ANSWERS = (".md", ".zip", "Modelfile")
"""Ends of names of files on which the answers of an export to suites do not depend."""
CHECKS = "checks"
"""Folder in that of an export with what it answered to suites."""
WEIGHTS = (".gguf", ".safetensors")
REQUEST, STATUS, LOG, STOP, PROCESS = (
    "request.json",
    "status.json",
    "log.txt",
    "stop",
    "process.json",
)
FILES = "files"
"""Folder of an unfinished export with the files that it has made."""
DATA_FILES = ("train.jsonl", "eval.jsonl")
"""Rows of a run, in its folder `data` and in that of a repository."""
UNFINISHED = "."
"""First character of the folder of an export that is not finished."""
Record = TypeVar("Record")
ExportState = Literal["starting", "running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class ExportRequest:
    """Export that a worker shall make."""

    form: FormName
    name: str
    """Name of its folder."""
    base: BaseChoice
    run_folder: str
    base_folder: str
    """Folder of the model that was trained; "" if the result is a whole model."""
    quant: str = ""
    tools: str = ""
    """Folder of the converters; "" if they are not installed."""
    converter: str = ""
    """convert_hf_to_gguf.py of the user's own llama.cpp; "" takes that of the tools."""
    adapter_converter: str = ""
    """convert_lora_to_gguf.py of the user's own llama.cpp."""
    quantizer: str = ""
    """llama-quantize of the user's own llama.cpp, in the same way."""
    imatrix: str = ""
    """Importance matrix for the quantization: its file, FROM_ROWS, or "" for none."""
    repo_id: str = ""
    """Repository on the Hub, for form hub."""
    is_private: bool = True
    sent: Literal["adapter", "merged", "gguf"] = "adapter"
    """What goes to the Hub."""
    with_data: bool = False
    """True if the rows of the training go there too."""
    origin_folder: str = ""
    """Folder of the model before any training, which has the licence; "" if it is not here."""

    @classmethod
    def read(cls, folder: Path) -> "ExportRequest":
        """Read the request in the folder of an unfinished export. Raises ValueError."""
        return _parse(cls, _read_json(folder / REQUEST))


@dataclass(frozen=True)
class Verification:
    """Comparison of an export, in another program, with the model as it was trained."""

    trusted: bool
    prompt_tokens_equal: int
    """Questions whose prompt is the same tokens."""
    same_answers: int
    questions: int
    worst_logprob_difference: float | None
    """Of the first token of an answer; None if nothing was compared."""
    ends: int = 0
    """Answers that reach their end token where those of the trained model do."""
    program: str = ""
    """Program that answered."""
    compared_with: str = ""
    note: str = ""
    """Why it is not to be trusted, or what was not compared."""
    worst_score_difference: float | None = None
    """Of the scores of a reward model, whose scores stand in place of answers; else None."""


@dataclass(frozen=True)
class AskedQuestion:
    """Question of a verification."""

    question: str
    """Its beginning."""
    source: str
    """Where it is from: held-out rows, training rows, or a suite."""
    is_same: bool
    """True if its answer is the same as that of the trained model."""


@dataclass(frozen=True)
class ExportedFile:
    """File of an export."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of export.json, which lies beside the files of an export."""

    form: FormName
    base: BaseChoice
    quant: str
    files: tuple[ExportedFile, ...]
    verified: Verification | None
    """None if it could not be verified."""
    notes: tuple[str, ...] = ()
    """Sentences about the export for its user."""
    seconds: float = 0.0
    url: str = ""
    """Address on the Hub."""
    asked: tuple[AskedQuestion, ...] = ()
    """Questions of the verification."""

    @property
    def sources(self) -> Mapping[str, int]:
        """Number of questions by their source."""
        return Counter(each.source for each in self.asked)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of an export, also that of another version. Raises ValueError."""
        values = dict(_read_json(folder / MANIFEST))
        verified, files = values.get("verified"), values.get("files")
        if isinstance(verified, dict):
            values["verified"] = asdict(_parse(Verification, verified))
        if isinstance(files, list) and all(isinstance(each, dict) for each in files):
            values["files"] = [asdict(_parse(ExportedFile, each)) for each in files]
        asked = values.get("asked")
        if isinstance(asked, list) and all(isinstance(each, dict) for each in asked):
            values["asked"] = [asdict(_parse(AskedQuestion, each)) for each in asked]
        return _parse(cls, values)

    @property
    def answers_from(self) -> Mapping[str, str]:
        """Name of each file on which its answers depend -> its SHA-256."""
        named = {each.name: each.sha256 for each in self.files}
        return {name: hash for name, hash in named.items() if not name.endswith(NO_ANSWERS)}

    def with_seconds(self, seconds: float) -> "Manifest":
        """Return it with the time that the export took."""
        return replace(self, seconds=seconds)

    def write(self, folder: Path) -> None:
        """Write export.json. Raises OSError."""
        write_json(folder / MANIFEST, asdict(self))


@dataclass(frozen=True)
class ExportStatus:
    """Progress of an export, or its end."""

    state: ExportState = "starting"
    phase: str = ""
    share: float = 0.0
    """Done of the phase, from 0 to 1."""
    seconds_left: float | None = None
    error: str = ""
    fix: str = ""

    @classmethod
    def read(cls, folder: Path) -> "ExportStatus":
        """Read the status of an unfinished export; a new one if there is none."""
        try:
            return _parse(cls, _read_json(folder / STATUS))
        except ValueError:
            return cls()


@dataclass(frozen=True)
class Export:
    """Finished export of a run."""

    name: str
    folder: Path
    manifest: Manifest = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return sum(each.bytes for each in self.manifest.files)

    @property
    def gives_scores(self) -> bool:
        """True for a reward model, which scores texts and answers nothing."""
        verified = self.manifest.verified
        return verified is not None and verified.worst_score_difference is not None

    @property
    def gguf(self) -> Path | None:
        """Place of the GGUF file of a whole model; None if it has none."""
        if self.manifest.form == "adapter-gguf":
            return None
        for each in self.manifest.files:
            if each.name.endswith(".gguf"):
                return self.folder / each.name
        return None

    @property
    def damage(self) -> str:
        """Reason why its weights are no longer those that were exported, by their sizes; or ""."""
        for each in self.manifest.files:
            if not each.name.endswith(WEIGHTS):
                continue
            try:
                num_bytes = (self.folder / each.name).stat().st_size
            except OSError:
                return f"{each.name} is not there any more"
            if num_bytes != each.bytes:
                return f"{each.name} has changed since it was exported"
        return ""

    @property
    def verified(self) -> Verification | None:
        """Verification, which is not to be trusted once the weights are damaged."""
        verified, damage = self.manifest.verified, self.damage
        if verified and damage:
            return replace(verified, trusted=False, note=damage)
        return verified

    @property
    def weights(self) -> Mapping[str, str]:
        """Name of each file with weights -> its SHA-256."""
        files = self.manifest.files
        return {each.name: each.sha256 for each in files if each.name.endswith(WEIGHTS)}

    @property
    def checks(self) -> tuple[SuiteResult, ...]:
        """Answers to suites, beside the answers of the model as trained."""
        found = []
        for path in sorted((self.folder / CHECKS).glob("*.json")):
            if result := SuiteResult.from_json(read_json(path)):
                found.append(result)
        return tuple(found)

    def to_json(self) -> dict[str, object]:
        """Return what `export --json` prints."""
        verified = self.verified
        return {
            "path": str(self.folder),
            "files": [asdict(each) for each in self.manifest.files],
            "verified": asdict(verified) if verified else None,
            "form": self.manifest.form,
            "base": self.manifest.base,
            "quant": self.manifest.quant,
            "notes": list(self.manifest.notes),
            "url": self.manifest.url,
            "checks": [_counts(each) for each in self.checks],
        }


def _counts(result: SuiteResult) -> dict[str, object]:
    return {
        "name": result.name,
        "total": result.total,
        "trained": result.before,
        "exported": result.after,
        "p_value": result.p_value,
    }


def exports_folder(run: Run) -> Path:
    """Return the folder of a run's exports."""
    return run.folder / "exports"


def data_files(run_folder: Path) -> tuple[Path, ...]:
    """Return the files with the rows of a run: of the training, then of the evaluation."""
    paths = (run_folder / "data" / name for name in DATA_FILES)
    return tuple(path for path in paths if path.is_file())


def list_exports(run: Run) -> tuple[Export, ...]:
    """Return the finished exports of a run, the oldest first."""
    found = []
    for folder in sorted(exports_folder(run).glob("*")):
        if not folder.name.startswith(UNFINISHED) and not folder.is_symlink():
            try:
                found.append(Export(folder.name, folder, Manifest.read(folder)))
            except ValueError:
                continue
    return tuple(found)


def unfinished_folder(run: Run, name: str) -> Path:
    """Return the folder in which an export is made."""
    return exports_folder(run) / f"{UNFINISHED}{name}"


def _read_json(path: Path) -> Mapping[str, object]:
    """Return the object in a JSON file. Raises ValueError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError):
        raise ValueError(f"{path.name} cannot be read") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def _parse(kind: type[Record], values: Mapping[str, object]) -> Record:
    """Return a record of JSON values; unknown fields are ignored. Raises ValueError."""
    types = types_of(kind)
    try:
        known = {name: value_as(types[name], values[name]) for name in types if name in values}
        return kind(**known)
    except (WrongType, TypeError) as error:  # TypeError: a field is missing
        raise ValueError(str(error)) from None
