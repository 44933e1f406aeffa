"""Bundle a run: what it takes to repeat it elsewhere, and its results, in one zip."""

import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from core.models import DEMO_DIR
from core.resolve import reference_of
from core.runs import Run
from core.runs.checks import sentences

MODEL_FIELDS = ("model", "adapter", "reward_model")
"""Job fields that may name a folder of this machine. A test compares them with JobFields."""
CHECKS = """
- `results/checks/`: the checks of its result, with every question and both answers

## Checks

{table}

{not_said}"""
RESULTS = ("metrics.jsonl", "samples.jsonl", "estimate.json", "earlier_estimates.json")
PRIVATE_STATUS = {"pid", "pid_start_time", "boot_id", "folder_inode"}
"""Fields of status.json about this machine, not about the run."""
HOW_TO_REPEAT = """# {run.name}

{model}, {job.stage}, {job.method}. {run.state}: {run.step:,} of {run.max_steps:,} steps.

To train it again, without Tailor:

    python -m venv .venv && . .venv/bin/activate
    pip install -r requirements.txt
    python -m training job.json

{devices}

- `job.json`: every setting{folder_notes}
- `training/`: the program that ran
- `data/`: the rows, with their SHA-256 in `manifest.json`
- `requirements.txt`: the version of Python and of each library
- `results/`: curves, answers and the last status{checks}
"""

ANY_DEVICES = "With several GPUs it starts torchrun, one process for each."
ONE_MACHINE = """It starts torchrun with {count} processes, one for each device, as this line does:

    torchrun --standalone --nproc-per-node {count} -m training job.json

"""
SEVERAL_MACHINES = """\
On {nodes} machines that share this folder, type on each, with the name of the first in place of
HOST:

    torchrun --nnodes {nodes} --nproc-per-node {each} --rdzv-backend c10d \\
        --rdzv-endpoint HOST:29500 -m training job.json

An optimizer step has rows for each of {count} processes: with another number it has others."""


def write_bundle(run: Run, target: Path) -> Path:
    """Write a zip with everything that it takes to repeat a run, and its results.

    It holds regular files only, under relative names, nothing of the environment, and no paths of
    this machine except those of models and adapters in the job. Raises OSError.
    """
    job = run.fields_in("job.json")
    folders = {"training": run.folder / "training", "data": run.folder / "data"}
    folders["results/checks"] = run.folder / "checks"
    if job.get("model") == str(DEMO_DIR):  # the only model that no hub has
        job["model"] = "model"
        folders["model"] = DEMO_DIR
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with ZipFile(unfinished, "w", ZIP_DEFLATED, strict_timestamps=False) as bundle:
            bundle.writestr("RUN.md", _how_to_repeat(run))
            bundle.writestr("job.json", json.dumps(job, indent=2) + "\n")
            status = json.dumps(_public_status(run), indent=2)
            bundle.writestr("results/status.json", status + "\n")
            for name, path in _files(run, folders):
                with run.open(path) as source, bundle.open(name, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(source, copy, 2**20)
        return unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _files(run: Run, folders: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield (name in the bundle, file), never what a link leads to."""
    for name, folder in folders.items():
        if not folder.is_symlink():
            for path in sorted(folder.rglob("*")):
                if _is_own_file(path) and "__pycache__" not in path.parts:
                    yield f"{name}/{path.relative_to(folder).as_posix()}", path
    names = {"requirements.txt": "requirements.txt"} | {name: f"results/{name}" for name in RESULTS}
    for name, name_in_bundle in names.items():
        if _is_own_file(run.folder / name):
            yield name_in_bundle, run.folder / name


def _is_own_file(path: Path) -> bool:
    """Return True for a regular file without hard links, which could bring in other files."""
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and (info.st_nlink == 1 or DEMO_DIR in path.parents)


def _public_status(run: Run) -> dict[str, object]:
    home = str(Path.home())
    fields = run.fields_in("status.json")
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = value.replace(home, "~")
    return {name: value for name, value in fields.items() if name not in PRIVATE_STATUS}


def _how_to_repeat(run: Run) -> str:
    notes = ""
    for name in MODEL_FIELDS:
        path = getattr(run.job, name)
        if Path(path).is_absolute() and path != str(DEMO_DIR):
            notes += f"; its `{name}` is a folder of the machine that it ran on: name yours"
    checks = ""
    if run.checks:
        table = sentences.check_table(run.checks)
        checks = CHECKS.format(table=table, not_said=sentences.NOT_SAID.rstrip())
    return HOW_TO_REPEAT.format(
        run=run,
        job=run.job,
        model=reference_of(run.job.model),
        devices=_how_to_start(run),
        folder_notes=notes,
        checks=checks,
    )


def _how_to_start(run: Run) -> str:
    """Return the lines that start as many processes as the run had, on one machine or several."""
    each, nodes = run.job.num_devices, run.placement.nodes
    count = each * nodes
    if count < 2:
        return ANY_DEVICES
    if nodes > 1:  # without torchrun the program starts those of one machine only
        return SEVERAL_MACHINES.format(count=count, nodes=nodes, each=each)
    nodes = 2 if count % 2 == 0 else count
    several = SEVERAL_MACHINES.format(count=count, nodes=nodes, each=count // nodes)
    return ONE_MACHINE.format(count=count) + several
