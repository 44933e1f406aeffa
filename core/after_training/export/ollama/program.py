"""Program `ollama` of the user: let it take an export. Starts no server."""

import re
import shutil
import subprocess

from core.after_training.export.records import Export
from core.job import Problem, SpecError

PROGRAM = "ollama"
SECONDS_TO_CREATE = 1800
"""Far more than it takes to copy and hash a file of 100 GB."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
"""What moves the cursor of a terminal."""
MOST_LETTERS = 300


def find_ollama() -> str | None:
    """Return the program of Ollama, None if it is not on the PATH."""
    return shutil.which(PROGRAM)


def name_in_ollama(run_id: str, export_name: str) -> str:
    """Return the name under which Ollama keeps an export: the run, and a tag for its numbers.

    `ollama-Q4_K_M` of the run `poems` becomes `poems:q4_k_m`.
    """
    return f"{run_id}:{export_name.removeprefix('ollama-').lower()}"


def add_to_ollama(export: Export) -> str:
    """Let Ollama create a model from an export, and return its name there.

    Raises SpecError if Ollama is not here or refuses, or the export is not to be trusted.
    """
    program = find_ollama()
    if program is None:
        fix = "install it from ollama.com, or type its lines on a machine that has it"
        raise SpecError(Problem("ollama", "Ollama is not on the PATH", fix))
    verified = export.verified
    if verified and not verified.trusted:
        problem = f"the export is not to be trusted: {verified.note}"
        fix = "export it again" if export.damage else "export it with another type of numbers"
        raise SpecError(Problem("ollama", problem, fix))
    name = name_in_ollama(export.folder.parent.parent.name, export.name)
    command = [program, "create", name, "-f", "Modelfile"]
    try:
        done = subprocess.run(
            command,
            cwd=export.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_CREATE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = f"Ollama did not take the model: {_shortened(str(error))}"
        raise SpecError(Problem("ollama", problem, "type its lines yourself")) from None
    if done.returncode:
        said = _shortened(done.stderr) or f"it ended with {done.returncode}"
        fix = "start Ollama (`ollama serve`) and try again; the export is kept"
        raise SpecError(Problem("ollama", f"Ollama did not take the model: {said}", fix))
    return name


def _shortened(text: str) -> str:
    """Return the last line of what a program printed, without control characters."""
    lines = [CONTROL.sub("", line).strip() for line in text.splitlines()]
    written = [line for line in lines if line]
    if not written:
        return ""
    return written[-1].removeprefix("Error: ")[:MOST_LETTERS]
