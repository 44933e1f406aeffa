"""What makes a run repeatable elsewhere: library versions, hashes of its data, and all of it in one zip."""

import json
import platform
import shutil
import stat
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from core.models import DEMO_DIR
from core.resolve import reference_of
from core.runs.files import open_regular, read_json
from core.runs.run import Run
from core.training.contract.files import sha256_of

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "psutil",
    "nvidia-ml-py",
)
"""What the training program imports, and what decides over numbers beneath it."""
MODELS = ("model", "adapter", "reward_model")
"""Fields of a job that name a model, or a folder that holds one."""
RESULTS = ("metrics.jsonl", "samples.jsonl", "estimate.json")
UNSHARED = {"pid", "pid_start_time", "boot_id"}
"""Fields of status.json that say something about this machine and nothing about the run."""

HOW_TO_REPEAT = """# {run.name}

{model}, {job.stage}, {job.method}. {run.state}: {run.step:,} of {run.max_steps:,} steps.

To train it again, without Tailor:

    python -m venv .venv && . .venv/bin/activate
    pip install -r requirements.txt
    python -m training job.json

- `job.json`: every setting{folder_notes}
- `training/`: the program that ran
- `data/`: the rows, with their SHA-256 in `manifest.json`
- `requirements.txt`: the version of Python and of each library
- `results/`: what came out: curves, answers, the last status{output_note}
"""


def requirements() -> str:
    """The training's packages as they are installed here: the text of a requirements.txt."""
    lines = [f"# Python {platform.python_version()}"]
    for package in PACKAGES:
        try:  # a build's own suffix, as in 2.13.0+cpu, is not on PyPI; without it pip takes any build
            lines.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            lines.append(f"# {package} was not installed")
    return "\n".join(lines) + "\n"


def data_manifest(folder: Path) -> dict[str, object]:
    """Size and hash of each data file in a folder."""
    files = sorted(folder.glob("*.jsonl"))
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def write_bundle(run: Run, target: Path, *, with_output: bool = False) -> Path:
    """Writes a zip of what it takes to repeat a run, and of what came out; `with_output` adds the trained weights.

    Regular files only, under relative names; nothing of the environment, and no path of this machine but those of
    models and adapters that were named by their folders. Raises OSError.
    """
    job, model_folder = _portable_job(run)
    beside = target.with_name(f".{target.name}.part")
    try:
        with ZipFile(beside, "w", ZIP_DEFLATED, strict_timestamps=False) as bundle:
            bundle.writestr("RUN.md", _how_to_repeat(run, with_output))
            bundle.writestr("job.json", json.dumps(job, indent=2) + "\n")
            bundle.writestr(
                "results/status.json", json.dumps(_portable_status(run), indent=2) + "\n"
            )
            for name, path in _files(run, model_folder, with_output):
                with open_regular(path) as source, bundle.open(name, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(source, copy, 2**20)
        return beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _files(run: Run, model_folder: Path | None, with_output: bool) -> Iterator[tuple[str, Path]]:
    """(name in the bundle, file): what lies in the run's own folders, never what a link leads to."""
    folders = {"training": run.folder / "training", "data": run.folder / "data"}
    folders |= {"model": model_folder} if model_folder else {}
    folders |= {"results/output": run.folder / "output"} if with_output else {}
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")) if not folder.is_symlink() else ():
            if _is_plain(path) and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(folder).as_posix()}", path
    names = {"requirements.txt": "requirements.txt"} | {name: f"results/{name}" for name in RESULTS}
    yield from ((names[name], run.folder / name) for name in names if _is_plain(run.folder / name))


def _is_plain(path: Path) -> bool:
    """True for a regular file whose content is nowhere else: a hard link could bring in a foreign one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_nlink == 1 or DEMO_DIR in path.parents)


def _portable_job(run: Run) -> tuple[Mapping[str, object], Path | None]:
    """The job's fields, and the folder of the model where the bundle must bring it along: the demo's is in no hub."""
    job = read_json(run.folder / "job.json")
    return (
        (job | {"model": "model"}, DEMO_DIR) if job.get("model") == str(DEMO_DIR) else (job, None)
    )


def _portable_status(run: Run) -> dict[str, object]:
    home = str(Path.home())
    fields = {
        name: value
        for name, value in read_json(run.folder / "status.json").items()
        if name not in UNSHARED
    }
    return {
        name: value.replace(home, "~") if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _how_to_repeat(run: Run, with_output: bool) -> str:
    folders = [
        name
        for name in MODELS
        if Path(path := getattr(run.job, name)).is_absolute() and path != str(DEMO_DIR)
    ]
    notes = (f"; its `{name}` is a folder of the machine it ran on: name yours" for name in folders)
    return HOW_TO_REPEAT.format(
        run=run,
        job=run.job,
        model=reference_of(run.job.model),
        folder_notes="".join(notes),
        output_note=", the trained weights" if with_output else "",
    )
