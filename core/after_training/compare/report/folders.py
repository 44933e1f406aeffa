"""Files of a run that only a report reads. Damaged ones count as missing."""

import json
from collections.abc import Mapping
from pathlib import Path


def read_fields(path: Path) -> Mapping[str, object]:
    """Return the object in a JSON file, {} if there is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(fields, dict):
        return fields
    return {}
