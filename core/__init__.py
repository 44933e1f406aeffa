"""Tailor without a face: jobs, estimates, data and runs in plain Python. Never imports gradio."""

import sys
from importlib.util import find_spec

OLDEST = (3, 11)

# Said here, before any import that would fail with a traceback.
if sys.version_info[:2] < OLDEST:
    sys.exit(f"Tailor needs Python 3.11 or newer; this is Python {sys.version.split()[0]}.")
if find_spec("pydantic") is None:
    sys.exit(
        f"The packages of Tailor are not installed in {sys.prefix}. Start it with `make run`, or "
        "install them: pip install -r requirements.txt"
    )
