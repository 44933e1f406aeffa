"""Stand-in for Ollama's program, which writes down how it was called."""

import sys
from pathlib import Path

import pytest

PROGRAM = """#!{python}
import json, os, sys
from pathlib import Path

if {error!r}:
    print({error!r}, file=sys.stderr)
    sys.exit(1)
call = {{"arguments": sys.argv[1:], "folder": os.getcwd()}}
Path({calls!r}).write_text(json.dumps(call))
"""


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, error: str = "") -> Path:
    """Let `ollama` be the stand-in. Return the file of its last call."""
    calls, program = folder / "call.json", folder / "bin" / "ollama"
    program.parent.mkdir()
    text = PROGRAM.format(python=sys.executable, error=error, calls=str(calls))
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return calls
